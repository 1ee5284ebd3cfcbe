"""The broker of the simulation, held against Redis and RabbitMQ: what becomes of a message when its client dies."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol
from uuid import uuid4

import pytest
from kombu import Connection, Exchange, Queue
from kombu.exceptions import OperationalError

from celeriac.task.task import Task
from tests.simulation.servers import VISIBILITY_TIMEOUT, Broker, Message
from tests.simulation.world import Process, World
from tests.support.cli_runner import until

pytestmark = pytest.mark.celery


class Killed(BaseException):
    """A client that dies in the middle of a step."""


class Place(Protocol):
    """A queue with two clients, "one" and "two", which take one message at a time."""

    gives_back: bool
    """Whether the messages of a client come back when its connection ends, as on RabbitMQ."""

    def publish(self, name: str) -> None: ...

    def take(self, client: str) -> str | None:
        """Take the next message; None if there is none."""
        ...

    def die_while_taking(self, client: str) -> None:
        """Let a client die when it has the next message and before it records that."""
        ...

    def acknowledge(self, client: str, name: str) -> None: ...
    def put_back(self, client: str, name: str) -> None: ...

    def kill(self, client: str) -> None:
        """End the connection of a client without a goodbye."""
        ...

    def close(self, client: str) -> None:
        """End the connection of a client in order."""
        ...

    def wait_visibility_timeout(self) -> None:
        """Let the time pass after which Redis gives back, and the clients look for such messages."""
        ...

    def waiting(self) -> set[str]: ...
    def delivered(self) -> set[str]: ...


class Simulated:
    def __init__(self, kind: str) -> None:
        self.gives_back = kind == "amqp"
        self._world = World(1)
        self._broker = Broker(self._world, kind)
        self._clients = {name: Process(self._world, name) for name in ("one", "two")}
        self._taken: dict[tuple[str, str], Message] = {}

    def publish(self, name: str) -> None:
        self._broker.publish(Task(key=name, command="true", id=name))

    def take(self, client: str) -> str | None:
        message = self._broker.take(self._clients[client])
        if message is None:
            return None
        if not self.gives_back:
            self._broker.record(message)
        name = message.task.message_id
        self._taken[client, name] = message
        return name

    def die_while_taking(self, client: str) -> None:
        assert self._broker.take(self._clients[client]) is not None
        self.kill(client)

    def acknowledge(self, client: str, name: str) -> None:
        self._broker.acknowledge(self._taken.pop((client, name)))

    def put_back(self, client: str, name: str) -> None:
        self._broker.put_back(self._taken.pop((client, name)))

    def kill(self, client: str) -> None:
        self._clients[client].kill()
        self._broker.connection_ended(self._clients[client])

    def close(self, client: str) -> None:
        for name in [name for owner, name in self._taken if owner == client]:
            self.put_back(client, name)
        self._broker.connection_ended(self._clients[client])

    def wait_visibility_timeout(self) -> None:
        self._world.now += VISIBILITY_TIMEOUT + 1.0
        self._broker._restore_invisible()

    def waiting(self) -> set[str]:
        return self._broker.ids_waiting()

    def delivered(self) -> set[str]:
        return self._broker.ids_delivered()


class Real:
    """Kombu's clients of a server. `REDIS_TIMEOUT` is the shortest visibility timeout that Kombu knows."""

    REDIS_TIMEOUT = 1

    def __init__(self, kind: str, url: str) -> None:
        self.gives_back = kind == "amqp"
        self._name = f"simulated-{uuid4().hex}"
        self._url = url
        self._clients: dict[str, tuple[Connection, Any, Queue]] = {}
        self._taken: dict[tuple[str, str], Any] = {}

    def _client(self, client: str) -> tuple[Connection, Any, Queue]:
        if client not in self._clients:
            options = {} if self.gives_back else {"visibility_timeout": self.REDIS_TIMEOUT}
            connection = Connection(self._url, transport_options=options)
            channel = connection.channel()
            queue = Queue(self._name, Exchange(self._name), routing_key=self._name, auto_delete=False)(channel)
            queue.declare()
            self._clients[client] = (connection, channel, queue)
        return self._clients[client]

    def declare(self) -> None:
        self._client("publisher")

    def publish(self, name: str) -> None:
        connection, channel, _ = self._client("publisher")
        with connection.Producer(channel) as producer:
            producer.publish({"name": name}, exchange=self._name, routing_key=self._name, serializer="json")

    def take(self, client: str) -> str | None:
        _, _, queue = self._client(client)
        message = queue.get()
        if message is None:
            return None
        name = str(message.decode()["name"])
        self._taken[client, name] = message
        return name

    def die_while_taking(self, client: str) -> None:
        _, channel, queue = self._client(client)
        if self.gives_back:
            assert queue.get() is not None
        else:
            with pytest.MonkeyPatch.context() as patch, suppress(Killed):
                patch.setattr(channel.qos, "append", die)
                queue.get()
        self.kill(client)

    def acknowledge(self, client: str, name: str) -> None:
        self._taken.pop((client, name)).ack()

    def put_back(self, client: str, name: str) -> None:
        self._taken.pop((client, name)).requeue()

    def kill(self, client: str) -> None:
        connection, channel, _ = self._clients.pop(client)
        if self.gives_back:
            sock: socket.socket = connection.connection.transport.sock
            sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        else:
            channel.qos._on_collect.cancel()
            channel.qos._delivered.clear()
            with suppress(OperationalError):
                connection.close()

    def close(self, client: str) -> None:
        connection, _, _ = self._clients.pop(client)
        connection.close()

    def wait_visibility_timeout(self) -> None:
        if self.gives_back:
            return
        _, channel, _ = self._client("another")

        def look() -> bool:
            channel.qos.restore_visible(interval=1)
            return not self.delivered()

        until(look, "that messages are visible again")

    def waiting(self) -> set[str]:
        if not self.gives_back:
            return {json.loads(body_of(each))["name"] for each in self._redis().lrange(self._name, 0, -1)}
        names: set[str] = set()
        _, _, queue = self._client("lister")
        while (message := queue.get()) is not None:
            names.add(message.decode()["name"])
        self.close("lister")
        return names

    def delivered(self) -> set[str]:
        stored = self._redis().hvals("unacked")
        return {json.loads(body_of(json.dumps(json.loads(each)[0])))["name"] for each in stored}

    def _redis(self) -> Any:
        _, channel, _ = self._client("another")
        return channel.client

    def end(self) -> None:
        for client in list(self._clients):
            self.close(client)


