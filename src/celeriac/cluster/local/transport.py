"""A broker inside this process: Kombu's in-memory idea, with priorities, and nothing to poll.

Publishing and consuming happen in one thread, so there is nothing to lock and nobody to wake.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable
from itertools import count
from queue import Empty
from typing import Any

from kombu.transport import virtual


class MemoryBroker:
    """The queues, each a heap: the most urgent message first, equals in order of arrival."""

    def __init__(self) -> None:
        self._queues: dict[str, list[tuple[int, int, Any]]] = defaultdict(list)
        self._arrivals = count()

    def put(self, queue: str, message: dict[str, Any]) -> None:
        priority = message["properties"].get("priority") or 0
        heapq.heappush(self._queues[queue], (-priority, next(self._arrivals), message))

    def take(self, queue: str) -> Any:
        """Raises `queue.Empty`."""
        if not self._queues[queue]:
            raise Empty
        return heapq.heappop(self._queues[queue])[2]

    def most_urgent_first(self, queues: Iterable[str]) -> list[str]:
        """Those of the queues that hold something, the one with the most urgent message first."""
        return sorted((q for q in queues if self._queues[q]), key=lambda q: self._queues[q][0][:2])

    def size(self, queue: str) -> int:
        return len(self._queues[queue])

    def clear(self, queue: str) -> int:
        return len(self._queues.pop(queue, []))


class Channel(virtual.Channel):  # type: ignore[misc]
    do_restore = False
    body_encoding = None  # messages stay in this process: no need for base64

    @property
    def broker(self) -> MemoryBroker:
        broker: MemoryBroker = self.connection.broker
        return broker

    def next_message(self) -> tuple[Any, str]:
        """The most urgent message of the queues consumed here. Raises `queue.Empty`."""
        if self.qos.can_consume():
            for queue in self.broker.most_urgent_first(self._active_queues):
                return self.broker.take(queue), queue
        raise Empty

    def _next_delivery_tag(self) -> str:
        return str(next(self._delivery_tags))  # unique in this process, where Kombu's own is in the world

    def _put(self, queue: str, message: dict[str, Any], **_: Any) -> None:
        self.broker.put(queue, message)

    def _get(self, queue: str, timeout: float | None = None) -> Any:
        return self.broker.take(queue)

    def _size(self, queue: str) -> int:
        return self.broker.size(queue)

    def _purge(self, queue: str) -> int:
        return self.broker.clear(queue)


class Transport(virtual.Transport):  # type: ignore[misc]
    """Needs the transport option `broker`: the `MemoryBroker` to talk to."""

    Channel = Channel
    driver_type = driver_name = "memory"

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        self.broker: MemoryBroker = client.transport_options["broker"]

    def driver_version(self) -> str:
        return "N/A"

    def drain_events(self, connection: Any, timeout: float | None = None) -> None:
        """Deliver one message. Raises `TimeoutError` at once if there is none: none can come while we wait."""
        for channel in self.channels:
            try:
                message, queue = channel.next_message()
            except Empty:
                continue
            self._deliver(message, queue)
            return
        raise TimeoutError
