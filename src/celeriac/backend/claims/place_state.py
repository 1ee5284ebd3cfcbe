"""Decide about the places of one limit, without a store: what a database does with the row of a limit.

The scripts of Redis follow the same rules. All times are seconds on the clock of the store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct, field

from celeriac.backend.claims.places import (
    KILLED_KEPT,
    POLL_INTERVAL,
    TURN_KEPT,
    LeaveReason,
    TakeReply,
    clamp,
)
from celeriac.executor.limit import Limit, PlaceRequest, Refusal

UNTIL_END = 1e15  # seconds since the epoch: a place that a worker has until its task ends


class Turn(Struct, array_like=True):
    """An executor that was refused a place."""

    first: float
    last: float


class State(Struct):
    """The places of one limit, as a database stores them."""

    until: dict[str, float] = field(default_factory=dict)
    """Until when each task holds its place. A start of a rate has the delivery after the id."""

    holders: dict[str, tuple[str, str]] = field(default_factory=dict)
    """The lease and the delivery of each task that a worker has taken until its end."""

    waiting: dict[str, Turn] = field(default_factory=dict)


class Moment(Struct, frozen=True):
    """The states of some limits at one moment."""

    states: Mapping[str, State]
    now: float
    is_live: Callable[[str], bool]
    """Whether a lease is live."""

    reservation: float

    def reserve(
        self, asker: str, requests: Sequence[PlaceRequest], ended: Sequence[tuple[PlaceRequest, bool]]
    ) -> dict[str, Refusal]:
        """Do what `Places.reserve` does."""
        for request, was_sent in ended:
            self._end(request, was_sent=was_sent)
        refusals = {}
        for request in requests:
            if (refusal := self._refusal_of(asker, request)) is not None:
                refusals[request.id] = refusal
                continue
            for limit in request.limits:
                self._hold(limit, request.id, self.now + self.reservation)
                self.states[limit.name].waiting.pop(asker, None)
        return refusals

    def renew(self, requests: Sequence[PlaceRequest]) -> None:
        """Do what `Places.renew` does."""
        for request in requests:
            for limit in request.limits:
                if request.id in self._held(limit):
                    self._hold(limit, request.id, self.now + self.reservation)

    def take(self, request: PlaceRequest, holder: str, delivery: str) -> TakeReply:
        """Do what `Places.take` does."""
        if not self.is_live(holder):
            return TakeReply.DEAD
        started = start_of(request.id, delivery)
        for limit in request.limits:
            before = self.states[limit.name].holders.get(request.id)
            if before is not None and before != (holder, delivery) and self.is_live(before[0]):
                return TakeReply.HELD
            held = self._held(limit)
            if request.id not in held and started not in held and self._number_free(limit) <= 0:
                return TakeReply.FULL
        for limit in request.limits:
            if limit.period is None:
                self.states[limit.name].holders[request.id] = (holder, delivery)
                self._hold(limit, request.id, UNTIL_END)
            else:  # it starts after this reply: one that was lost, or came too late, does not count
                if started not in self._held(limit):
                    self._held(limit).pop(request.id, None)
                self._hold(limit, started, self.now + limit.period)
        return TakeReply.TAKEN

    def leave(self, request: PlaceRequest, holder: str, delivery: str, reason: LeaveReason) -> None:
        """Do what `Places.leave` does."""
        for limit in request.limits:
            state = self.states[limit.name]
            if limit.period is not None:
                if reason is LeaveReason.NOT_STARTED:
                    state.until.pop(start_of(request.id, delivery), None)
            elif is_held_by(state.holders.get(request.id), holder, delivery, reason):
                del state.holders[request.id]
                state.until.pop(request.id, None)
                if reason is LeaveReason.HANDED_BACK:
                    self._hold(limit, request.id, self.now + self.reservation)
                elif reason is LeaveReason.KILLED:
                    self._hold(limit, start_of(request.id, delivery), self.now + KILLED_KEPT)

    def _end(self, request: PlaceRequest, *, was_sent: bool) -> None:
        for limit in request.limits:
            held = self._held(limit)
            if request.id in held and request.id not in self.states[limit.name].holders:
                del held[request.id]
                if limit.period is not None and was_sent:
                    self._hold(limit, start_of(request.id, ""), self.now + limit.period)

    def _refusal_of(self, asker: str, request: PlaceRequest) -> Refusal | None:
        for limit in request.limits:
            held = self._held(limit)
            if request.id in held or self._number_free(limit) > self._number_before(limit, asker):
                continue
            turn = self.states[limit.name].waiting.setdefault(asker, Turn(self.now, self.now))
            turn.last = self.now
            next_end = min(held.values(), default=self.now) - self.now
            return Refusal(limit, len(held), POLL_INTERVAL if limit.period is None else clamp(next_end))
        return None

    def _number_before(self, limit: Limit, asker: str) -> int:
        """Return how many executors have waited for longer."""
        waiting = self.states[limit.name].waiting
        for name in [name for name, turn in waiting.items() if self.now - turn.last > TURN_KEPT]:
            del waiting[name]
        own = waiting.get(asker)
        return sum(name != asker and (own is None or turn.first < own.first) for name, turn in waiting.items())

    def _number_free(self, limit: Limit) -> int:
        held = self._held(limit)
        if len(held) >= limit.number:
            holders = self.states[limit.name].holders
            for task_id in [task_id for task_id, (holder, _) in holders.items() if not self.is_live(holder)]:
                del holders[task_id]
                held.pop(task_id, None)
        return limit.number - len(held)

    def _held(self, limit: Limit) -> dict[str, float]:
        state = self.states[limit.name]
        for name in [name for name, until in state.until.items() if until <= self.now]:
            del state.until[name]
        return state.until

    def _hold(self, limit: Limit, name: str, until: float) -> None:
        held = self.states[limit.name].until
        held[name] = max(until, held.get(name, until))


def is_held_by(held: tuple[str, str] | None, holder: str, delivery: str, reason: LeaveReason) -> bool:
    """Return whether a place is held by the delivery that gives it up."""
    if held is None or reason is not LeaveReason.KILLED:
        return held == (holder, delivery)
    return held[0] == holder and held[1].startswith(delivery)


def start_of(task_id: str, delivery: str) -> str:
    """Return the name of the place of a start."""
    return f"{task_id}|{delivery}"