def die(*_: Any) -> None:
    raise Killed


def body_of(stored: bytes | str) -> str:
    return base64.b64decode(json.loads(stored)["body"]).decode()


@pytest.fixture(params=["simulated redis", "redis", "simulated amqp", "amqp"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with place_of(request) as opened:
        yield opened


@pytest.fixture(params=["simulated redis", "redis"])
def redis_place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with place_of(request) as opened:
        yield opened


@contextmanager
def place_of(request: pytest.FixtureRequest) -> Iterator[Place]:
    kind = request.param.rpartition(" ")[2]
    if request.param.startswith("simulated"):
        yield Simulated(kind)
        return
    url = request.getfixturevalue("redis" if kind == "redis" else "rabbit").url
    real = Real(kind, url)
    real.declare()
    yield real
    real.end()


def comes(place: Place, client: str) -> str:
    """Take a message that comes in a moment."""
    taken: list[str] = []

    def take() -> bool:
        if (name := place.take(client)) is not None:
            taken.append(name)
        return bool(taken)

    until(take, "a message")
    return taken[0]


def comes_never(place: Place, client: str) -> bool:
    place.wait_visibility_timeout()
    return place.take(client) is None


def test_messages_are_taken_once_in_their_order(place):
    for name in ("a", "b"):
        place.publish(name)
    assert (place.take("one"), place.take("two"), place.take("one")) == ("a", "b", None)


def test_a_message_that_is_acknowledged_never_comes_again(place):
    place.publish("a")
    assert place.take("one") == "a"
    place.acknowledge("one", "a")
    place.kill("one")
    assert comes_never(place, "two")


def test_a_message_that_is_put_back_comes_again(place):
    place.publish("a")
    assert place.take("one") == "a"
    place.put_back("one", "a")
    assert comes(place, "two") == "a"


def test_a_message_of_a_client_that_closed_in_order_comes_again(place):
    place.publish("a")
    assert place.take("one") == "a"
    place.close("one")
    assert comes(place, "two") == "a"


def test_a_message_of_a_killed_client_comes_again_at_once_or_after_the_visibility_timeout(place):
    place.publish("a")
    assert place.take("one") == "a"
    place.kill("one")
    if not place.gives_back:
        assert (place.take("two"), place.waiting(), place.delivered()) == (None, set(), {"a"})
        place.wait_visibility_timeout()
    assert comes(place, "two") == "a"


def test_a_message_that_a_client_took_and_did_not_record_is_lost_on_redis(place):
    place.publish("a")
    place.die_while_taking("one")
    if place.gives_back:
        assert comes(place, "two") == "a"
    else:
        assert (place.waiting(), place.delivered()) == (set(), set())
        assert comes_never(place, "two")


def test_on_redis_a_late_acknowledgement_counts_for_the_second_delivery(redis_place):
    redis_place.publish("a")
    assert redis_place.take("one") == "a"
    redis_place.wait_visibility_timeout()
    assert comes(redis_place, "two") == "a"
    redis_place.acknowledge("one", "a")
    assert redis_place.delivered() == set()
    redis_place.kill("two")
    assert comes_never(redis_place, "one")


def test_on_redis_a_message_that_was_put_back_twice_comes_once(redis_place):
    redis_place.publish("a")
    assert redis_place.take("one") == "a"
    redis_place.wait_visibility_timeout()
    assert redis_place.waiting() == {"a"}
    redis_place.put_back("one", "a")
    assert comes(redis_place, "two") == "a"
    assert redis_place.take("two") is None
