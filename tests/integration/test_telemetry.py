"""The metrics of an executor beside real workers."""

from __future__ import annotations

import pytest

from celeriac import Config
from celeriac.cluster.cluster import Cluster
from celeriac.telemetry import metrics
from tests.support.cli_runner import until
from tests.support.worker_host import WorkerHost

pytestmark = pytest.mark.celery


def numbers(cluster, metric):
    return {
        labels: value
        for family in cluster.telemetry.read()
        if family.metric is metric
        for labels, value in family.numbers
    }


def test_workers_are_counted_by_state_and_a_dead_one_is_noticed(redis, tmp_path):
    with (
        WorkerHost("one", redis, redis, tmp_path, "-c", "2", is_behind_proxies=False) as one,
        WorkerHost("two", redis, redis, tmp_path, "-c", "3", "--queues", "gpu", is_behind_proxies=False),
        Cluster(redis.url, config=Config(parallelism=8)) as cluster,
        cluster.executor() as executor,
    ):
        until(lambda: numbers(cluster, metrics.WORKERS).get(("live",)) == 2, "both workers")
        until(lambda: numbers(cluster, metrics.QUEUE_SLOTS) == {("default",): 2, ("gpu",): 3}, "their slots")
        executor.queue_command("a", "true")
        executor.queue_command("b", "exit 3", queue="gpu")
        executor.queue_command("c", "true", queue="unserved")
        ends: list[object] = []
        until(lambda: beat(executor, ends) == 2, "two ends", 60)
        assert numbers(cluster, metrics.TASK_ENDS) == {
            ("default", "success", "none"): 1,
            ("gpu", "failed", "exit_code"): 1,
        }
        assert numbers(cluster, metrics.QUEUE_UNSERVED)["unserved",] == 1
        assert numbers(cluster, metrics.QUEUE_UNSERVED)["gpu",] == 0
        (delays,) = [family for family in cluster.telemetry.read() if family.metric is metrics.RESULT_DELAY]
        assert dict(delays.distributions)[()].number == 2
        assert numbers(cluster, metrics.BACKEND_AVAILABLE) == {(): 1}
        one.kill()
        until(lambda: numbers(cluster, metrics.WORKERS).get(("suspected",)) == 1, "a silent worker")
        until(lambda: numbers(cluster, metrics.WORKERS_DIED) == {(): 1}, "its death", 60)
        assert numbers(cluster, metrics.WORKERS) == {("live",): 1, ("draining",): 0, ("paused",): 0, ("suspected",): 0}
        executor.terminate()


def beat(executor, ends):
    executor.heartbeat()
    ends += [event for event in executor.get_event_buffer() if event.state.is_final]
    executor.wait(0.05)
    return len(ends)
