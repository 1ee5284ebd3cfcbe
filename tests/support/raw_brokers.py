"""Brokers without a client of Celery: a test puts messages of any form into a worker's queue."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import amqp
from redis import Redis

from tests.support.malformed import Message, on_rabbit_only, on_redis_only
from tests.support.servers import RabbitServer, Server


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
