"""Look at tasks, workers and allocations, and submit or cancel allocations, again and again.

    look ─► Numbers ─► Scaler.decide ─► submit, cancel ─► events

It remembers nothing that it could not find again: after a restart it knows its allocations by their name.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from celeriac.autoscale.allocation import Allocation, Scheduler, SchedulerError
from celeriac.autoscale.decision import Decision, Observation, Scaler, SubmitBackoff
from celeriac.autoscale.demand import LoadUnknown
from celeriac.autoscale.events import AutoscaleEvent, EventKind, Numbers, Report
from celeriac.autoscale.load import Load
from celeriac.errors import BrokerUnavailable

START_TIMEOUT = 300.0  # seconds for which a running allocation without its worker counts as one that is coming
MAX_NAMED = 5  # ids in one line


@dataclass(slots=True)
class Known:
    """The facts that are known of an allocation."""

    running_since: float | None = None
    has_worker: bool = False
    """Whether its worker was seen."""

    is_watched: bool = True
    """Whether its worker could have been seen all the time."""


@dataclass(frozen=True, slots=True)
class Look:
    """The findings of one look, and the decision."""

    observation: Observation
    numbers: Numbers
    decision: Decision
    pending: tuple[str, ...]
    """The ids of the pending allocations, the newest last."""


class Autoscaler:
    """Keeps as many allocations as the tasks need. It belongs to one thread."""

    def __init__(
        self,
        scheduler: Scheduler,
        read_load: Callable[[], Load],
        *,
        scaler: Scaler,
        backoff: SubmitBackoff,
        worker_prefix: str,
        report: Report,
        should_stop: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """The name of a worker is `worker_prefix`, the id of its allocation, and its host. `read_load` raises
        `BrokerUnavailable` or `LoadUnknown`."""
        self._scheduler, self._read_load = scheduler, read_load
        self._scaler, self._backoff, self._worker_prefix = scaler, backoff, worker_prefix
        self._report, self._should_stop, self._clock = report, should_stop, clock
        self._known: dict[str, Known] = {}
        self._problems: dict[str, str] = {}
        """By what is unavailable, the line that was reported."""

        self._numbers: Numbers | None = None

    def step(self) -> bool:
        """Look, and act. Return whether everything could be read and done."""
        look = self.look()
        return look is not None and self._act(look) and not self._problems

    def look(self) -> Look | None:
        """Return what is to be done now; None if the scheduler does not say which allocations there are."""
        try:
            allocations = self._scheduler.allocations()
        except SchedulerError as error:
            self._unavailable("the scheduler", str(error))
            return None
        self._available("the scheduler")
        now, load = self._clock(), self._load()
        self._update(allocations, load, now)
        running = [each.id for each in allocations if each.is_running]
        pending = tuple(each.id for each in allocations if not each.is_running)
        observation = Observation(
            unserved=None if load is None else load.unserved(),
            pending=len(pending),
            running=len(running),
            starting=sum(self._is_starting(self._known[each], now) for each in running),
        )
        waiting = None if load is None else sum(load.waiting.values())
        numbers = Numbers(pending=len(pending), running=len(running), waiting=waiting, unserved=observation.unserved)
        if numbers != self._numbers:
            self._numbers = numbers
            self._tell(EventKind.STATE, words_of(numbers))
        return Look(observation, numbers, self._scaler.decide(observation, now), pending)

    def cancel_pending(self) -> list[str]:
        """Cancel all pending allocations. Return their ids. Raise `SchedulerError`."""
        pending = [each.id for each in self._scheduler.allocations() if not each.is_running]
        if pending:
            self._scheduler.cancel(pending)
        return pending

    # — look —

    def _load(self) -> Load | None:
        try:
            load = self._read_load()
        except (BrokerUnavailable, LoadUnknown) as error:
            self._unavailable("the broker", str(error))
            return None
        self._available("the broker")
        return load

    def _update(self, allocations: Collection[Allocation], load: Load | None, now: float) -> None:
        for allocation in allocations:
            known = self._known.setdefault(allocation.id, Known())
            if allocation.is_running and known.running_since is None:
                known.running_since = now
        if load is None:
            for known in self._known.values():
                known.is_watched = False
        else:
            self._note_workers(load)
        for number in self._known.keys() - {each.id for each in allocations}:
            self._ended(number, self._known.pop(number), now)

    def _note_workers(self, load: Load) -> None:
        names = {worker.name.partition("@")[0] for worker in load.workers}
        for number, known in self._known.items():
            if not known.has_worker and self._worker_prefix + number in names:
                known.has_worker = True
                self._backoff.succeeded()

    def _ended(self, number: str, known: Known, now: float) -> None:
        if known.has_worker or not known.is_watched:
            return
        delay = self._backoff.failed(now)
        words = f"allocation {number} ended before its worker was there; the next one in {delay:.0f} s"
        self._tell(EventKind.FAILED, words, [number])

    def _is_starting(self, known: Known, now: float) -> bool:
        since = now if known.running_since is None else known.running_since
        return not known.has_worker and now - since < START_TIMEOUT

    # — act —

    def _act(self, look: Look) -> bool:
        try:
            if look.decision.cancel:
                self._cancel(look.pending[-look.decision.cancel :])
        except SchedulerError as error:
            self._tell(EventKind.FAILED, str(error))
            return False
        return self._submit(look) if look.decision.submit else True

    def _cancel(self, ids: Collection[str]) -> None:
        self._scheduler.cancel(ids)
        for number in ids:
            self._known.pop(number, None)
        self._tell(EventKind.CANCELLED, f"cancelled {allocations_of(ids)}, not needed any more", ids)

    def _submit(self, look: Look) -> bool:
        submitted: list[str] = []
        problem = None
        for _ in range(look.decision.submit):
            if self._should_stop():
                break
            try:
                submitted.append(self._scheduler.submit())
                self._backoff.submitted()
            except SchedulerError as error:
                problem = f"{error}; the next attempt in {self._backoff.failed(self._clock(), submission=True):.0f} s"
                break
        if submitted:
            self._known.update((number, Known()) for number in submitted)
            why = "the minimum" if not look.numbers.unserved else f"{look.numbers.unserved:,} tasks wait for a slot"
            self._tell(EventKind.SUBMITTED, f"submitted {allocations_of(submitted)}: {why}", submitted)
        if problem is not None:
            self._tell(EventKind.FAILED, problem)
        return problem is None

    # — report —

    def _tell(self, kind: EventKind, words: str, allocations: Collection[str] = ()) -> None:
        self._report(
            AutoscaleEvent(
                at=time.time(), kind=kind, words=words, allocations=tuple(allocations), numbers=self._numbers
            )
        )

    def _unavailable(self, what: str, problem: str) -> None:
        if self._problems.get(what) != problem:
            self._problems[what] = problem
            self._tell(EventKind.UNAVAILABLE, problem)

    def _available(self, what: str) -> None:
        if self._problems.pop(what, None) is not None:
            self._tell(EventKind.AVAILABLE, f"{what} is available again")


def allocations_of(ids: Collection[str]) -> str:
    """Return the number of allocations and their first ids, for a line."""
    names = ", ".join([*ids][:MAX_NAMED]) + (", …" if len(ids) > MAX_NAMED else "")
    return f"{len(ids):,} allocation{'' if len(ids) == 1 else 's'} ({names})"


def words_of(numbers: Numbers) -> str:
    """Return the numbers as one line."""
    tasks = "unknown tasks" if numbers.waiting is None else f"{numbers.waiting:,} tasks wait"
    unserved = f", {numbers.unserved:,} of them for a slot" if numbers.unserved else ""
    return f"allocations: {numbers.running:,} running, {numbers.pending:,} pending; {tasks}{unserved}"
