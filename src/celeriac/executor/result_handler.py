"""What becomes of those that are out: what their results say, what was found in no place, and what follows from it.

ResultReader ─► what has moved ─► running, an end, or the next attempt
Searches ─► nobody has it ─► its result, if there is one; else sent again, or lost and tried again
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable

from celeriac.config.executor_config import Config
from celeriac.executor.backoff import backoff
from celeriac.executor.interfaces import Missing, ResultReader, Unreadable
from celeriac.executor.lifecycle import Moves, word
from celeriac.executor.lost_task_schedule import Searches
from celeriac.executor.tracker import Tracked
from celeriac.task.result import Execution, Reason, Result
from celeriac.task.state import MOVES, State
from celeriac.task.task import OnWorkerLost

logger = logging.getLogger(__name__)

REPORTED_BY_WORKERS = {State.QUEUED, State.RUNNING, State.SUCCESS, State.FAILED, State.REVOKED}
MOST_FENCED = 10_000  # lost attempts whose results are still told apart
SOME_KEYS = 5  # that one line of the log names


class Outcomes:
    def __init__(self, moves: Moves, config: Config, *, results: ResultReader, searches: Searches | None) -> None:
        self._moves, self._config, self._results, self._searches = moves, config, results, searches
        self._tracker = moves.tracker
        self._missing: dict[str, Missing] = {}
        """By id: not dealt with, because the result backend did not answer."""

        self._fenced: dict[str, None] = {}
        """Ids of lost attempts, the latest last: what comes of these after all is not wanted."""

        self.results_ignored = 0
        """Of attempts that had been given up as lost."""

        self._forgettable: list[str] = []
        """Ids whose results may be deleted once the ledger has what became of them."""

        self._pushed = False

    def apply_what_has_moved(self, now: float) -> None:
        hints = self._results.changed()
        pushed = self._results.pushes
        if ids := self._tracker.due(hints, now, pushed=pushed) | (self._fenced.keys() & hints):
            self.read(ids, now)
        if self._searches is not None:
            if self._pushed and not pushed:
                self._searches.after_outage(now)
            self._pushed = pushed
            self._missing.update((each.id, each) for each in self._searches.look(self._tracker, now))
            if self._missing:
                self._take_missing(now)

    def read(self, ids: Collection[str], now: float) -> bool:
        """Apply what the result backend knows of these. Answers whether it answered; if not, nothing is known."""
        for message_id, result in self._results.read(ids).items():
            tracked = self._tracker.find(message_id)
            match tracked, result:
                case None, _:
                    self._ignore(message_id, result)
                case Tracked(), Unreadable(error):
                    self._apply_unreadable(tracked, error, now)
                case Tracked(), Result():
                    self._apply_result(tracked, result, now)
        return self._results.answered

    # — results —

    def _apply_result(self, tracked: Tracked, result: Result, now: float) -> None:
        tracked.unreadable_since = None
        state = result.state
        if state is State.FAILED and tracked.revoking:
            state = State.REVOKED
        if state not in REPORTED_BY_WORKERS or state not in MOVES[tracked.state]:
            return
        if state is State.FAILED and result.reason is Reason.LOST:
            self._lose(tracked, result)
        elif state is State.FAILED:
            self._fail(tracked, result)
        else:
            self._moves.move(tracked, state, result.reason, result.detail, result)

    def _apply_unreadable(self, tracked: Tracked, error: Exception, now: float) -> None:
        if tracked.unreadable_since is None:
            tracked.unreadable_since = now
            logger.warning("the result of task %r cannot be read: %s", tracked.task.key, word(error))
        elif now - tracked.unreadable_since >= self._config.result_unreadable_timeout:
            unreadable = f"its result cannot be read: {word(error)}"
            if tracked.revoking:
                self._moves.move(tracked, State.REVOKED, Reason.LOST, unreadable)
            else:
                self._fail(tracked, Result(State.FAILED, Reason.LOST, unreadable))

    def _fail(self, tracked: Tracked, result: Result) -> None:
        task = tracked.task
        is_refused = result.reason is Reason.REFUSED  # nobody signs it better a second time
        if task.has_retries_left and not is_refused and not self._moves.draining:
            longest = self._config.retry_delay_max
            delay = backoff(task.retry_delay, task.attempt - task.lost, longest, self._moves.random)
            self._moves.again(tracked, task.next_attempt(), result, delay)
        else:
            self._moves.move(tracked, State.FAILED, result.reason, result.detail, result)

    def _lose(self, tracked: Tracked, result: Result) -> None:
        """Its worker, or what ran it there, is gone: nothing is known of how the command fared."""
        task = tracked.task
        again = task.next_attempt(was_lost=True)
        if self._moves.draining or task.on_worker_lost is OnWorkerLost.FAIL:
            self._moves.move(tracked, State.FAILED, Reason.LOST, result.detail, result)
        elif again.lost >= task.max_lost:
            detail = f"lost {again.lost} times, it may be what kills its workers; the last time: {result.detail}"
            self._moves.move(tracked, State.FAILED, Reason.POISON, detail, result)
        else:
            logger.warning("attempt %d of task %r is lost: %s", task.attempt, task.key, result.detail)
            self._moves.again(tracked, again, result, delay=0.0)

    # — what is in no place —

    def _take_missing(self, now: float) -> None:
        """What nobody has may have ended: then its result is there. Of a backend that is away nobody knows."""
        if not self.read(self._missing.keys(), now):
            return
        missing, self._missing = self._missing, {}
        again = []
        for task_id, found in missing.items():
            tracked = self._tracker.find(task_id)
            has_moved = tracked is not None and found.asked is not None and tracked.moved_at > found.asked
            if tracked is not None and tracked.state is not State.PUBLISHING and not has_moved:
                self._take_one_missing(tracked, found, now)
                again += [tracked.task.key] if self._moves.doubts(tracked) else []
        if again:
            some = ", ".join(map(repr, again[:SOME_KEYS])) + (", …" if len(again) > SOME_KEYS else "")
            logger.warning("sent again because nobody has them: %d, %s", len(again), some)

    def _take_one_missing(self, tracked: Tracked, found: Missing, now: float) -> None:
        if tracked.revoking or (tracked.state is State.QUEUED and tracked.task.key in self._moves.withdrawn):
            self._moves.move(tracked, State.REVOKED, Reason.REVOKED, found.detail)
        elif found.was_claimed or tracked.state is State.RUNNING:
            ran = now - tracked.started_at if tracked.started_at is not None else None
            detail = found.detail if ran is None else f"{found.detail}; it had run for {ran:.1f} s"
            place = Execution(host=found.host, duration=ran) if found.host is not None else None
            self._fence(found.id)
            self._lose(tracked, Result(State.FAILED, Reason.LOST, detail, place))
        elif self._moves.draining:
            self._moves.move(tracked, State.FAILED, Reason.LOST, found.detail)
        else:
            self._moves.move(tracked, State.PUBLISHING, Reason.LOST, found.detail)
            self._moves.doubt(tracked, resend_at=now)

    def _fence(self, message_id: str) -> None:
        self._fenced[message_id] = None
        if len(self._fenced) > MOST_FENCED:
            del self._fenced[next(iter(self._fenced))]

    def _ignore(self, message_id: str, result: Result | Unreadable) -> None:
        """The end of an attempt that was given up as lost, if it is one."""
        if message_id in self._fenced and isinstance(result, Result) and result.state.is_final:
            del self._fenced[message_id]
            self.results_ignored += 1
            if self._config.delete_results:
                self.forget([message_id])

    # — results that are no longer wanted —

    def forget(self, ids: Iterable[str]) -> None:
        """Their results may be deleted: at once, or when the ledger has what became of them."""
        if self._moves.books.kept:
            self._forgettable += ids
        else:
            self._results.forget(list(ids))

    def forget_what_is_written(self) -> None:
        """The ledger has all that has happened."""
        if self._forgettable:
            self._results.forget(self._forgettable)
            self._forgettable = []
