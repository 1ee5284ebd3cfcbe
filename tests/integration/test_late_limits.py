"""Limits that an executor on a broker is given while it runs."""

from __future__ import annotations

from contextlib import closing

import pytest

from celeriac.backend.claims.open import places_for
from celeriac.cluster.cluster import Cluster

pytestmark = pytest.mark.celery


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
