"""Measure the raw limit: prepared bytes through the broker's client alone, and RabbitMQ's limit for messages like ours.

python -m bench.raw BROKER
"""

from __future__ import annotations

import sys
from typing import Any

from amqp import Connection, Message, spec
from amqp.method_framing import frame_writer
from amqp.serialization import dumps
from kombu.utils.url import parse_url
from redis import Redis

from bench.brokers import OURS, READY
from bench.player import cost_of, serve
from celeriac.broker.redis_keys import PRIORITIES

QUEUE = "raw"
TOGETHER = 32  # ready messages in one write


class RawRedis:
    """Redis: one LPUSH for each message, a batch in one pipeline."""

    def __init__(self, url: str) -> None:
        self._client = Redis.from_url(url)

    def publish(self, count: int, batch: int, size: int) -> dict[str, float]:
        message = b"x" * size

        def send() -> None:
            for _ in range(0, count, batch):
                with self._client.pipeline(transaction=False) as pipeline:
                    for _ in range(batch):
                        pipeline.lpush(QUEUE, message)
                    pipeline.execute()

        return cost_of(send)


class RawAmqp:
    """RabbitMQ: persistent messages on a durable queue, as Celery's are; it waits once for all confirms of a batch."""

    def __init__(self, url: str) -> None:
        where = parse_url(url)
        self._connection = Connection(
            f"{where['hostname']}:{where['port']}", userid=where["userid"], password=where["password"]
        )
        self._connection.connect()
        self._channel = self._connection.channel()
        self._channel.queue_declare(QUEUE, durable=True, auto_delete=False)
        self._channel.confirm_select()
        self._channel.events["basic_ack"].add(self._on_ack)
        self._confirmed = self._sent = 0
        self._frames: list[bytes] = []

    def publish(self, count: int, batch: int, size: int) -> dict[str, float]:
        message = Message(b"x" * size, delivery_mode=2)

        def send() -> None:
            for _ in range(0, count, batch):
                for _ in range(batch):
                    self._channel.basic_publish(message, exchange="", routing_key=QUEUE)
                self._sent += batch
                while self._confirmed < self._sent:
                    self._connection.drain_events(timeout=60)

        return cost_of(send)

    def publish_ready(self, count: int, batch: int) -> dict[str, float]:
        """Send copies of one of our messages, in prepared frames, to a queue like ours."""
        self._channel.queue_declare(READY, durable=True, auto_delete=False, arguments={"x-max-priority": PRIORITIES})
        frames = self._frames_like_ours()

        def send() -> None:
            for _ in range(0, count, batch):
                for first in range(0, batch, TOGETHER):
                    self._connection.transport.write(frames * min(TOGETHER, batch - first))
                self._sent += batch
                while self._confirmed < self._sent:
                    self._connection.drain_events(timeout=60)

        return cost_of(send)

    def _frames_like_ours(self) -> bytes:
        if not self._frames:
            message = self._channel.basic_get(OURS, no_ack=True)
            where = dumps("Bssbb", (0, "", READY, True, False))
            frame_writer(self._connection, self)(1, self._channel.channel_id, spec.Basic.Publish, where, message)
        return b"".join(self._frames)

    def write(self, frames: bytes) -> None:
        """Take the place of the socket for py-amqp's frame writer."""
        self._frames.append(bytes(frames))

    def _on_ack(self, delivery_tag: int, multiple: bool) -> None:
        self._confirmed = delivery_tag if multiple else self._confirmed + 1


if __name__ == "__main__":
    url = sys.argv[1]
    raw: Any = RawRedis(url) if url.startswith("redis") else RawAmqp(url)
    serve({name: getattr(raw, name) for name in ("publish", "publish_ready") if hasattr(raw, name)})
