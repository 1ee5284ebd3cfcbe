"""Decide, from replies, which of the wanted tasks are lost. There is no I/O here, and no thread.

    ReadClaims ─► ReadQueues ─► QueryWorkers … ─► a miss? ─► Wait, and all again ─► Finish
    (leases,      (broker)      (workers without
     claims)                     a lease)

A message moves while a scan looks for it: from its queue to a worker, and back if the worker stops. So the scan
queries the broker first and the workers then, and a task is lost only if two rounds did not find it. A worker without a
lease may hold any task. If such a worker replied lately and does not reply now, the round decides nothing and is
repeated.

For a claimed task only the lease of its worker counts. Re-sending an unclaimed task does no harm where all workers
claim tasks: if the first message arrives later, one of the two messages is dropped.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from celeriac.log_lines import logger_for

logger = logger_for(__name__)

RETRY_DELAY = 2.5  # seconds between two rounds of one scan; longer than Kombu needs to move a message
MAX_ROUNDS = 30  # after this many rounds a scan is given up; the executor requests a new one later
BATCH_SIZE = 500  # ids in one request to the workers
MISSES_UNTIL_LOST = 2


@dataclass(frozen=True, slots=True)
class ScanRequest:
    """The tasks that the executor looks for."""

    queue_of: Mapping[str, str]
    """The queue of each wanted task, by id."""

    requested_at: float
    urgent: bool


@dataclass(frozen=True, slots=True)
class WorkerView:
    """The knowledge about workers at one moment."""

    names: frozenset[str]
    """Workers that have replied to a broadcast lately."""

    leased: frozenset[str]
    """Workers that have a lease, or had one a moment ago."""

    knows_leases: bool
    """Whether any worker has a lease, or had one lately."""

    suspected_ids: frozenset[str]
    """Tasks that suspected or dead workers had received and not started."""

    @property
    def without_lease(self) -> frozenset[str]:
        return self.names - self.leased

    @property
    def are_all_leased(self) -> bool:
        """Whether all workers have leases. If so, all workers claim the tasks that they start."""
        return self.knows_leases and not self.without_lease


@dataclass(frozen=True, slots=True)
class ReadClaims:
    """Find the tasks that no worker claims or holds; then call `claims_read`."""

    ids: Collection[str]
    is_first: bool
    """Whether `ids` are all wanted tasks. In later rounds they are the tasks that are still missing."""


@dataclass(frozen=True, slots=True)
class ReadQueues:
    """Find the tasks that the broker may have; then call `queues_read` or `broker_failed`."""

    ids_of_queue: Mapping[str, Collection[str]]
    with_delivered: bool
    """Whether messages that were delivered and not acknowledged count, too."""


@dataclass(frozen=True, slots=True)
class QueryWorkers:
    """Ask each worker which of these tasks it holds; then call `workers_replied` or `broker_failed`."""

    ids: Sequence[str]


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait, then call `resume`."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Finish:
    """The scan is over. These tasks are lost."""

    ids: Collection[str]


Step: TypeAlias = ReadClaims | ReadQueues | QueryWorkers | Wait | Finish


class Scan:
    """One scan. The docstring of each step names the method that takes its reply."""

    def __init__(self, request: ScanRequest, *, lists_ids: bool, can_query_workers: bool) -> None:
        """`lists_ids` says whether the broker lists its messages or only counts them. Without `can_query_workers` any
        worker without a lease may hold any task. Then a task is lost only if a dead or suspected worker had received
        it."""
        self._urgent, self._lists_ids, self._can_query_workers = request.urgent, lists_ids, can_query_workers
        self._queue_of = request.queue_of
        self._rounds = self._misses = 0
        self._unclaimed: frozenset[str] = frozenset()
        self._missing: frozenset[str] = frozenset()
        """Unclaimed tasks that the broker does not have."""

        self._view = WorkerView(frozenset(), frozenset(), False, frozenset())
        """The workers when this round's claims were read."""

        self._to_query: list[str] = []
        self._held: set[str] = set()
        """Tasks that workers hold, by their replies."""

        self.broker_seconds = 0.0
        """Seconds that the broker was busy with this scan."""

        self._step: Step = ReadClaims(tuple(self._queue_of), is_first=True)

    def next_step(self) -> Step:
        """Return the next step. It stays the same until its reply was taken."""
        return self._step

    def claims_read(self, unclaimed: Iterable[str] | None, view: WorkerView) -> None:
        """Take the tasks that no worker claims or holds; None if the claims cannot be read now."""
        self._view = view
        if unclaimed is None:
            self._end_round(None)
            return
        self._unclaimed = frozenset(unclaimed)
        if not self._unclaimed:
            self._end_round(set())
        elif not self._can_query_workers:
            self._end_round(self._received_by_suspects(view))
        else:
            ids_of_queue: dict[str, set[str]] = {}
            for task_id in self._unclaimed:
                ids_of_queue.setdefault(self._queue_of[task_id], set()).add(task_id)
            with_delivered = self._decides_at_once or not view.are_all_leased
            self._step = ReadQueues(ids_of_queue, with_delivered=with_delivered)

    def queues_read(self, found: Iterable[str], view: WorkerView, *, seconds: float) -> None:
        """Take the tasks that the broker may have. `seconds` is the time that the query took."""
        queued = set(found)
        self.broker_seconds += seconds
        self._missing = self._unclaimed - queued
        if self._view.are_all_leased:
            requeued = queued if self._lists_ids else set()
            self._end_round(self._missing | (self._received_by_suspects(view) - requeued))
        else:
            self._to_query, self._held = sorted(self._missing), set()
            self._query_next(view)

    def workers_replied(self, replies: Mapping[str, Iterable[str]], view: WorkerView) -> None:
        """Take the ids of the tasks that each replying worker holds."""
        if missing_workers := (self._view.without_lease & view.names) - replies.keys():
            logger.debug("no reply about their tasks from: %s", ", ".join(sorted(missing_workers)))
            self._end_round(None)
            return
        for ids in replies.values():
            self._held.update(ids)
        if not replies:
            self._to_query = []  # there are no workers to query
        self._query_next(view)

    def broker_failed(self) -> None:
        """Take note that the broker is unavailable: this round decides nothing."""
        self._end_round(None)

    def resume(self) -> None:
        """Begin the next round."""
        self._step = ReadClaims(tuple(self._queue_of), is_first=False)

    @property
    def _decides_at_once(self) -> bool:
        """Whether one miss is enough. Re-sending a task during its delivery does no harm where all workers claim."""
        return self._urgent and self._view.are_all_leased

    def _received_by_suspects(self, view: WorkerView) -> set[str]:
        """Return the unclaimed tasks that a suspected or dead worker had received. They are lost even if the broker
        counts their messages as delivered."""
        return set(view.suspected_ids & self._unclaimed)

    def _query_next(self, view: WorkerView) -> None:
        batch, self._to_query = self._to_query[:BATCH_SIZE], self._to_query[BATCH_SIZE:]
        if batch:
            self._step = QueryWorkers(batch)
        else:
            self._end_round((self._missing - self._held) | self._received_by_suspects(view))

    def _end_round(self, missing: Collection[str] | None) -> None:
        """End a round with the tasks that it did not find; None if the round decided nothing."""
        self._rounds += 1
        if missing is not None:
            self._misses += 1
            self._queue_of = {task_id: queue for task_id, queue in self._queue_of.items() if task_id in missing}
            if self._misses == MISSES_UNTIL_LOST or self._decides_at_once:
                self._step = Finish(tuple(self._queue_of))
                return
        is_over = not self._queue_of or self._rounds == MAX_ROUNDS
        self._step = Finish(()) if is_over else Wait(RETRY_DELAY)
