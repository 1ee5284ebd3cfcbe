"""Serves a desk: what others ask of an executor is done and answered between two heartbeats, in the caller's thread.

desk.asked ─► Cancel:  revoked or called back ─► desk.answer, at once ─► once more when all has ended, or time is up
           └► Explain: desk.answer
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from math import isfinite
from typing import Protocol

from celeriac.executor.explain import Explainer
from celeriac.executor.history import TaskHistory
from celeriac.executor.interfaces import ControlChannel, PendingRequest
from celeriac.executor.requests import (
    CancelOutcome,
    CancelReply,
    CancelRequest,
    CancelResult,
    ErrorReply,
    ExplainReply,
    ExplainRequest,
    Explanation,
)
from celeriac.task.task import TaskKey


class ControlledExecutor(Protocol):
    """The executor."""

    def has_task(self, key: TaskKey) -> bool: ...
    def revoke_task(self, key: TaskKey) -> None: ...
    def revoke_tasks(self, *, queue: str) -> Collection[TaskKey]: ...
    def explain(self, key: TaskKey) -> Explanation: ...


@dataclass(slots=True, eq=False)
class PendingCancel:
    """An order to cancel, of which somebody waits to hear the end."""

    asked: PendingRequest
    said: CancelReply
    lives: dict[str, TaskHistory]
    """By name, those that were called back."""

    until: float

    @property
    def is_over(self) -> bool:
        return all(life.has_ended for life in self.lives.values())


class ControlHandler:
    def __init__(self, channel: ControlChannel, executor: ControlledExecutor, explainer: Explainer) -> None:
        self._channel, self._executor, self._explainer = channel, executor, explainer
        self._pending: list[PendingCancel] = []

    @property
    def due(self) -> float | None:
        """When somebody must be answered, whatever happens."""
        return min((pending.until for pending in self._pending), default=None)

    def handle_requests(self, now: float) -> None:
        for asked in self._channel.take_requests():
            match asked.request:
                case CancelRequest() as order if problem := problem_with(order):
                    self._channel.reply(asked, ErrorReply(problem))
                case CancelRequest() as order:
                    self._cancel(asked, order, now)
                case ExplainRequest(name=name):
                    keys = self._explainer.find_keys([name])[name]
                    self._channel.reply(asked, ExplainReply(tuple(map(self._executor.explain, keys))))
                case _:
                    self._channel.reply(asked, ErrorReply("it is nothing that an executor knows"))
        if self._pending:
            self._answer_who_waits(now)

    def _cancel(self, asked: PendingRequest, order: CancelRequest, now: float) -> None:
        lives: dict[str, TaskHistory] = {}
        named = self._explainer.find_keys(dict.fromkeys(order.names))
        alive = {key for keys in named.values() for key in keys if self._executor.has_task(key)}
        fates = [self._fate(name, keys, alive, lives) for name, keys in named.items()]
        emptied = {queue: self._empty(queue, fates, lives) for queue in dict.fromkeys(order.queues)}
        waits = bool(lives) and order.wait > 0
        said = CancelReply(fates=tuple(fates), emptied=emptied, is_last=not waits)
        self._channel.reply(asked, said)
        if waits:
            self._pending.append(PendingCancel(asked, said, lives, now + order.wait))

    def _fate(self, name: str, keys: list[TaskKey], alive: set[TaskKey], lives: dict[str, TaskHistory]) -> CancelResult:
        if not keys:
            return CancelResult(name=name, outcome=CancelOutcome.UNKNOWN)
        if len(keys) > 1:
            detail = f"{len(keys)} tasks are called so: {', '.join(map(repr, keys))}"
            return CancelResult(name=name, outcome=CancelOutcome.AMBIGUOUS, detail=detail)
        (key,) = keys
        if key not in alive:
            return with_current_state(
                CancelResult(name=name, outcome=CancelOutcome.HAD_ENDED), self._explainer.history.of(key)
            )
        if self._executor.has_task(key):  # else it needed one that was named before it, and was skipped
            self._executor.revoke_task(key)
        return self._called_back(name, key, lives)

    def _called_back(self, name: str, key: TaskKey, lives: dict[str, TaskHistory]) -> CancelResult:
        life = self._explainer.history.of(key)
        if life is None or life.has_ended:
            return with_current_state(CancelResult(name=name, outcome=CancelOutcome.REVOKED), life)
        lives[name] = life
        return with_current_state(CancelResult(name=name, outcome=CancelOutcome.CALLED_BACK), life)

    def _empty(self, queue: str, fates: list[CancelResult], lives: dict[str, TaskHistory]) -> int:
        """Answers how many of its tasks were revoked while they waited; the others get a fate each."""
        revoked = 0
        for key in self._executor.revoke_tasks(queue=queue):
            if str(key) in lives:
                continue  # it was named, too
            fate = self._called_back(str(key), key, lives)
            if fate.outcome is CancelOutcome.REVOKED:
                revoked += 1
            else:
                fates.append(replace(fate, queue=queue))
        return revoked

    def _answer_who_waits(self, now: float) -> None:
        waiting = []
        for pending in self._pending:
            if now < pending.until and not pending.is_over:
                waiting.append(pending)
                continue
            fates = tuple(with_current_state(fate, pending.lives.get(fate.name)) for fate in pending.said.fates)
            self._channel.reply(pending.asked, replace(pending.said, fates=fates, is_last=True))
        self._pending = waiting


def with_current_state(fate: CancelResult, life: TaskHistory | None) -> CancelResult:
    """With where its task stands."""
    if life is None or not life.events:
        return fate
    return replace(fate, state=life.events[-1].state, detail=life.events[-1].detail)


def problem_with(order: CancelRequest) -> str | None:
    if not order.names and not order.queues:
        return "neither a key nor a queue is named"
    if not isfinite(order.wait) or order.wait < 0:
        return f"{order.wait!r} is no number of seconds to wait"
    return None
