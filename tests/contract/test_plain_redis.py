"""The reader of Redis behind `celeriac status`, which needs no Celery: the same keys, and the same status."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest
from redis import Redis

from celeriac.backend.claims import claims_for
from celeriac.backend.claims.claim import Lease
from celeriac.broker.app import app_for, make_app
from celeriac.broker.plain_redis import Address, address_of
from celeriac.broker.publishers import publisher_for
from celeriac.broker.redis_keys import BackendKeys, BrokerKeys, number_of_mailboxes, plain_lists, plain_queue_of
from celeriac.cluster.redis_status import RedisStatusReader
from celeriac.cluster.status import status_of
from celeriac.config.settings import read_settings
from celeriac.task.task import Task

pytestmark = pytest.mark.celery

QUEUES = ("default", "named")


def lease(name: str, *queues: str, **fields: Any) -> Lease:
    return Lease(holder=f"holder of {name}", name=name, host="h", pid=1, boot_id="b", queues=queues, slots=4, **fields)


@pytest.mark.parametrize("database", [0, 3])
def test_it_reads_what_is_read_with_celery(redis, database):
    with Redis.from_url(redis.url) as client:
        client.config_set("requirepass", "a:p@ss")
        url = f"redis://:a%3Ap%40ss@127.0.0.1:{redis.port}/{database}"
        app = app_for(read_settings({"broker": url}, environment={}).connection)
        claims = claims_for(app, timeout=5)
        assert claims is not None
        with closing(claims), closing(publisher_for(app)) as publisher:
            claims.renew(lease("w1", "gpu", "cpu", running=("a", "b"), refused=2))
            claims.renew(lease("w2", "cpu", draining=True))
            claims.renew(lease("gone", "old", "empty"))
            claims.end_lease("holder of gone")
            tasks = [Task(key=str(n), command="true", queue="old" if n < 3 else "cpu", priority=n) for n in range(9)]
            list(publisher.publish(tasks, timeout=5))
        try:
            with closing(RedisStatusReader(read_settings({"broker": url}, environment={}).connection)) as reader:
                read, again = reader.read(QUEUES), reader.read(QUEUES)
            expected = status_of(app, QUEUES, timeout=5)
        finally:
            client.config_set("requirepass", "")
    for status in (read, again):
        assert status is not None
        assert [(queue.name, queue.waiting, queue.slots) for queue in status.queues] == [
            (queue.name, queue.waiting, queue.slots) for queue in expected.queues
        ]
        assert [(w.name, w.queues, w.running, w.refused, w.draining) for w in status.workers] == [
            (w.name, w.queues, w.running, w.refused, w.draining) for w in expected.workers
        ]
    assert [queue.name for queue in expected.queues] == ["cpu", "default", "gpu", "named", "old"]  # not the empty one


def test_what_it_cannot_read_is_left_to_the_client_library(redis):
    port = redis.port
    unreadable = (
        {"broker": redis.url, "key_prefix": "team:"},
        {"broker": f"redis://127.0.0.1:{port}/99"},
        {"broker": f"redis://:wrong@127.0.0.1:{port}/0"},
        {"broker": f"rediss://127.0.0.1:{port}/0"},
        {"broker": redis.url, "backend": "cache+memory://"},
    )
    for options in unreadable:
        connection = read_settings(options, environment={}).connection
        assert RedisStatusReader(connection).read(QUEUES) is None, options
    readable = RedisStatusReader(read_settings({"broker": redis.url}, environment={}).connection)
    assert readable.read(QUEUES) is not None
    redis.kill()
    assert readable.read(QUEUES) is None
    redis.start()
    assert readable.read(QUEUES) is not None
    readable.close()


def test_the_names_of_keys_are_those_of_kombu_and_celery(redis):
    app = app_for(read_settings({"broker": redis.url}, environment={}).connection)
    with app.connection_for_write() as connection:
        lists = [*BrokerKeys(connection.default_channel).waiting("a queue")]
    assert plain_lists("a queue") == lists
    assert {plain_queue_of(name.encode()) for name in lists} == {"a queue"}
    assert vars(BackendKeys()) == vars(BackendKeys(app.backend))


def test_only_a_url_with_one_address_and_nothing_else_names_a_server():
    assert address_of("redis://h") == Address("h", 6379, 0, None, None, has_tls=False)
    assert address_of("rediss://me:p%2F@[::1]:7/2") == Address("::1", 7, 2, "me", "p/", has_tls=True)
    for other in ("sentinel://h/0", "redis://h/0?ssl_cert_reqs=none", "redis://a;redis://b", "redis+socket:///s"):
        assert address_of(other) is None


@pytest.mark.parametrize("prefix", ["", "team:"])
def test_redis_says_how_many_workers_listen_to_remote_control(redis, prefix):
    app = make_app(
        broker_url=redis.url, result_backend=redis.url, broker_transport_options={"global_keyprefix": prefix}
    )
    with app.connection_for_read() as connection:
        assert number_of_mailboxes(app, connection) == 0
        mailbox = app.control.mailbox(connection)
        nodes = [mailbox.Node(f"celery@{name}", channel=connection.channel()) for name in ("one", "two")]
        with nodes[0].Consumer(), nodes[1].Consumer():
            assert number_of_mailboxes(app, connection) == 2
    assert number_of_mailboxes(app, app.connection("memory://")) is None
