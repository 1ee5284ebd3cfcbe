"""Apply results to the tasks in flight, and handle lost tasks.

ResultReader ─► update_all_task_states ─► update_task_state ─► change_state: running or ended
                                                            └► fail: ended, or the next attempt
LostTaskSchedule ─► a lost task ─► its result, if there is one; else re-sent, or retried as the next attempt

The names of the steps are those of Airflow's CeleryExecutor.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from celeriac.config.executor_config import Config
from celeriac.errors import describe_error
from celeriac.executor.backoff import backoff
from celeriac.executor.deadlines import is_overdue
from celeriac.executor.interfaces import LostTask, ResultReader, Unreadable
from celeriac.executor.lifecycle import TaskLifecycle
from celeriac.executor.lost_task_schedule import LostTaskSchedule
from celeriac.executor.tracker import Tracked
from celeriac.log_lines import logger_for
from celeriac.task.result import Execution, Reason, Result
from celeriac.task.state import TRANSITIONS, State
from celeriac.task.task import OnWorkerLost

if TYPE_CHECKING:
    from celeriac.executor.output_reader import OutputReader

logger = logger_for(__name__)

REPORTED_BY_WORKERS = {State.QUEUED, State.RUNNING, State.SUCCESS, State.FAILED, State.REVOKED}
NEVER_RETRIED = {Reason.REFUSED, Reason.DEADLINE}
"""Another attempt improves neither a bad signature nor a deadline that has passed."""

MAX_FENCED = 10_000  # lost attempts whose late results are recognised
MAX_KEYS_LOGGED = 5  # keys in one log line


class ResultHandler:
    """Reads results and decides what follows from each."""

    def __init__(
        self,
        *,
        lifecycle: TaskLifecycle,
        config: Config,
        results: ResultReader,
        lost_task_schedule: LostTaskSchedule | None,
        outputs: OutputReader | None = None,
    ) -> None:
        self._lifecycle, self._config = lifecycle, config
        self._results, self._lost_task_schedule, self._outputs = results, lost_task_schedule, outputs
        self._tracker = lifecycle.tracker
        self._lost: dict[str, LostTask] = {}
        """The lost tasks, by Celery id, that wait until the result backend answers."""

        self._fenced: dict[str, None] = {}
        """The Celery ids of lost attempts, the latest last. Their results are ignored."""

        self.results_ignored = 0
        """The number of late results of lost attempts that were ignored."""

        self._deletable: list[str] = []
        """The Celery ids whose results may be deleted once the ledger has their events."""

        self._pushed = False

    def update_all_task_states(self, now: float) -> None:
        """Read the results that may have changed and apply them. Handle lost tasks."""
        hints = self._results.changed()
        pushed = self._results.pushes
        if ids := self._tracker.due(hints, now, pushed=pushed) | (self._fenced.keys() & hints):
            self.read_results(ids, now)
        if self._lost_task_schedule is not None:
            if self._pushed and not pushed:
                self._lost_task_schedule.after_outage(now)
            self._pushed = pushed
            self._lost.update(
                (lost_task.id, lost_task) for lost_task in self._lost_task_schedule.poll(self._tracker, now)
            )
            if self._lost:
                self._handle_lost_tasks(now)

    def read_results(self, ids: Collection[str], now: float) -> bool:
        """Read results and apply them. Return whether the result backend answered. If not, results may be missing."""
        for message_id, result in self._results.read(ids).items():
            tracked = self._tracker.find_by_id(message_id)
            if tracked is None:
                self._ignore(message_id, result)
            elif isinstance(result, Unreadable):
                self._apply_unreadable(tracked, result.error, now)
            else:
                self.update_task_state(tracked, result, now)
        return self._results.answered

    # — results —

    def update_task_state(self, tracked: Tracked, result: Result, now: float) -> None:
        """Apply one result. Ignore it if its state cannot follow the task's current state."""
        tracked.unreadable_since = None
        if self._outputs is not None:
            if (complete := self._with_output(self._outputs, tracked, result)) is None:
                return
            result = complete
        state = result.state
        if state is State.FAILED and tracked.revoking:
            state = State.REVOKED
        if state not in REPORTED_BY_WORKERS or state not in TRANSITIONS[tracked.state]:
            return
        if state is State.FAILED and result.reason is Reason.LOST:
            self._handle_lost_worker(tracked, result)
        elif state is State.FAILED:
            self.fail(tracked, result)
        else:
            self._lifecycle.change_state(tracked, state, result.reason, result.detail, result)

    def _with_output(self, outputs: OutputReader, tracked: Tracked, result: Result) -> Result | None:
        """Return a result with the place of its output; None while a part of its output is missing."""
        if result.state is State.RUNNING:
            outputs.begin(tracked.task)
        return outputs.complete(tracked.task, result) if result.state.is_final else result

    def _apply_unreadable(self, tracked: Tracked, error: Exception, now: float) -> None:
        if tracked.unreadable_since is None:
            tracked.unreadable_since = now
            logger.warning("the result of task %r cannot be read: %s", tracked.task.key, describe_error(error))
        elif now - tracked.unreadable_since >= self._config.result_unreadable_timeout and not self._is_held(tracked):
            detail = f"its result cannot be read: {describe_error(error)}"
            if tracked.revoking:
                self._lifecycle.change_state(tracked, State.REVOKED, Reason.LOST, detail)
            else:
                self.fail(tracked, Result(State.FAILED, Reason.LOST, detail))

    def _is_held(self, tracked: Tracked) -> bool:
        """Return whether a live worker still has the task: it will store the result in place of the unreadable one."""
        return self._lost_task_schedule is not None and self._lost_task_schedule.is_held(tracked.task.message_id)

    def fail(self, tracked: Tracked, result: Result) -> None:
        """Retry a task whose attempt has failed, or end it as FAILED."""
        task = tracked.task
        may_improve = result.reason not in NEVER_RETRIED
        if not (task.has_retries_left and may_improve) or self._lifecycle.draining:
            self._lifecycle.change_state(tracked, State.FAILED, result.reason, result.detail, result)
            return
        max_delay = self._config.retry_delay_max
        delay = backoff(task.retry_delay, task.attempt - task.lost, max_delay, self._lifecycle.random)
        if is_overdue(task, self._lifecycle.wall_clock() + delay):
            detail = f"{result.detail}; its deadline passes before the next attempt"
            self._lifecycle.change_state(tracked, State.FAILED, result.reason, detail, result)
        else:
            self._lifecycle.retry(tracked, task.next_attempt(), result, delay)

    def _handle_lost_worker(self, tracked: Tracked, result: Result) -> None:
        """Retry a task whose worker is dead, or end it as FAILED. How far its command came is unknown."""
        task = tracked.task
        if self._outputs is not None:
            result = self._outputs.lost(task, result)
        next_attempt = task.next_attempt(was_lost=True)
        is_too_late = self._lifecycle.draining or is_overdue(task, self._lifecycle.wall_clock())
        if is_too_late or task.on_worker_lost is OnWorkerLost.FAIL:
            self._lifecycle.change_state(tracked, State.FAILED, Reason.LOST, result.detail, result)
        elif next_attempt.lost >= task.max_lost:
            workers = "1 lost worker" if next_attempt.lost == 1 else f"{next_attempt.lost} lost workers"
            detail = f"gave up after {workers}; the task may be crashing them (last: {result.detail})"
            self._lifecycle.change_state(tracked, State.FAILED, Reason.POISON, detail, result)
        else:
            logger.warning("attempt %d of task %r is lost: %s", task.attempt, task.key, result.detail)
            self._lifecycle.retry(tracked, next_attempt, result, delay=0.0)

    # — lost tasks —

    def _handle_lost_tasks(self, now: float) -> None:
        """Handle the lost tasks once the result backend answers: a lost task may have ended and have a result."""
        if not self.read_results(self._lost.keys(), now):
            return
        lost, self._lost = self._lost, {}
        resent = []
        for task_id, lost_task in lost.items():
            tracked = self._tracker.find_by_id(task_id)
            if tracked is None or tracked.state is State.PUBLISHING:
                continue
            if self._outputs is not None and self._outputs.is_held(task_id):
                continue  # it has a result, which waits for its output
            if lost_task.requested_at is not None and tracked.moved_at > lost_task.requested_at:
                continue  # the scan began before the last change of state
            self._handle_lost_task(tracked, lost_task, now)
            resent += [tracked.task.key] if self._lifecycle.is_unconfirmed(tracked) else []
        if resent:
            keys = ", ".join(map(repr, resent[:MAX_KEYS_LOGGED])) + (", …" if len(resent) > MAX_KEYS_LOGGED else "")
            logger.warning("re-sent %d tasks that neither the broker nor a worker has: %s", len(resent), keys)

    def _handle_lost_task(self, tracked: Tracked, lost_task: LostTask, now: float) -> None:
        has_started = lost_task.was_claimed or tracked.state is State.RUNNING
        is_cancelled = tracked.revoking or (
            tracked.state is State.QUEUED and tracked.task.key in self._lifecycle.unstarted_cancels
        )
        if is_cancelled and has_started:
            self._lifecycle.change_state(tracked, State.REVOKED, Reason.REVOKED, lost_task.detail)
        elif has_started:
            seconds_run = now - tracked.started_at if tracked.started_at is not None else None
            detail = (
                lost_task.detail if seconds_run is None else f"{lost_task.detail}; it had run for {seconds_run:.1f} s"
            )
            execution = Execution(host=lost_task.host, duration=seconds_run) if lost_task.host is not None else None
            self._ignore_results_of(lost_task.id)
            self._handle_lost_worker(tracked, Result(State.FAILED, Reason.LOST, detail, execution))
        elif is_cancelled or self._lifecycle.draining:
            self._lifecycle.never_resent.append((tracked, lost_task.detail))
        else:
            self._lifecycle.change_state(tracked, State.PUBLISHING, Reason.LOST, lost_task.detail)
            self._lifecycle.mark_unconfirmed(tracked, resend_at=now)

    def _ignore_results_of(self, message_id: str) -> None:
        self._fenced[message_id] = None
        if len(self._fenced) > MAX_FENCED:
            del self._fenced[next(iter(self._fenced))]

    def _ignore(self, message_id: str, result: Result | Unreadable) -> None:
        """Count and delete the final result of a lost attempt. Any other result of an unknown id has no effect."""
        if message_id in self._fenced and isinstance(result, Result) and result.state.is_final:
            del self._fenced[message_id]
            self.results_ignored += 1
            self._lifecycle.measures.result_ignored()
            if self._config.delete_results:
                self.delete_results([message_id])

    # — deletion of stored results —

    def delete_results(self, ids: Iterable[str]) -> None:
        """Delete results that the caller has taken: at once, or when the ledger has their events."""
        if self._lifecycle.ledger_writer.is_enabled:
            self._deletable += ids
        else:
            self._results.forget(list(ids))

    def delete_recorded_results(self) -> None:
        """Delete the results that were kept until the ledger had their events. It has all events now."""
        if self._deletable:
            self._results.forget(self._deletable)
            self._deletable = []
