"""Garbage in the result backend while a command runs: its result is stored and read, and its slot is free."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from redis import Redis

from celeriac import CeleryExecutor, Config, State
from celeriac.cluster.cluster import Cluster
from tests.support.cli_runner import until
from tests.support.workers import GATED, worker

pytestmark = pytest.mark.celery


@pytest.fixture
def redis(shared_redis) -> Iterator[Any]:
    with closing(Redis.from_url(shared_redis.url)) as client:
        client.flushall()
        yield client


def drive(executor: CeleryExecutor, is_done: Callable[[], bool], what: str) -> None:
    def beat() -> bool:
        executor.heartbeat()
        return is_done()

    until(beat, what)


def test_a_result_takes_the_place_of_garbage_and_the_lease_thread_lives(redis, shared_redis, tmp_path):
    config = Config(parallelism=4, result_unreadable_timeout=0.5, reconcile_interval=0.5, reconcile_interval_pushed=0.5)
    with (
        worker(tmp_path, (shared_redis.url, shared_redis.url), "--concurrency", "4"),
        Cluster(shared_redis.url, config=config) as cluster,
        cluster.executor() as executor,
    ):
        redis.hset("celeriac-lease-evil", mapping={"standing": "live", "content": "x", "beat": "1"})
        redis.sadd("celeriac-leases", "evil")
        garbage = {"text": b"garbage", "success": b'{"status":"SUCCESS","result":5}', "list": None}
        for key in garbage:
            executor.queue_command(key, GATED, cwd=str(tmp_path))
        drive(executor, lambda: executor.stats().tasks_running == len(garbage), "the start of the commands")
        leases, detector = cluster._leases, cluster._lost_task_detector
        assert leases is not None
        assert detector is not None
        ids = [task.message_id for task in executor.tasks()]
        until(lambda: all(map(detector.is_held, ids)), "a renewal that lists the tasks")
        for task in list(executor.tasks()):
            value = garbage[str(task.key)]
            redis.delete(f"celery-task-meta-{task.message_id}")
            if value is None:
                redis.rpush(f"celery-task-meta-{task.message_id}", b"x")
            else:
                redis.set(f"celery-task-meta-{task.message_id}", value)
                redis.publish(f"celery-task-meta-{task.message_id}", value)
        deadline = executor._clock() + 2.0  # four times as long as a result may be unreadable without a worker
        drive(executor, lambda: executor._clock() >= deadline, "some time with unreadable results")
        assert executor.tasks_in_flight == len(garbage)
        (tmp_path / "go").touch()
        drive(executor, lambda: executor.tasks_in_flight == 0, "the ends of the tasks")
        ends = [event for event in executor.get_event_buffer() if event.state.is_final]
        assert {(event.key, event.state, event.attempt) for event in ends} == {
            (key, State.SUCCESS, 1) for key in garbage
        }
        assert executor.slots_occupied == 0
        until(lambda: leases.is_dead("evil"), "the end of the malformed lease")
    assert sorted((tmp_path / "log").read_text().split()) == sorted(garbage)
