"""Test which workers the search for lost tasks asks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pytest

from celeriac.backend.claims.claim import Lease
from celeriac.backend.claims.lease_monitor import LeaseMonitor
from celeriac.backend.claims.memory import MemoryClaims
from celeriac.broker.app import make_app
from celeriac.cluster.lost_tasks.detector import ThreadedLostTaskDetector
from celeriac.cluster.lost_tasks.redis_queues import RedisQueues
from celeriac.cluster.worker_monitor import WorkerMonitor
from celeriac.task.task import Task
from tests.support.cli_runner import until

NO_SERVER = "redis://127.0.0.1:1/0"
TASK = Task(key="k", command="true")


class Workers:
    """A worker monitor that counts the requests to all workers."""

    requests = 0

    def query_all(self) -> None:
        self.requests += 1

    def names(self) -> frozenset[str]:
        return frozenset()


class Place:
    def __init__(self) -> None:
        self.claims, self.workers = MemoryClaims(), Workers()
        self.leases = LeaseMonitor(self.claims, on_news=lambda: None, poll_interval=10_000.0)
        self.leases.wait_for_poll(10.0)
        self.detector = ThreadedLostTaskDetector(
            make_app(broker_url=NO_SERVER, result_backend=NO_SERVER),
            queues=RedisQueues(),
            workers=cast("WorkerMonitor", self.workers),
            leases=self.leases,
            timeout=1.0,
            on_found=lambda: None,
        )


@pytest.fixture
def place() -> Iterator[Place]:
    place = Place()
    yield place
    place.detector.close()
    place.leases.close()


def test_all_workers_are_asked_about_a_task_without_a_claim(place):
    place.detector.scan([TASK], requested_at=0.0)
    until(lambda: place.workers.requests, "a request to all workers")


def test_no_worker_is_asked_about_a_task_that_runs_under_a_lease(place):
    ids = (TASK.message_id,)
    place.claims.renew(Lease(holder="w", name="w", host="h", pid=1, boot_id="", queues=("q",), slots=1, running=ids))
    place.leases.poll()
    place.detector.scan([TASK], requested_at=0.0)
    until(lambda: not place.detector.is_scanning, "the end of the search")
    assert place.workers.requests == 0
