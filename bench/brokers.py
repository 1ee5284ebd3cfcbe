"""The brokers that are published to: emptied between two turns, and what must be reached on each."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

from amqp import Connection
from amqp.exceptions import NotFound
from redis import Redis

OURS = "celeriac"
"""Not the incumbent's queue: in RabbitMQ ours has priorities, and theirs has none."""

READY = "ready"
"""A queue like it, for ready frames."""

QUEUES = ("default", OURS, READY, "plain", "dramatiq", "raw")


@dataclass(frozen=True)
class Bars:
    """What the ratios must be."""

    incumbent: float
    raw: float
    cpu: float | None = None


class RedisBroker:
    name = "Redis"
    bars = Bars(incumbent=25.0, raw=0.4, cpu=25.0)

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = Redis.from_url(url)

    def clear(self) -> None:
        self._client.flushall()

    def message_size(self) -> int:
        """Bytes of a message of ours, as the client is given it."""
        lists = [key for key in self._client.scan_iter() if self._client.type(key) == b"list"]
        return len(self._client.lindex(lists[0], 0))


class RabbitBroker:
    name = "RabbitMQ"
    bars = Bars(incumbent=10.0, raw=0.7)

    def __init__(self, url: str, port: int) -> None:
        self.url = url
        self._connection = Connection(f"127.0.0.1:{port}")
        self._connection.connect()

    def clear(self) -> None:
        time.sleep(0.5)  # who was not confirmed may still be on the way
        for queue in QUEUES:
            channel = self._connection.channel()
            try:
                channel.queue_purge(queue)
                channel.close()
            except NotFound:
                pass

    def message_size(self) -> int:
        channel = self._connection.channel()
        message = channel.basic_get(OURS, no_ack=True)
        channel.close()
        return len(message.body) + len(json.dumps(message.headers))


Broker = RedisBroker | RabbitBroker
