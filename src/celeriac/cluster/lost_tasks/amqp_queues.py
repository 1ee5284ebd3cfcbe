"""Find task ids that RabbitMQ may have.

RabbitMQ reports how many messages wait in a queue and how many consumers the queue has, but not which messages. So a
queue that is not empty may contain any task. Workers can report the messages that were delivered to them. If a queue
has more consumers than known workers, an unknown consumer may have any task.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from celeriac.broker.queues import queue_counts
from celeriac.cluster.worker_monitor import WorkerMonitor


class AmqpQueues:
    """Counts messages and consumers."""

    lists_ids = False

    def __init__(self, workers: WorkerMonitor) -> None:
        self._workers = workers

    def find(self, channel: Any, ids_of_queue: Mapping[str, Collection[str]], *, with_delivered: bool) -> Iterator[str]:
        for queue, ids in ids_of_queue.items():
            messages, consumers = queue_counts(channel.connection, queue)
            if messages or consumers > self._workers.serving(queue):
                yield from ids
