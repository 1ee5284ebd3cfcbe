"""The gate before real consumers: malformed messages beside good ones, on Redis and on RabbitMQ."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import amqp
import pytest
from redis import Redis

from celeriac.config.signing import SigningKeys
from celeriac.task.task import Task
from tests.support.cli_runner import Celeriac, run, started, until
from tests.support.malformed import (
    MALFORMED,
    MAX_SIZE,
    Message,
    message_of,
    on_rabbit_only,
    on_redis_only,
)
from tests.support.servers import RabbitServer, Server

pytestmark = pytest.mark.celery

KEY = "correct horse battery"
GOOD = 30


def good_tasks(folder: Path, number: int = GOOD) -> list[Task]:
    return [Task(key=f"good-{n}", command=f"echo $CELERIAC_KEY >> {folder}/log") for n in range(number)]


def runs(folder: Path) -> list[str]:
    log = folder / "log"
    return sorted(log.read_text().split()) if log.exists() else []


# — raw brokers —


class RawRedis:
    """Puts texts of any kind into a queue."""

    def __init__(self, server: Server) -> None:
        self._client = Redis(port=server.port)

    def carriable(self, messages: Sequence[Message]) -> list[Any]:
        return [message.on_redis() for message in messages]

    def strange(self, good: Callable[[], Message]) -> list[Any]:
        return [dict(on_redis_only(good()))[name] for name, _ in on_redis_only(good())]

    def put(self, items: Sequence[Any]) -> None:
        for item in items:
            self._client.lpush("default", item)

    def is_empty(self) -> bool:
        return not any(
            (self._client.llen("default"), self._client.hlen("unacked"), self._client.zcard("unacked_index"))
        )

    def close(self) -> None:
        self._client.close()


class RawRabbit:
    def __init__(self, server: Server) -> None:
        assert isinstance(server, RabbitServer)
        self._server = server
        self._connection = amqp.Connection(f"127.0.0.1:{server.port}", virtual_host=server.vhost)
        self._connection.connect()
        self._channel = self._connection.channel()

    def carriable(self, messages: Sequence[Message]) -> list[Any]:
        carried = []
        for message in messages:
            with contextlib.suppress(Exception):  # AMQP has no such message
                carried.append(message.on_rabbit())
        return carried

    def strange(self, good: Callable[[], Message]) -> list[Any]:
        return [message for _, message in on_rabbit_only(good())]

    def put(self, items: Sequence[Any]) -> None:
        for item in items:
            self._channel.basic_publish(item, routing_key="default")

    def is_empty(self) -> bool:
        listed = self._server.control("list_queues", "--vhost", self._server.vhost, "-q", "name", "messages")
        return "default\t0" in listed

    def close(self) -> None:
        self._connection.close()


# — workers —


@contextlib.contextmanager
def worker(folder: Path, broker: str, backend: str, *options: str, key: str | None = None) -> Iterator[Celeriac]:
    urls = ("--broker", broker, "--backend", backend, "-c", "4", "--log-format", "json")
    env = {"CELERIAC_MAX_MESSAGE_SIZE": str(MAX_SIZE), **({} if key is None else {"CELERIAC_SIGNING_KEY": key})}
    with (
        (folder / "worker.log").open("wb") as log,
        started("worker", *urls, *options, cwd=folder, env=env, log=log) as it,
    ):
        until(lambda: '"ready"' in worker_log(folder), "the start of the worker", 60)
        yield it


def worker_log(folder: Path) -> str:
    return (folder / "worker.log").read_text()


def workers(broker: str, backend: str, folder: Path) -> list[dict[str, Any]]:
    found = run("status", "--broker", broker, "--backend", backend, "--json", cwd=folder)
    assert found.status == 0, found.err
    listed: list[dict[str, Any]] = json.loads(found.out)["workers"]
    return listed


def refused_messages(broker: str, backend: str, folder: Path) -> list[dict[str, Any]]:
    found = run("status", "--refused", "--broker", broker, "--backend", backend, "--json", cwd=folder)
    assert found.status == 0, found.err
    listed: list[dict[str, Any]] = json.loads(found.out)["refused"]
    return listed


def stop(celeriac: Celeriac, folder: Path) -> None:
    celeriac.signal(signal.SIGTERM)
    assert celeriac.process.wait(60) == 0
    assert "Traceback" not in worker_log(folder)


@pytest.fixture(params=["redis", "redis key", "rabbit key"])
def site(request: pytest.FixtureRequest) -> Iterator[tuple[Any, str, str, str | None]]:
    """A broker, its URL, the URL of a backend, and the workers' key."""
    kind, *keys = request.param.split()
    key = KEY if keys else None
    if kind == "redis":
        server: Server = request.getfixturevalue("shared_redis")
        with Redis(port=server.port) as client:
            client.flushall()
        raw: RawRedis | RawRabbit = RawRedis(server)
        backend = server.url
    else:
        server = request.getfixturevalue("rabbit")
        raw, backend = RawRabbit(server), request.getfixturevalue("postgres").url
    yield raw, server.url, backend, key
    raw.close()


def test_malformed_messages_beside_good_ones_cost_nothing_but_a_line(site, tmp_path):
    raw, broker, backend, key = site
    keys = SigningKeys.of(key)
    with worker(tmp_path, broker, backend, key=key) as celeriac:
        bad = raw.carriable([change(message_of(Task(key=name, command="true"))) for name, change in MALFORMED.items()])
        bad += raw.strange(lambda: message_of(Task(key="k", command="true")))
        good = raw.carriable([message_of(task, keys) for task in good_tasks(tmp_path)])
        assert len(bad) > 113
        for n in range(GOOD):
            raw.put([*bad[n::GOOD], good[n]])
        until(lambda: len(runs(tmp_path)) == GOOD, "the end of the good tasks", 60)
        until(lambda: workers(broker, backend, tmp_path)[0]["refused"] == len(bad), "all refusals", 60)
        until(raw.is_empty, "the acknowledgements")
        (one,) = workers(broker, backend, tmp_path)
        newest = refused_messages(broker, backend, tmp_path)
        assert celeriac.process.poll() is None
        stop(celeriac, tmp_path)
    assert one["running"] == 0
    assert runs(tmp_path) == sorted(str(task.key) for task in good_tasks(tmp_path))
    assert len(newest) == 100
    lines = [json.loads(line) for line in worker_log(tmp_path).splitlines() if line.startswith("{")]
    assert len([line for line in lines if line["event"] == "refused"]) == len(bad)
