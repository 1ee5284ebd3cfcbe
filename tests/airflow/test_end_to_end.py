"""A whole Airflow runs a DAG of 60 tasks, with our executor, our worker, or both."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.airflow.deployment import INCUMBENT, OURS, SLOW, deployed
from tests.command_line import until
from tests.servers import PostgresServer, RedisServer


def expected() -> Counter[str]:
    plain = [f"plain{n}.1" for n in range(28)] + [f"mapped[{n}].1" for n in range(28)]
    others = ["flaky.1", "flaky.2", "told.1", "callback of told.1", "waits.1 before", "waits.1 after", "last.1"]
    return Counter([*plain, *others])


@pytest.mark.parametrize(("executor", "worker"), [(OURS, OURS), (OURS, INCUMBENT), (INCUMBENT, OURS)])
def test_every_task_runs_once_and_ends_as_it_should(
    tmp_path: Path, shared_redis: RedisServer, postgres: PostgresServer, executor: str, worker: str
):
    servers = {"broker": shared_redis.url, "backend": postgres.url}
    with deployed(tmp_path, postgres, **servers, executor=executor, worker=worker) as airflow:
        airflow.trigger("one")
        until(lambda: airflow.ended("one"), "the end of the run", SLOW)
        assert airflow.states("one") == {"success": 60}
        assert airflow.run_state("one") == "success"
        assert airflow.begun() == expected()
