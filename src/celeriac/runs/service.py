"""`celeriac serve`: an executor for the runs that others submit to a ledger, for as long as it is wanted.

    ledger ─► Shelf.take ─► load ─► CeleryExecutor ─► Shelf.write ─► ledger
           └► orders: tasks to call back ─┘

While another process serves the same ledger, each takes the runs that nobody owns; what a dead one owned the others
take over once its lease has ended. One that was taken for dead itself begins anew, as another owner.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from celeriac.config.lease import LEASE_DURATION
from celeriac.errors import LedgerLost, LedgerUnavailable
from celeriac.executor.executor import CeleryExecutor
from celeriac.executor.interfaces import Ledger, UnfinishedTask
from celeriac.executor.recovery import NOTHING_ENDED
from celeriac.ledger.owned_runs import ControlRequest, OwnedRun, OwnedRuns, RunKey
from celeriac.ledger.run_store import RunStore
from celeriac.task.state import State
from celeriac.task.task import TaskKey

logger = logging.getLogger(__name__)

LOOK = 0.5  # seconds between two looks at the ledger
PAUSE = 1.0  # seconds until a ledger that is away is tried again
TICK = 0.5  # seconds, the longest wait
AT_ONCE = 5_000  # tasks that are called back in one go
END_AT_ONCE = 2  # requests to stop


class Workers(AbstractContextManager["Workers"], Protocol):
    def executor(self, *, ledger: Ledger | None = None) -> CeleryExecutor: ...
    def wake(self) -> None: ...


class Stopped(BaseException):
    """Raised in a signal handler, where there is nothing yet to be left in order."""


class Service:
    def __init__(
        self,
        ledger: RunStore,
        open_workers: Callable[[], Workers],
        *,
        output: Path | None,
        grace: float | None,
    ) -> None:
        """`grace`, in seconds, is how long what runs may go on after a request to stop; None if it outlives this
        process, and need not be waited for. `output` is where what commands write is kept on this machine."""
        self._ledger, self._open_workers, self._output, self._grace = ledger, open_workers, output, grace
        self._stops = 0
        self._is_away = False
        self._wake: Callable[[], None] | None = None

    def stop(self) -> None:
        """Take nothing more; the second time, wait for nothing. Safe in a signal handler."""
        self._stops += 1
        if self._wake is None:
            raise Stopped  # it waits for the ledger, or for what an earlier process ran
        self._wake()

    def go(self) -> None:
        """Return some time after `stop`. What is left then is in the ledger, for whoever serves it next. Raises
        `LedgerBroken`."""
        with suppress(Stopped):
            while not self._stops:
                self._try_to_own()
        self._wake = nothing_to_wake
        try:
            self._ledger.release_all()
        except LedgerUnavailable as away:
            tell("the ledger is away: others take over once the lease has ended", logging.WARNING, why=away)

    def _try_to_own(self) -> None:
        try:
            self._run_as_owner()
        except LedgerLost as lost:
            tell("taken for dead: this process lets go of all it had, and begins anew", logging.WARNING, why=lost)
            self._ledger.reset_owner()
        except LedgerUnavailable as away:
            if not self._is_away:
                self._is_away = True
                tell("the ledger is away: it is tried again", logging.WARNING, why=away)
            self._wake = None
            if not self._stops:
                time.sleep(PAUSE)  # nothing tells when it is back
        finally:
            self._wake = nothing_to_wake if self._stops else None

    def _run_as_owner(self) -> None:
        """As one owner."""
        shelf = self._ledger.owned_runs(self._output)
        self._is_away = False
        with self._open_workers() as workers:
            self._wake = workers.wake
            try:
                executor = workers.executor(ledger=shelf)
                reign = OwnerSession(shelf, executor)
                while not self._stops:
                    reign.tick()
                self._leave(reign, executor)
            finally:
                self._wake = nothing_to_wake

    def _leave(self, reign: OwnerSession, executor: CeleryExecutor) -> None:
        executor.pause()
        running = executor.tasks_in_flight
        if self._grace is not None:
            tell("stopping: nothing more is started", running=running, grace=self._grace)
            until = time.monotonic() + self._grace
            while executor.tasks_in_flight and time.monotonic() < until and self._stops < END_AT_ONCE:
                reign.follow()
        is_written = executor.flush()
        waiting, out = executor.tasks_waiting, executor.tasks_in_flight
        tell("stopped; the rest is left to whoever serves the ledger next", waiting=waiting, out=out)
        if not is_written:
            tell("the ledger is away: what ended last is not in it", logging.WARNING)


class OwnerSession:
    """What one owner does with its shelf and its executor, step by step."""

    def __init__(self, shelf: OwnedRuns, executor: CeleryExecutor) -> None:
        self._shelf, self._executor = shelf, executor
        self._loading: deque[OwnedRun] = deque()
        self._orders: dict[int, ControlRequest] = {}
        """Those being carried out, by their numbers."""

        self._recalled: deque[RunKey] = deque()
        self._next_look = self._next_load = self._next_try = self._dead_are_dead_at = float("-inf")

    def tick(self) -> None:
        now = time.monotonic()
        if now >= self._next_try:
            self._ask_the_ledger(now)
        self._call_back()
        self._executor.heartbeat()
        self._tell()
        self._executor.wait(0.0 if self._recalled else self._pause())

    def _pause(self) -> float:
        """Seconds until there is something to ask of the ledger."""
        next_one = min(self._next_look, self._next_load) if self._loading else self._next_look
        return max(0.0, min(TICK, max(next_one, self._next_try) - time.monotonic()))

    def _ask_the_ledger(self, now: float) -> None:
        try:
            if now >= self._next_look:
                self._next_look = now + LOOK
                self._look(now)
            if self._loading and now >= self._next_load:
                self._load(self._loading[0])
                # While there is something to run it gets as much time as the loading takes.
                took = time.monotonic() - now
                self._next_load = now + took + (took if self._executor.tasks_waiting else 0.0)
        except LedgerUnavailable as away:
            # Others could not renew their leases either: for a while nothing tells who of them is dead.
            self._next_try, self._dead_are_dead_at = now + PAUSE, now + LEASE_DURATION
            logger.debug("%s", away)

    def follow(self) -> None:
        """What is out, and nothing else."""
        self._executor.sync()
        self._tell()
        self._executor.wait(TICK)

    # — what the ledger has for it —

    def _look(self, now: float) -> None:
        news = self._shelf.pending_work()
        for order in news.requests:
            self._begin(order)
        if news.has_idle_runs:
            for run in self._shelf.take(from_dead=now >= self._dead_are_dead_at):
                tell("run taken", run=run.name, tasks=run.total, taken_from=run.previous_owner)
                self._loading.append(run)
        if self._orders and not self._recalled and not self._half_loaded() and self._executor.flush():
            self._shelf.acknowledge(self._orders.values())
            self._orders = {}

    def _load(self, run: OwnedRun) -> None:
        found = [] if run.is_loaded else self._shelf.load(run)
        new = [each for each in found if not self._executor.has_task(each.task.key)]
        run.blocked += [each for each in new if needs_others(each)]
        self._go_on_with(run, [each for each in new if not needs_others(each)])
        if not run.is_loaded:
            return
        if run.blocked:
            ended = self._shelf.dependency_states(run, [each.task for each in run.blocked])
            self._go_on_with(run, run.blocked, ended)
            run.blocked = []
        if not run.unfinished:
            self._shelf.end_run(run)
        self._loading.popleft()

    def _go_on_with(
        self, run: OwnedRun, found: list[UnfinishedTask], ended: Mapping[TaskKey, State] = NOTHING_ENDED
    ) -> None:
        if any(order.run == run.name and order.key is None for order in self._orders.values()):
            found = [replace(each, revoking=True) for each in found]
        self._executor.recovery.resume(found, ended=ended)

    def _begin(self, order: ControlRequest) -> None:
        run = self._shelf.get(order.run)
        if order.id in self._orders or run is None:
            return
        if order.key is not None and run in self._loading:
            return  # it may not be loaded yet, and the order comes again
        self._orders[order.id] = order
        if order.key is None:
            keys = [key for task in self._executor.tasks() if (key := own(task.key)).run == order.run]
        else:
            keys = [RunKey(order.run, order.key)]
        self._recalled += keys
        tell("called back", run=order.run, key=order.key)

    def _half_loaded(self) -> bool:
        """Whether a run that is called back has tasks that are still to be loaded."""
        runs = (self._shelf.get(order.run) for order in self._orders.values())
        return any(run in self._loading for run in runs)

    def _call_back(self) -> None:
        """Not so many at once that the heartbeat comes late."""
        if self._recalled:
            some = [self._recalled.popleft() for _ in range(min(AT_ONCE, len(self._recalled)))]
            self._executor.revoke_tasks(some)

    # — what it says —

    def _tell(self) -> None:
        for event in self._executor.get_event_buffer():
            if event.state is State.FAILED:
                logger.debug("%s failed: %s", event.key, event.detail)
        for run in self._shelf.take_ended():
            counts = {state.value: run.ended[state] for state in State if state.is_final}
            tell("run ended", run=run.name, **counts, earlier=run.total - run.loaded or None)


def nothing_to_wake() -> None:
    """It ends by itself."""


def needs_others(found: UnfinishedTask) -> bool:
    """Whether it is to be held until they have ended. A later attempt follows one that had what it needed."""
    return found.state is State.WAITING and bool(found.task.needs) and found.task.attempt == 1


def own(key: TaskKey) -> RunKey:
    assert isinstance(key, RunKey)  # noqa: S101 - nothing else is on a shelf
    return key


def tell(event: str, level: int = logging.INFO, **facts: Any) -> None:
    """`facts` that are None are left out."""
    logger.log(level, event, extra={"facts": {name: fact for name, fact in facts.items() if fact is not None}})
