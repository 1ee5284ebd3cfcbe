"""Decide what the owner of submitted runs does next: look at the ledger, load tasks, resume them, cancel them.

    time, replies of the ledger and the executor ─► OwnerSession ─► should_look, run_to_load, tasks to resume,
                                                                    keys to revoke, requests to acknowledge

A session does no I/O and reads no clock: `celeriac.runs.service` drives it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable
from random import Random

from msgspec.structs import replace

from celeriac.config.lease import LEASE_DURATION
from celeriac.executor.circuit_breaker import CircuitBreaker
from celeriac.executor.interfaces import UnfinishedTask
from celeriac.ledger.owned_run import OwnedRun, RunKey
from celeriac.ledger.owned_runs import ControlRequest
from celeriac.task.state import State
from celeriac.task.task import Task, TaskKey

LOOK_INTERVAL = 0.5  # seconds between two looks at the ledger
RETRY_DELAY = 1.0  # seconds until an unavailable ledger is tried again
MAX_PAUSE = 0.5  # seconds
MAX_REVOKES = 5_000  # tasks revoked between two heartbeats: with more, the next heartbeat would be late

NEVER = float("-inf")


class OwnerSession:
    """The state of one owner, from its registration in the ledger to its end. All times are seconds on one clock."""

    def __init__(self, random: Random) -> None:
        self._circuit = ledger_circuit(random)
        self._loading: deque[OwnedRun] = deque()
        self._blocked: list[UnfinishedTask] = []
        """Tasks that need other tasks, of the run that is being loaded."""

        self._requests: list[ControlRequest] = []
        """The accepted requests to cancel that were not acknowledged yet."""

        self._keys_to_revoke: deque[RunKey] = deque()
        self._next_look = self._next_load = self._next_takeover = NEVER

    # — when to use the ledger —

    def should_look(self, now: float) -> bool:
        """Return whether to ask the ledger for new runs and requests."""
        return self._circuit.allows(now) and now >= self._next_look

    def begin_look(self, now: float) -> None:
        """Record that the ledger is asked for new runs and requests."""
        self._next_look = now + LOOK_INTERVAL

    def may_take_over(self, now: float) -> bool:
        """Return whether runs may be taken from owners whose leases have expired.

        Return False for `LEASE_DURATION` after an outage of the ledger: the other owners could not renew their leases.
        """
        return now >= self._next_takeover

    def record_success(self, now: float) -> str | None:
        """Record that the ledger replied. Return the line to log, if the ledger was unavailable before."""
        return self._circuit.record_success(now)

    def record_failure(self, now: float, error: str) -> str | None:
        """Record that the ledger did not reply. Return the line to log, if it has just become unavailable."""
        self._next_takeover = now + LEASE_DURATION
        return self._circuit.record_failure(now, error)

    def pause(self, now: float) -> float:
        """Return the seconds until this session has something to do."""
        if self._keys_to_revoke:
            return 0.0
        next_use = min(self._next_look, self._next_load) if self._loading else self._next_look
        return max(0.0, min(MAX_PAUSE, max(next_use, self._circuit.retry_at) - now))

    # — the runs to load —

    def add_runs(self, runs: Iterable[OwnedRun]) -> None:
        """Queue runs for loading."""
        self._loading.extend(runs)

    def run_to_load(self, now: float) -> OwnedRun | None:
        """Return the run whose next batch of tasks should be loaded now; None if there is none."""
        may_load = self._loading and self._circuit.allows(now) and now >= self._next_load
        return self._loading[0] if may_load else None

    def record_load(self, began: float, ended: float, *, has_waiting_tasks: bool) -> None:
        """Record the loading of a batch. While tasks wait, the executor gets as much time as the loading took."""
        self._next_load = ended + (ended - began if has_waiting_tasks else 0.0)

    def add_batch(
        self, run: OwnedRun, batch: Iterable[UnfinishedTask], has_task: Callable[[TaskKey], bool]
    ) -> list[UnfinishedTask]:
        """Return the tasks of a batch that the executor should resume now.

        Leave out tasks that the executor has. Keep tasks that need other tasks until the whole run is loaded: then all
        their dependencies are known.
        """
        new = [unfinished for unfinished in batch if not has_task(unfinished.task.key)]
        self._blocked += [unfinished for unfinished in new if needs_others(unfinished)]
        return self._with_cancellation(run, [unfinished for unfinished in new if not needs_others(unfinished)])

    @property
    def blocked_tasks(self) -> Collection[Task]:
        """The tasks that `add_batch` kept."""
        return [unfinished.task for unfinished in self._blocked]

    def take_blocked(self, run: OwnedRun) -> list[UnfinishedTask]:
        """Return the tasks that `add_batch` kept, and drop them here: the executor should resume them now."""
        blocked, self._blocked = self._blocked, []
        return self._with_cancellation(run, blocked)

    def finish_load(self) -> None:
        """Record that all tasks of the first run are loaded."""
        self._loading.popleft()

    def _with_cancellation(self, run: OwnedRun, tasks: list[UnfinishedTask]) -> list[UnfinishedTask]:
        """Return the tasks, marked for revocation if their run is being cancelled."""
        if any(request.run == run.name and request.key is None for request in self._requests):
            return [replace(unfinished, revoking=True) for unfinished in tasks]
        return tasks

    # — requests to cancel —

    def accept(self, request: ControlRequest, run: OwnedRun | None) -> bool:
        """Return whether to carry out a request. `run` is its run, if this process owns it.

        Refuse a request that was accepted before. Also refuse a request for a task that may not be loaded yet: the
        ledger repeats it.
        """
        if request in self._requests or run is None:
            return False
        if request.key is not None and run in self._loading:
            return False
        self._requests.append(request)
        return True

    def revoke(self, keys: Iterable[RunKey]) -> None:
        """Queue tasks for revocation."""
        self._keys_to_revoke.extend(keys)

    def next_revokes(self) -> list[RunKey]:
        """Return the keys of the next tasks to revoke."""
        return [self._keys_to_revoke.popleft() for _ in range(min(MAX_REVOKES, len(self._keys_to_revoke)))]

    def finished_requests(self) -> Collection[ControlRequest]:
        """Return the requests to acknowledge: all requests, once no task is left to be revoked or loaded."""
        loading = {run.name for run in self._loading}
        if self._keys_to_revoke or any(request.run in loading for request in self._requests):
            return ()
        return list(self._requests)

    def remove_requests(self) -> None:
        """Remove the requests: they were acknowledged."""
        self._requests.clear()


def ledger_circuit(random: Random, effect: str = "") -> CircuitBreaker:
    """Return a circuit breaker for the ledger. Its delay does not grow, because a waiting run should start soon."""
    return CircuitBreaker("the ledger", first_delay=RETRY_DELAY, random=random, effect=effect)


def needs_others(unfinished: UnfinishedTask) -> bool:
    """Return whether the task must wait for others. A later attempt need not: they ended before the first."""
    task = unfinished.task
    return unfinished.state is State.WAITING and bool(task.needs) and task.attempt == 1
