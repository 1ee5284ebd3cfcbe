"""The brokers of the publishing benchmark: how to empty each between two turns, and the ratios to reach."""

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
    """The ratios to reach."""

    incumbent: float
    raw: float
    cpu: float | None = None
    executor: float | None = None
    """Seconds for one task with `queue_task` and `trigger_tasks`."""


class RedisBroker:
    name = "Redis"
    bars = Bars(incumbent=25.0, raw=0.4, cpu=25.0, executor=30e-6)

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = Redis.from_url(url)

    def clear(self) -> None:
        self._client.flushall()

    def message_size(self) -> int:
        """Return the bytes of one of our messages, as the client library gets it."""
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
        time.sleep(0.5)  # unconfirmed messages may still be on their way
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
