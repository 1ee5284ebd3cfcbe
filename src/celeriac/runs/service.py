"""The service behind `celeriac serve`: an executor for the runs that others submit to a ledger.

    ledger ─► OwnedRuns.take ─► load ─► CeleryExecutor ─► OwnedRuns.write ─► ledger
           └► requests: tasks to cancel ─┘

If several processes serve one ledger, each takes runs without an owner. When a process dies, the others take over its
runs as soon as its lease has expired. A process that lost its own lease drops all runs and registers as a new owner.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from random import Random
from typing import Any

from celeriac.config.ledger_keep import LedgerKeep
from celeriac.errors import LedgerLost, LedgerUnavailable, describe_error
from celeriac.executor.executor import CeleryExecutor
from celeriac.ledger.owned_run import OwnedRun, RunKey, run_key
from celeriac.ledger.owned_runs import ControlRequest, OwnedRuns
from celeriac.ledger.run_store import RunStore
from celeriac.log_lines import logger_for
from celeriac.runs.cluster import Cluster
from celeriac.runs.ledger_limits import DailyLimits
from celeriac.runs.owner_session import MAX_PAUSE, OwnerSession, ledger_circuit
from celeriac.runs.schedule import Schedule
from celeriac.runs.service_notices import ServiceNotices
from celeriac.runs.service_schedules import ServiceSchedules
from celeriac.task.state import State
from celeriac.worker import log

logger = logger_for(__name__)
log_event = partial(log.log_event, logger=logger)

STOP_AT_ONCE = 2  # requests to stop


class Stopped(BaseException):
    """Raised in the signal handler, while the service waits for the ledger or for an earlier process."""


class Service:
    """A service: call `run` in the main thread, and `stop` in a signal handler."""

    def __init__(
        self,
        ledger: RunStore,
        open_cluster: Callable[[], Cluster],
        *,
        output: str | None,
        grace: float | None,
        keep: LedgerKeep,
        schedules: Collection[Schedule] = (),
    ) -> None:
        """`output` is the folder for the output of commands here, as the rows of runs have it. `keep` are the limits of
        the ledger. The runs of `schedules` are made.

        After a request to stop, `run` waits `grace` seconds for the running tasks. With None it does not wait: the
        tasks go on without this process.
        """
        self._ledger, self._open_cluster, self._output, self._grace = ledger, open_cluster, output, grace
        self._limits = DailyLimits(ledger.database.url, keep, partial(log_event, level=logging.WARNING))
        self._notices = ServiceNotices(ledger.database.url, partial(log_event, level=logging.WARNING))
        self._schedules = ServiceSchedules(ledger.database.url, schedules, log_event)
        self._stop_requests = 0
        self._last_tick = time.monotonic()
        self._random = Random()
        self._circuit = ledger_circuit(self._random, effect="this process tries again")
        self._wake: Callable[[], None] | None = None
        """Ends the current wait; None while only an exception can."""

    def stop(self) -> None:
        """Start no more tasks, and return from `run` when the running tasks have ended. The second call ends them.

        May be called from a signal handler.
        """
        self._stop_requests += 1
        if self._wake is None:
            raise Stopped
        self._wake()

    @property
    def heartbeat_age(self) -> float:
        """Seconds since the last heartbeat began. Any thread may ask."""
        return time.monotonic() - self._last_tick

    @property
    def is_stopping(self) -> bool:
        """Whether the service starts no more tasks. Any thread may ask."""
        return self._stop_requests > 0

    def run(self) -> None:
        """Serve the ledger until `stop`. Unfinished tasks stay in the ledger for the next service.

        Raises `LedgerBroken`.
        """
        with suppress(Stopped):
            while not self._stop_requests:
                self._try_to_own()
        self._wake = do_nothing
        self._notices.check(time.monotonic())
        self._notices.finish()
        self._schedules.finish()
        try:
            self._ledger.release_all()
        except LedgerUnavailable as error:
            log_event(
                "the ledger is unavailable; others take over when the lease expires", level=logging.WARNING, why=error
            )

    def _try_to_own(self) -> None:
        """Register as an owner and serve, until the ownership is lost or the ledger is unavailable."""
        try:
            self._run_as_owner()
        except LedgerLost as error:
            log_event(
                "lost ownership (lease expired); dropping all runs and registering again",
                level=logging.WARNING,
                why=error,
            )
            self._ledger.reset_owner()
        except LedgerUnavailable as error:
            if line := self._circuit.record_failure(time.monotonic(), describe_error(error)):
                log_event(line, level=logging.WARNING)
            self._wake = None
            if not self._stop_requests:
                # No event reports that the ledger is available again.
                time.sleep(max(0.0, self._circuit.retry_at - time.monotonic()))
        finally:
            self._wake = do_nothing if self._stop_requests else None

    def _run_as_owner(self) -> None:
        runs = self._ledger.owned_runs(self._output)
        if line := self._circuit.record_success(time.monotonic()):
            log_event(line)
        with self._open_cluster() as cluster:
            self._wake = cluster.wake
            try:
                executor = cluster.executor(ledger=runs)
                driver = SessionDriver(OwnerSession(self._random), runs, executor, self._notices)
                while not self._stop_requests:
                    self._last_tick = time.monotonic()
                    driver.tick()
                    self._limits.check(time.monotonic())
                    self._notices.check(time.monotonic())
                    self._schedules.check()
                self._drain(driver, executor)
            finally:
                self._wake = do_nothing

    def _drain(self, driver: SessionDriver, executor: CeleryExecutor) -> None:
        """Start no more tasks, and give the running ones their grace period."""
        executor.adjustments.stop_sending()
        if self._grace is not None:
            log_event("stopping: no more tasks start", running=executor.tasks_in_flight, grace=self._grace)
            until = time.monotonic() + self._grace
            while executor.tasks_in_flight and time.monotonic() < until and self._stop_requests < STOP_AT_ONCE:
                self._last_tick = time.monotonic()
                driver.tick_draining()
        is_written = executor.flush()
        log_event(
            "stopped; the next service of this ledger resumes the unfinished tasks",
            waiting=executor.tasks_waiting,
            in_flight=executor.tasks_in_flight,
        )
        if not is_written:
            log_event("the ledger is unavailable; it does not hold the last results", level=logging.WARNING)


class SessionDriver:
    """Carries out the decisions of an `OwnerSession`, step by step."""

    def __init__(
        self, session: OwnerSession, runs: OwnedRuns, executor: CeleryExecutor, notices: ServiceNotices
    ) -> None:
        self._session, self._runs, self._executor, self._notices = session, runs, executor, notices

    def tick(self) -> None:
        """Look at the ledger and load tasks when it is time, then do one heartbeat of the executor."""
        self._use_ledger(time.monotonic())
        if keys := self._session.next_revokes():
            self._executor.revoke_tasks(keys)
        self._executor.heartbeat()
        self._log_ends()
        self._executor.wait(self._session.pause(time.monotonic()))

    def tick_draining(self) -> None:
        """Track the tasks in flight, and start no others: the executor sends nothing more, but renews their places."""
        self._executor.heartbeat()
        self._log_ends()
        self._executor.wait(MAX_PAUSE)

    def _use_ledger(self, now: float) -> None:
        line = None
        try:
            if self._session.should_look(now):
                self._session.begin_look(now)
                self._look(now)
                line = self._session.record_success(now)
            began = time.monotonic()  # the look may have waited for the ledger
            if (run := self._session.run_to_load(began)) is not None:
                self._load(run)
                self._session.record_load(began, time.monotonic(), has_waiting_tasks=bool(self._executor.tasks_waiting))
        except LedgerUnavailable as error:
            line = self._session.record_failure(now, describe_error(error))
        if line is not None:
            logger.debug(line)  # the executor warns when it cannot write

    def _look(self, now: float) -> None:
        """Accept requests, take runs, and acknowledge the requests that were carried out."""
        pending = self._runs.pending_work()
        if self._executor.adjustments.pause_runs(pending.pauses):
            log_event("pauses changed", paused=", ".join(pending.pauses) or "no run")
        for request in pending.requests:
            if self._session.accept(request, self._runs.get(request.run)):
                self._session.revoke(self._keys_of(request))
                log_event("cancelling", run=request.run, key=request.key)
        if pending.has_idle_runs:
            taken = self._runs.take(from_dead=self._session.may_take_over(now))
            self._session.add_runs(taken)
            for run in taken:
                log_event("run taken", run=run.name, tasks=run.total, taken_from=run.previous_owner)
        if (finished := self._session.finished_requests()) and self._executor.flush():
            self._runs.acknowledge(finished)
            self._session.remove_requests()

    def _keys_of(self, request: ControlRequest) -> list[RunKey]:
        """Return the keys of the tasks to cancel: the given key, or all tasks of the run that the executor has."""
        if request.key is not None:
            return [RunKey(request.run, request.key)]
        return [key for task in self._executor.tasks() if (key := run_key(task.key)).run == request.run]

    def _load(self, run: OwnedRun) -> None:
        """Make the executor resume the next batch of the run's tasks; after the last batch, also the blocked tasks."""
        batch = [] if run.is_loaded else self._runs.load(run)
        self._executor.recovery.resume(self._session.add_batch(run, batch, self._executor.has_task))
        if not run.is_loaded:
            return
        if blocked := self._session.blocked_tasks:
            ended = self._runs.dependency_states(run, blocked)
            self._executor.recovery.resume(self._session.take_blocked(run), ended=ended)
        if not run.unfinished:
            self._runs.end_run(run)
        self._session.finish_load()

    def _log_ends(self) -> None:
        for event in self._executor.get_event_buffer():
            if event.state is State.FAILED:
                logger.debug("%s failed: %s", event.key, event.detail)
                self._notices.on_failure(run_key(event.key).run)
        for run in self._runs.take_ended():
            counts: dict[str, Any] = {state.value: run.ended[state] for state in State if state.is_final}
            self._notices.on_end(run.name)
            log_event("run ended", run=run.name, **counts, earlier=run.total - run.loaded or None)


def do_nothing() -> None:
    """Stand in for `wake` while the service ends by itself."""
