"""Brokers and result backends that die, freeze, forget and fall silent, under a load that counts what has begun.

Nothing may be lost and nothing may fail. What can run twice is what the broker delivers again: tasks that ran while it
went away, and those of which nobody could say whether they had arrived.
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

    def nothing_left_to_deliver(self, load: Load) -> None:
        """On Redis; but a message that was lost on its way to a worker stays, and its task was sent again."""
        if isinstance(self.broker, RedisServer):
            sent_again = {event.id for event in load.events if event.key in load.resent}
            with Redis(port=self.broker.port) as client:
                until(lambda: set(find_ids(client.hvals("unacked"))) <= sent_again, "the last acknowledgement")


SELDOM_RABBIT = pytest.mark.parametrize("place", ["redis", slow("rabbit")], indirect=True)


@pytest.fixture(params=["redis", "rabbit"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    broker: Server = request.getfixturevalue("shared_redis" if request.param == "redis" else "rabbit")
    backend = broker if request.param == "redis" else request.getfixturevalue("postgres")
    queue = f"{request.node.originalname.removeprefix('test_')[:30]}-{os.getpid()}"
    return Place(broker, backend.url, queue, tmp_path)


def told(load: Load, what: str) -> None:
    """What cannot be promised is counted and shown: `pytest -rP --log-level=info`."""
    counts = f"{len(load.begun)} begun, {len(load.doubled)} of them twice, {len(load.unconfirmed)} unconfirmed"
    logging.getLogger(__name__).info("%s: %s, longest heartbeat %.2f s", what, counts, load.slowest)


@SELDOM_RABBIT
def test_broker_killed_and_started_again(place):
    with place.cluster() as cluster, workers(place.folder, 2, *place.options):
        load = place.load(cluster)
        load.add(TASKS, 0.2)
        load.drive_to_ends(10)
        place.broker.kill()
        load.add(TASKS, 0.2)
        load.drive_for(2)
        place.broker.start()
        load.to_the_end()
        place.nothing_left_to_deliver(load)
    told(load, "broker killed")
    load.check()
    if isinstance(place.broker, RedisServer):  # RabbitMQ delivers at once again what ran while it went
        assert load.doubled <= load.unconfirmed
    assert load.slowest < DEADLINE


@SELDOM_RABBIT
def test_broker_frozen(place):
    with place.cluster() as cluster, workers(place.folder, 2, *place.options):
        load = place.load(cluster)
        load.add(TASKS, 0.2)
        load.drive_to_ends(10)
        place.broker.freeze()
        load.add(TASKS, 0.2)
        load.drive_for(FREEZE)
        place.broker.thaw()
        load.to_the_end()
    told(load, "broker frozen")
    load.check()
    assert load.slowest < DEADLINE


def test_workers_connections_cut_while_tasks_run(redis, tmp_path):
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
            place.nothing_left_to_deliver(load)
    load.check()
    assert load.doubled == set()


@SELDOM_RABBIT
def test_broker_behind_a_black_hole(place):
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
    told(load, "black hole")
    load.check()
    assert load.slowest < DEADLINE


def test_connection_cut_after_the_write_and_before_the_reply(place):
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
    told(load, "cut before the reply")
    load.check()
    assert load.doubled <= load.unconfirmed


@pytest.mark.slow
def test_result_backend_away_while_tasks_finish(rabbit, tmp_path):
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
    told(load, "result backend killed")
    load.check()
    assert load.doubled == set()
    assert load.slowest < DEADLINE


def test_redis_that_comes_back_empty(tmp_path):
    with closing(RedisServer()) as broker, closing(RedisServer()) as backend:
        place = Place(broker, backend.url, "empty", tmp_path)
        with place.cluster() as cluster, workers(tmp_path, 2, *place.options):
            load = place.load(cluster)
            load.add(TASKS, 0.5)
            load.drive(lambda: load.executor.tasks_in_flight == IN_FLIGHT, "messages that wait")
            broker.empty()
            load.to_the_end()
    told(load, "Redis emptied")
    load.check()
    assert load.resent
    assert load.doubled == set()
    assert load.slowest < DEADLINE


def delete_messages(place: Place) -> int:
    """Answers how many waited."""
    if isinstance(place.broker, RabbitServer):
        with Connection(f"127.0.0.1:{place.broker.port}", virtual_host=place.broker.vhost) as connection:
            return int(connection.channel().queue_purge(place.queue))
    with Redis(port=place.broker.port) as client:
        deleted = 0
        for key in client.keys(f"{place.queue}*"):
            with client.pipeline() as pipeline:
                deleted += pipeline.llen(key).delete(key).execute()[0]
        return deleted


@SELDOM_RABBIT
def test_messages_that_somebody_deleted(place):
    with place.cluster() as cluster, workers(place.folder, 2, *place.options):
        load = place.load(cluster)
        load.add(TASKS, 0.5)
        load.drive(lambda: load.executor.stats().tasks_running, "a task that runs")
        load.drive(lambda: delete_messages(place), "messages that wait")
        load.to_the_end()
    told(load, "messages deleted")
    load.check()
    assert load.resent
    assert load.doubled == set()


def test_rabbitmq_without_memory(rabbit, postgres, tmp_path):
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
    told(load, "RabbitMQ without memory")
    load.check()
    assert load.doubled == set()
    assert load.slowest < DEADLINE
