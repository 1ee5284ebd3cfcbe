"""What becomes of those that are out: what their results say, what was found in no place, and what follows from it.

ResultReader ─► what has moved ─► running, an end, or the next attempt
Searches ─► nobody has it ─► its result, if there is one; else sent again, or lost and tried again
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable

from celeriac.config.executor_config import Config
from celeriac.errors import describe_error
from celeriac.executor.backoff import backoff
from celeriac.executor.interfaces import LostTask, ResultReader, Unreadable
from celeriac.executor.lifecycle import TaskLifecycle
from celeriac.executor.lost_task_schedule import LostTaskSchedule
from celeriac.executor.tracker import Tracked
from celeriac.task.result import Execution, Reason, Result
from celeriac.task.state import TRANSITIONS, State
from celeriac.task.task import OnWorkerLost

logger = logging.getLogger(__name__)

REPORTED_BY_WORKERS = {State.QUEUED, State.RUNNING, State.SUCCESS, State.FAILED, State.REVOKED}
MAX_FENCED = 10_000  # lost attempts whose results are still told apart
MAX_KEYS_LOGGED = 5  # that one line of the log names


class ResultHandler:
    def __init__(
        self,
        lifecycle: TaskLifecycle,
        config: Config,
        *,
        results: ResultReader,
        lost_task_schedule: LostTaskSchedule | None,
    ) -> None:
        self._lifecycle, self._config, self._results, self._lost_task_schedule = (
            lifecycle,
            config,
            results,
            lost_task_schedule,
        )
        self._tracker = lifecycle.tracker
        self._lost: dict[str, LostTask] = {}
        """By id: not dealt with, because the result backend did not answer."""

        self._fenced: dict[str, None] = {}
        """Ids of lost attempts, the latest last: what comes of these after all is not wanted."""

        self.results_ignored = 0
        """Of attempts that had been given up as lost."""

        self._deletable: list[str] = []
        """Ids whose results may be deleted once the ledger has what became of them."""

        self._pushed = False

    def update_all_task_states(self, now: float) -> None:
        hints = self._results.changed()
        pushed = self._results.pushes
        if ids := self._tracker.due(hints, now, pushed=pushed) | (self._fenced.keys() & hints):
            self.read_results(ids, now)
        if self._lost_task_schedule is not None:
            if self._pushed and not pushed:
                self._lost_task_schedule.after_outage(now)
            self._pushed = pushed
            self._lost.update((each.id, each) for each in self._lost_task_schedule.poll(self._tracker, now))
            if self._lost:
                self._handle_lost_tasks(now)

    def read_results(self, ids: Collection[str], now: float) -> bool:
        """Apply what the result backend knows of these. Answers whether it answered; if not, nothing is known."""
        for message_id, result in self._results.read(ids).items():
            tracked = self._tracker.find_by_id(message_id)
            match tracked, result:
                case None, _:
                    self._ignore(message_id, result)
                case Tracked(), Unreadable(error):
                    self._apply_unreadable(tracked, error, now)
                case Tracked(), Result():
                    self.update_task_state(tracked, result, now)
        return self._results.answered

    # — results —

    def update_task_state(self, tracked: Tracked, result: Result, now: float) -> None:
        tracked.unreadable_since = None
        state = result.state
        if state is State.FAILED and tracked.revoking:
            state = State.REVOKED
        if state not in REPORTED_BY_WORKERS or state not in TRANSITIONS[tracked.state]:
            return
        if state is State.FAILED and result.reason is Reason.LOST:
            self._handle_lost_worker(tracked, result)
        elif state is State.FAILED:
            self._fail(tracked, result)
        else:
            self._lifecycle.change_state(tracked, state, result.reason, result.detail, result)

    def _apply_unreadable(self, tracked: Tracked, error: Exception, now: float) -> None:
        if tracked.unreadable_since is None:
            tracked.unreadable_since = now
            logger.warning("the result of task %r cannot be read: %s", tracked.task.key, describe_error(error))
        elif now - tracked.unreadable_since >= self._config.result_unreadable_timeout:
            unreadable = f"its result cannot be read: {describe_error(error)}"
            if tracked.revoking:
                self._lifecycle.change_state(tracked, State.REVOKED, Reason.LOST, unreadable)
            else:
                self._fail(tracked, Result(State.FAILED, Reason.LOST, unreadable))

    def _fail(self, tracked: Tracked, result: Result) -> None:
        task = tracked.task
        is_refused = result.reason is Reason.REFUSED  # nobody signs it better a second time
        if task.has_retries_left and not is_refused and not self._lifecycle.draining:
            longest = self._config.retry_delay_max
            delay = backoff(task.retry_delay, task.attempt - task.lost, longest, self._lifecycle.random)
            self._lifecycle.retry(tracked, task.next_attempt(), result, delay)
        else:
            self._lifecycle.change_state(tracked, State.FAILED, result.reason, result.detail, result)

    def _handle_lost_worker(self, tracked: Tracked, result: Result) -> None:
        """Its worker, or what ran it there, is gone: nothing is known of how the command fared."""
        task = tracked.task
        again = task.next_attempt(was_lost=True)
        if self._lifecycle.draining or task.on_worker_lost is OnWorkerLost.FAIL:
            self._lifecycle.change_state(tracked, State.FAILED, Reason.LOST, result.detail, result)
        elif again.lost >= task.max_lost:
            detail = f"lost {again.lost} times, it may be what kills its workers; the last time: {result.detail}"
            self._lifecycle.change_state(tracked, State.FAILED, Reason.POISON, detail, result)
        else:
            logger.warning("attempt %d of task %r is lost: %s", task.attempt, task.key, result.detail)
            self._lifecycle.retry(tracked, again, result, delay=0.0)

    # — what is in no place —

    def _handle_lost_tasks(self, now: float) -> None:
        """What nobody has may have ended: then its result is there. Of a backend that is away nobody knows."""
        if not self.read_results(self._lost.keys(), now):
            return
        missing, self._lost = self._lost, {}
        again = []
        for task_id, found in missing.items():
            tracked = self._tracker.find_by_id(task_id)
            has_moved = tracked is not None and found.requested_at is not None and tracked.moved_at > found.requested_at
            if tracked is not None and tracked.state is not State.PUBLISHING and not has_moved:
                self._handle_lost_task(tracked, found, now)
                again += [tracked.task.key] if self._lifecycle.is_unconfirmed(tracked) else []
        if again:
            some = ", ".join(map(repr, again[:MAX_KEYS_LOGGED])) + (", …" if len(again) > MAX_KEYS_LOGGED else "")
            logger.warning("sent again because nobody has them: %d, %s", len(again), some)

    def _handle_lost_task(self, tracked: Tracked, found: LostTask, now: float) -> None:
        if tracked.revoking or (
            tracked.state is State.QUEUED and tracked.task.key in self._lifecycle.unstarted_cancels
        ):
            self._lifecycle.change_state(tracked, State.REVOKED, Reason.REVOKED, found.detail)
        elif found.was_claimed or tracked.state is State.RUNNING:
            ran = now - tracked.started_at if tracked.started_at is not None else None
            detail = found.detail if ran is None else f"{found.detail}; it had run for {ran:.1f} s"
            place = Execution(host=found.host, duration=ran) if found.host is not None else None
            self._fence(found.id)
            self._handle_lost_worker(tracked, Result(State.FAILED, Reason.LOST, detail, place))
        elif self._lifecycle.draining:
            self._lifecycle.change_state(tracked, State.FAILED, Reason.LOST, found.detail)
        else:
            self._lifecycle.change_state(tracked, State.PUBLISHING, Reason.LOST, found.detail)
            self._lifecycle.mark_unconfirmed(tracked, resend_at=now)

    def _fence(self, message_id: str) -> None:
        self._fenced[message_id] = None
        if len(self._fenced) > MAX_FENCED:
            del self._fenced[next(iter(self._fenced))]

    def _ignore(self, message_id: str, result: Result | Unreadable) -> None:
        """The end of an attempt that was given up as lost, if it is one."""
        if message_id in self._fenced and isinstance(result, Result) and result.state.is_final:
            del self._fenced[message_id]
            self.results_ignored += 1
            if self._config.delete_results:
                self.delete_results([message_id])

    # — results that are no longer wanted —

    def delete_results(self, ids: Iterable[str]) -> None:
        """Their results may be deleted: at once, or when the ledger has what became of them."""
        if self._lifecycle.ledger_writer.is_enabled:
            self._deletable += ids
        else:
            self._results.forget(list(ids))

    def delete_recorded_results(self) -> None:
        """The ledger has all that has happened."""
        if self._deletable:
            self._results.forget(self._deletable)
            self._deletable = []
