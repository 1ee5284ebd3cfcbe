"""Servers that refuse for 20 s while three workers run 400 tasks of 1 to 10 s: no task is lost, none runs twice, none
fails, no command is ended, and no slot stays taken."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import pytest

from celeriac import Reason
from celeriac.cluster.cluster import Cluster
from tests.support.cli_runner import run_in_process, until
from tests.support.load import Load, config, workers
from tests.support.servers import PgBouncer

# py-amqp leaves the socket of a handshake that was cut to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.celery,
    pytest.mark.fault,
    pytest.mark.slow,
    pytest.mark.usefixtures("collect_cut_sockets"),
]

WORKERS, CONCURRENCY = 3, 16
SLOTS = WORKERS * CONCURRENCY
TASKS = 400
LENGTHS = range(1, 11)  # seconds of a task
REFUSAL = 20.0  # seconds
QUEUE = "default"


def test_redis_at_maxmemory(redis, tmp_path):
    check_refusal(redis.url, redis.url, redis.full, tmp_path)


def test_redis_without_enough_replicas(redis, tmp_path):
    check_refusal(redis.url, redis.url, redis.no_replicas, tmp_path)


def test_postgres_that_is_killed_behind_pgbouncer(rabbit, postgres, tmp_path):
    @contextmanager
    def killed() -> Iterator[None]:
        postgres.kill()
        try:
            yield
        finally:
            postgres.start()

    with closing(PgBouncer(postgres)) as pgbouncer:
        check_refusal(rabbit.url, pgbouncer.url, killed, tmp_path)


def check_refusal(
    broker: str, backend: str, refusal: Callable[[], AbstractContextManager[object]], folder: Path
) -> None:
    options = ("--broker", broker, "--backend", backend)
    with (
        Cluster(broker, backend, config=config()) as cluster,
        workers(folder, WORKERS, *options, "--concurrency", str(CONCURRENCY)) as running,
    ):
        load = Load(cluster, folder, QUEUE)
        for number in range(TASKS):
            load.add(1, LENGTHS[number % len(LENGTHS)])
        load.drive_to_ends(TASKS // 10)
        with refusal():
            load.drive_for(REFUSAL)
            in_flight = load.executor.tasks_in_flight
        load.to_the_end()
        lost_events = [event for event in load.events if event.reason is Reason.LOST]
        logging.getLogger(__name__).info(
            "%d tasks, %d in flight when the refusal ended: lost %d, doubled %d, ended by a worker %d, failed %d",
            *(TASKS, in_flight, len(load.lost), len(load.doubled), len(load.cut_short), len(load.failed)),
        )
        load.check()
        assert (load.doubled, load.cut_short, lost_events) == (set(), [], [])
        until(lambda: running_counts(options, folder) == [0] * WORKERS, "workers that run nothing")
        load.add_meeting(SLOTS)
        load.to_the_end()
        assert [worker.process.poll() for worker in running] == [None] * WORKERS
    assert [log for log in folder.glob("*.log") if "Traceback" in log.read_text()] == []


def running_counts(options: tuple[str, ...], folder: Path) -> list[int]:
    """Return how many tasks each worker runs, as `celeriac status` shows it."""
    ended = run_in_process("status", *options, "--json", cwd=folder)
    return [worker["running"] for worker in json.loads(ended.out)["workers"]]
