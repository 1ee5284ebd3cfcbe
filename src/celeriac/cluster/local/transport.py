"""A broker in this process: like Kombu's in-memory transport, but with priorities and without polling.

One thread publishes and consumes, so nothing needs a lock, and no consumer has to be woken.
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
    """The queues. Each is a heap: the most urgent message first, messages of equal priority in order of arrival."""

    def __init__(self) -> None:
        self._queues: dict[str, list[tuple[int, int, Any]]] = defaultdict(list)
        self._arrivals = count()

    def put(self, queue: str, message: dict[str, Any]) -> None:
        priority = message["properties"].get("priority") or 0
        heapq.heappush(self._queues[queue], (-priority, next(self._arrivals), message))

    def take(self, queue: str) -> Any:
        """Remove the first message of a queue, and return it. Raise `queue.Empty`."""
        if not self._queues[queue]:
            raise Empty
        return heapq.heappop(self._queues[queue])[2]

    def most_urgent_first(self, queues: Iterable[str]) -> list[str]:
        """Return the queues that are not empty. The queue with the most urgent message comes first."""
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
        """Return the most urgent message of the consumed queues, and its queue. Raise `queue.Empty`."""
        if self.qos.can_consume():
            for queue in self.broker.most_urgent_first(self._active_queues):
                return self.broker.take(queue), queue
        raise Empty

    def _next_delivery_tag(self) -> str:
        return str(next(self._delivery_tags))  # unique in this process is enough; Kombu's tags are unique everywhere

    def _put(self, queue: str, message: dict[str, Any], **_: Any) -> None:
        self.broker.put(queue, message)

    def _get(self, queue: str, timeout: float | None = None) -> Any:
        return self.broker.take(queue)

    def _size(self, queue: str) -> int:
        return self.broker.size(queue)

    def _purge(self, queue: str) -> int:
        return self.broker.clear(queue)


class Transport(virtual.Transport):  # type: ignore[misc]
    """A Kombu transport. The transport option `broker` is its `MemoryBroker`."""

    Channel = Channel
    driver_type = driver_name = "memory"

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        self.broker: MemoryBroker = client.transport_options["broker"]

    def driver_version(self) -> str:
        return "N/A"

    def drain_events(self, connection: Any, timeout: float | None = None) -> None:
        """Deliver one message. Raise `TimeoutError` at once if there is none: no message can arrive during a wait."""
        for channel in self.channels:
            try:
                message, queue = channel.next_message()
            except Empty:
                continue
            self._deliver(message, queue)
            return
        raise TimeoutError
