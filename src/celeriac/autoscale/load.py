"""The tasks that wait, the workers that are there, and how many tasks no free slot of a worker takes. No I/O."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from celeriac.cluster.status_parts import WorkerStatus
from celeriac.executor.requests import DemandReply


@dataclass(frozen=True, slots=True)
class Load:
    """The load of some queues at one moment."""

    waiting: Mapping[str, int]
    """By queue, the tasks that wait at the broker, and those in executors that could start."""

    workers: Sequence[WorkerStatus]
    """All workers of the broker that have a lease."""

    def serving(self, queues: Collection[str]) -> list[WorkerStatus]:
        """Return the workers that take tasks of some of these queues."""
        return [
            worker
            for worker in self.workers
            if not worker.draining and not worker.is_suspected and not set(queues).isdisjoint(worker.queues)
        ]

    def unserved(self) -> int:
        """Return how many waiting tasks find no free slot.

        Workers of few queues are filled first, so that the free slots of the others are left to more queues.
        """
        left = dict(self.waiting)
        workers = self.serving(left)
        for worker in sorted(workers, key=lambda worker: len(set(left).intersection(worker.queues))):
            free = max(0, (worker.concurrency or 0) - (worker.running or 0))
            for queue in worker.queues:
                taken = min(free, left.get(queue, 0))
                if taken:
                    left[queue] -= taken
                    free -= taken
        return sum(left.values())


def load_of(
    queues: Collection[str],
    at_broker: Mapping[str, int],
    in_executors: Collection[DemandReply],
    workers: Sequence[WorkerStatus],
) -> Load:
    """Return the load of queues. No executor counts for more tasks than it has open slots."""
    waiting = {queue: at_broker.get(queue, 0) for queue in queues}
    for reply in in_executors:
        open_slots = max(0, reply.open_slots)
        for queue in queues:
            number = min(open_slots, max(0, reply.waiting.get(queue, 0)))
            waiting[queue] += number
            open_slots -= number
    return Load(waiting, workers)
