"""Brokers and result backends that are killed, frozen, emptied or cut off, under a load that counts what has started.

No task may be lost, and none may fail. Only a task whose message the broker delivers again can run twice: one that ran
while the broker stopped, and one whose publish was not confirmed.
"""

from __future__ import annotations

import logging
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from amqp import Connection
from redis import Redis

from celeriac.cluster.cluster import Cluster
from celeriac.cluster.lost_tasks.redis_queues import find_ids
from tests.support.cli_runner import until
from tests.support.load import TIMEOUT, Load, config, workers
from tests.support.long import LONG, slow
from tests.support.proxy import Proxy
from tests.support.servers import PostgresServer, RabbitServer, RedisServer, Server

# py-amqp leaves the socket of a handshake that was cut to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.celery,
    pytest.mark.long,
    pytest.mark.usefixtures("collect_cut_sockets"),
]

FREEZE = 30.0 if LONG else 4.0  # seconds
BACKEND_OUTAGE = 45.0 if LONG else 4.0  # seconds
TASKS = 200 if LONG else 40
IN_FLIGHT = 16  # with late binding: what two workers of four threads run, and as many again
DEADLINE = 2 * TIMEOUT + 1.0  # seconds: one batch and one read, each with its own timeout, on a busy machine


class Place:
    """A broker, a result backend, and two workers on a queue of their own."""

    def __init__(self, broker: Server, backend: str, queue: str, folder: Path) -> None:
        self.broker, self.backend, self.queue, self.folder = broker, backend, queue, folder
        self.options = ["--broker", broker.url, "--backend", backend, "--queues", queue, "--concurrency", "4"]

    def cluster(self, broker_url: str | None = None, **options: Any) -> Cluster:
        return Cluster(broker_url or self.broker.url, self.backend, config=config(**options))

    def load(self, cluster: Cluster) -> Load:
        return Load(cluster, self.folder, self.queue)

    def wait_for_acknowledgements(self, load: Load) -> None:
        """Wait until Redis has no unacknowledged message, but for those that were lost on their way to a worker: their
        tasks were re-sent."""
        if isinstance(self.broker, RedisServer):
            sent_again = {event.id for event in load.events if event.key in load.resent}
            with Redis(port=self.broker.port) as client:
                until(lambda: set(find_ids(client.hvals("unacked"))) <= sent_again, "the last acknowledgement")


RABBIT_IN_LONG_RUNS = pytest.mark.parametrize("place", ["redis", slow("rabbit")], indirect=True)


