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
from celeriac.executor.history import Life
from celeriac.executor.interfaces import Asked, Desk
from celeriac.executor.requests import Cancel, Cancelled, Explain, Explained, Explanation, Fate, Outcome, Refused
from celeriac.task.task import TaskKey


class Served(Protocol):
    """The executor."""

    def has_task(self, key: TaskKey) -> bool: ...
    def revoke_task(self, key: TaskKey) -> None: ...
    def revoke_queue(self, queue: str) -> Collection[TaskKey]: ...
    def explain(self, key: TaskKey) -> Explanation: ...


@dataclass(slots=True, eq=False)
class Pending:
    """An order to cancel, of which somebody waits to hear the end."""

    asked: Asked
    said: Cancelled
    lives: dict[str, Life]
    """By name, those that were called back."""

    until: float

    @property
    def is_over(self) -> bool:
        return all(life.has_ended for life in self.lives.values())


class Serving:
    def __init__(self, desk: Desk, executor: Served, explainer: Explainer) -> None:
        self._desk, self._executor, self._explainer = desk, executor, explainer
        self._pending: list[Pending] = []

    @property
    def due(self) -> float | None:
        """When somebody must be answered, whatever happens."""
        return min((pending.until for pending in self._pending), default=None)

    def serve(self, now: float) -> None:
        for asked in self._desk.asked():
            match asked.request:
                case Cancel() as order if problem := wrong(order):
                    self._desk.answer(asked, Refused(problem))
                case Cancel() as order:
                    self._cancel(asked, order, now)
                case Explain(name=name):
                    keys = self._explainer.keys_named([name])[name]
                    self._desk.answer(asked, Explained(tuple(map(self._executor.explain, keys))))
                case _:
                    self._desk.answer(asked, Refused("it is nothing that an executor knows"))
        if self._pending:
            self._answer_who_waits(now)

    def _cancel(self, asked: Asked, order: Cancel, now: float) -> None:
        lives: dict[str, Life] = {}
        named = self._explainer.keys_named(dict.fromkeys(order.names))
        alive = {key for keys in named.values() for key in keys if self._executor.has_task(key)}
        fates = [self._fate(name, keys, alive, lives) for name, keys in named.items()]
        emptied = {queue: self._empty(queue, fates, lives) for queue in dict.fromkeys(order.queues)}
        waits = bool(lives) and order.wait > 0
        said = Cancelled(fates=tuple(fates), emptied=emptied, is_last=not waits)
        self._desk.answer(asked, said)
        if waits:
            self._pending.append(Pending(asked, said, lives, now + order.wait))

    def _fate(self, name: str, keys: list[TaskKey], alive: set[TaskKey], lives: dict[str, Life]) -> Fate:
        if not keys:
            return Fate(name=name, outcome=Outcome.UNKNOWN)
        if len(keys) > 1:
            detail = f"{len(keys)} tasks are called so: {', '.join(map(repr, keys))}"
            return Fate(name=name, outcome=Outcome.AMBIGUOUS, detail=detail)
        (key,) = keys
        if key not in alive:
            return by_now(Fate(name=name, outcome=Outcome.HAD_ENDED), self._explainer.history.of(key))
        if self._executor.has_task(key):  # else it needed one that was named before it, and was skipped
            self._executor.revoke_task(key)
        return self._called_back(name, key, lives)

    def _called_back(self, name: str, key: TaskKey, lives: dict[str, Life]) -> Fate:
        life = self._explainer.history.of(key)
        if life is None or life.has_ended:
            return by_now(Fate(name=name, outcome=Outcome.REVOKED), life)
        lives[name] = life
        return by_now(Fate(name=name, outcome=Outcome.CALLED_BACK), life)

    def _empty(self, queue: str, fates: list[Fate], lives: dict[str, Life]) -> int:
        """Answers how many of its tasks were revoked while they waited; the others get a fate each."""
        revoked = 0
        for key in self._executor.revoke_queue(queue):
            if str(key) in lives:
                continue  # it was named, too
            fate = self._called_back(str(key), key, lives)
            if fate.outcome is Outcome.REVOKED:
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
            fates = tuple(by_now(fate, pending.lives.get(fate.name)) for fate in pending.said.fates)
            self._desk.answer(pending.asked, replace(pending.said, fates=fates, is_last=True))
        self._pending = waiting


def by_now(fate: Fate, life: Life | None) -> Fate:
    """With where its task stands."""
    if life is None or not life.moves:
        return fate
    return replace(fate, state=life.moves[-1].state, detail=life.moves[-1].detail)


def wrong(order: Cancel) -> str | None:
    if not order.names and not order.queues:
        return "neither a key nor a queue is named"
    if not isfinite(order.wait) or order.wait < 0:
        return f"{order.wait!r} is no number of seconds to wait"
    return None
