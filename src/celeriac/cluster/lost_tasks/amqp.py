"""What RabbitMQ may have.

It tells how many messages wait in a queue and how many consumers the queue has, not which messages. So while any waits
there, each may be one of them. Of what was delivered and not acknowledged the consumers know; when a queue has more
consumers than workers that can be asked, one of those may have it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from amqp.exceptions import NotFound

from celeriac.cluster.worker_registry import WorkerRegistry


class AmqpQueues:
    knows_which = False

    def __init__(self, workers: WorkerRegistry) -> None:
        self._workers = workers

    def may_hold(self, channel: Any, queues: Mapping[str, Collection[str]], *, delivered: bool) -> Iterator[str]:
        for queue, ids in queues.items():
            messages, consumers = counts(channel.connection, queue)
            if messages or consumers > self._workers.serving(queue):
                yield from ids


def counts(connection: Any, queue: str) -> tuple[int, int]:
    """Messages that are ready, and consumers."""
    with connection.channel() as asking:  # a queue that is not there costs the channel
        try:
            _, messages, consumers = asking.queue_declare(queue, passive=True)
        except NotFound:
            return 0, 0
    return messages, consumers