@pytest.fixture(params=["redis", "rabbit"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    broker: Server = request.getfixturevalue("shared_redis" if request.param == "redis" else "rabbit")
    backend = broker if request.param == "redis" else request.getfixturevalue("postgres")
    queue = f"{request.node.originalname[-30:]}-{os.getpid()}"
    return Place(broker, backend.url, queue, tmp_path)


def log_counts(load: Load, what: str) -> None:
    """Log what is not guaranteed: `pytest -rP --log-level=info` shows it."""
    counts = f"{len(load.begun)} started, {len(load.doubled)} of them twice, {len(load.unconfirmed)} unconfirmed"
    logging.getLogger(__name__).info("%s: %s, longest heartbeat %.2f s", what, counts, load.slowest)


@RABBIT_IN_LONG_RUNS
def test_no_task_is_lost_when_the_broker_restarts(place):
    with place.cluster() as cluster, workers(place.folder, 2, *place.options):
        load = place.load(cluster)
        load.add(TASKS, 0.2)
        load.drive_to_ends(10)
        place.broker.kill()
        load.add(TASKS, 0.2)
        load.drive_for(2)
        place.broker.start()
        load.to_the_end()
        place.wait_for_acknowledgements(load)
    log_counts(load, "broker killed")
    load.check()
    if isinstance(place.broker, RedisServer):  # RabbitMQ delivers running tasks again at once
        assert load.doubled <= load.unconfirmed
    assert load.slowest < DEADLINE


@RABBIT_IN_LONG_RUNS
def test_no_task_is_lost_when_the_broker_freezes(place):
    with place.cluster() as cluster, workers(place.folder, 2, *place.options):
        load = place.load(cluster)
        load.add(TASKS, 0.2)
        load.drive_to_ends(10)
        place.broker.freeze()
        load.add(TASKS, 0.2)
        load.drive_for(FREEZE)
        place.broker.thaw()
        load.to_the_end()
    log_counts(load, "broker frozen")
    load.check()
    assert load.slowest < DEADLINE


def test_tasks_run_once_when_connections_of_workers_are_cut(redis, tmp_path):
    with Proxy(redis.port) as proxy:
        place = Place(redis, redis.url, f"cut-{os.getpid()}", tmp_path)
        url = redis.url.replace(str(redis.port), str(proxy.port))
        with place.cluster() as cluster, workers(tmp_path, 2, *place.options, "--broker", url):
            load = place.load(cluster)
            load.add(TASKS, 0.5)
            for ends in (4, 12, 20):
                load.drive_to_ends(ends)
                proxy.heal()
            load.to_the_end()
            place.wait_for_acknowledgements(load)
    load.check()
    assert load.doubled == set()


@RABBIT_IN_LONG_RUNS
def test_no_task_is_lost_when_packets_are_swallowed(place):
    with Proxy(place.broker.port) as proxy:
        url = place.broker.url.replace(str(place.broker.port), str(proxy.port))
        with place.cluster(url) as cluster, workers(place.folder, 2, *place.options):
            load = place.load(cluster)
            load.add(TASKS, 0.2)
            load.drive_to_ends(10)
            proxy.swallow()
            load.add(TASKS, 0.2)
            load.drive_for(FREEZE)
            proxy.heal()
            load.to_the_end()
    log_counts(load, "black hole")
    load.check()
    assert load.slowest < DEADLINE


def test_no_task_is_lost_when_the_reply_to_a_write_is_cut(place):
    with Proxy(place.broker.port) as proxy:
        url = place.broker.url.replace(str(place.broker.port), str(proxy.port))
        with place.cluster(url) as cluster, workers(place.folder, 2, *place.options):
            load = place.load(cluster)
            for replies in range(12 if LONG else 4):
                proxy.cut_after_replies(replies)
                load.add(8, 0.1)
                load.drive_for(1)
                proxy.heal()
                load.to_the_end()
    log_counts(load, "cut before the reply")
    load.check()
    assert load.doubled <= load.unconfirmed


@pytest.mark.slow
def test_tasks_run_once_while_the_result_backend_is_unavailable(rabbit, tmp_path):
    with closing(PostgresServer()) as backend:
        place = Place(rabbit, backend.url, f"backend-away-{os.getpid()}", tmp_path)
        with place.cluster() as cluster, workers(tmp_path, 2, *place.options):
            load = place.load(cluster)
            load.add(TASKS, 0.2)
            load.drive_to_ends(10)
            backend.kill()
            load.drive_for(BACKEND_OUTAGE)
            backend.start()
            load.to_the_end()
    log_counts(load, "result backend killed")
    load.check()
    assert load.doubled == set()
    assert load.slowest < DEADLINE


def test_tasks_of_an_emptied_redis_are_re_sent(tmp_path):
    with closing(RedisServer()) as broker, closing(RedisServer()) as backend:
        place = Place(broker, backend.url, "empty", tmp_path)
        with place.cluster() as cluster, workers(tmp_path, 2, *place.options):
            load = place.load(cluster)
            load.add(TASKS, 0.5)
            load.drive(lambda: load.executor.tasks_in_flight == IN_FLIGHT, "messages that wait")
            broker.empty()
            load.to_the_end()
    log_counts(load, "Redis emptied")
    load.check()
    assert load.resent
    assert load.doubled == set()
    assert load.slowest < DEADLINE


def delete_messages(place: Place) -> int:
    """Delete the messages of a queue. Return how many there were."""
    if isinstance(place.broker, RabbitServer):
        with Connection(f"127.0.0.1:{place.broker.port}", virtual_host=place.broker.vhost) as connection:
            return int(connection.channel().queue_purge(place.queue))
    with Redis(port=place.broker.port) as client:
        deleted = 0
        for key in client.keys(f"{place.queue}*"):
            with client.pipeline() as pipeline:
                deleted += pipeline.llen(key).delete(key).execute()[0]
        return deleted


@RABBIT_IN_LONG_RUNS
def test_tasks_of_deleted_messages_are_re_sent(place):
    with place.cluster() as cluster, workers(place.folder, 2, *place.options):
        load = place.load(cluster)
        load.add(TASKS, 0.5)
        load.drive(lambda: load.executor.stats().tasks_running, "a task that runs")
        load.drive(lambda: delete_messages(place), "messages that wait")
        load.to_the_end()
    log_counts(load, "messages deleted")
    load.check()
    assert load.resent
    assert load.doubled == set()


def test_tasks_run_once_when_rabbitmq_is_out_of_memory(rabbit, postgres, tmp_path):
    place = Place(rabbit, postgres.url, f"no-memory-{os.getpid()}", tmp_path)
    with place.cluster() as cluster, workers(tmp_path, 2, *place.options):
        load = place.load(cluster)
        load.add(TASKS, 0.2)
        load.drive_to_ends(10)
        rabbit.control("set_vm_memory_high_watermark", "0.000001")
        try:
            load.add(TASKS, 0.2)
            load.drive_for(FREEZE)
        finally:
            rabbit.control("set_vm_memory_high_watermark", "0.6")
        load.to_the_end()
    log_counts(load, "RabbitMQ without memory")
    load.check()
    assert load.doubled == set()
    assert load.slowest < DEADLINE
