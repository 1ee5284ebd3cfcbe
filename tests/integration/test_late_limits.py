"""Limits that executors on a broker are given while they run, and what is shown of them."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.datastructures import QueryParams

from celeriac import Config
from celeriac.backend.claims.claim import Lease
from celeriac.backend.claims.open import claims_for, places_for
from celeriac.cluster.cluster import Cluster
from celeriac.config.settings import read_settings
from celeriac.json_types import OUTPUTS
from celeriac.telemetry import metrics
from celeriac.web.page.overview import overview_values
from celeriac.web.page.rendering import render
from celeriac.web.reads import Reads
from celeriac.web.site import Sources
from tests.support.cli_runner import run_in_process, until
from tests.support.long import slow

pytestmark = pytest.mark.celery

LEASE = Lease(holder="w1", name="one@here", host="here", pid=1, boot_id="b", queues=("default",), slots=4)


def test_a_first_limit_is_kept_in_the_store_of_all_executors(redis):
    with Cluster(redis.url, late_binding=False) as cluster:
        executor = cluster.executor()
        for key in "ab":
            executor.queue_command(key, "true", queue="net")
        executor.adjustments.change_limits(shared_limits={"queue_rates": {"net": "1/h"}})
        executor.heartbeat()
        assert (executor.tasks_in_flight, executor.tasks_waiting) == (1, 1)
        places = places_for(cluster.app, timeout=5.0)
        assert places is not None
        with closing(places):
            assert places.holders("queue-rate:net") == {executor.explain("a").id}
        assert "waits for the rate of queue 'net'" in executor.explain("b").now.words
        executor.adjustments.change_limits(shared_limits={"queue_rates": {"net": None}})
        executor.heartbeat()
        assert executor.tasks_in_flight == 2


def limits_of(folder: Path, *options: str) -> Any:
    output = run_in_process("status", *options, "--json", cwd=folder)
    return msgspec.json.decode(output.out, type=OUTPUTS["status"], strict=True).limits


def overview_page(folder: Path, broker: str, backend: str) -> str:
    settings = read_settings({"broker": broker, "backend": backend}, folder=folder)
    values = overview_values(Reads(Sources(connection=settings.connection)), QueryParams(), is_live=True)
    return render("overview_live.html", is_operator=False, **values)


@pytest.mark.parametrize("kind", ["redis", slow("postgres")])
def test_status_says_which_executors_use_a_limit(request, redis, kind, tmp_path):
    backend = redis.url if kind == "redis" else request.getfixturevalue("postgres").url
    config = Config(parallelism=9, concurrency_limits={"db": 2}, concurrency_rates={"*": "1/h"})
    with Cluster(redis.url, backend, config=config, late_binding=False) as cluster:
        executor, at = cluster.executor(), ("--broker", redis.url, "--backend", backend)
        claims = claims_for(cluster.app, timeout=5.0)
        assert claims is not None
        with closing(claims):
            claims.renew(LEASE)  # without a worker, status asks for two seconds
        executor.queue_command("a", "true", concurrency_key="db")
        executor.queue_command("b", "true", concurrency_key="db")
        executor.heartbeat()
        until(lambda: limits_of(tmp_path, *at), "the note of the executor", 10.0)
        key, rate = limits_of(tmp_path, *at)
        assert (key.setting, key.name, key.number, key.period, key.used) == ("concurrency_limits", "db", 2, None, 1)
        assert (rate.setting, rate.number, rate.period, rate.used) == ("concurrency_rates", 1, 3600.0, 1)
        assert list(key.executors.values()) == list(rate.executors.values()) == [1]
        assert rate.full_until is not None
        shown = run_in_process("status", *at, cwd=tmp_path).out
        assert "concurrency_limits db=2" in shown
        assert "1 of 1  full until " in shown
        page = overview_page(tmp_path, redis.url, backend)
        assert "concurrency_rates db=1/h" in page
        assert "full until <time" in page
        held = {
            labels: value
            for family in cluster.telemetry.read()
            if family.metric is metrics.LIMIT_PLACES_HELD
            for labels, value in family.numbers
        }
        assert held == {("key:db",): 1}
    assert limits_of(tmp_path, *at) == []
