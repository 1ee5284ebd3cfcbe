"""The places of limits that the tasks of a worker hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct

from celeriac.backend.claims.places import LeaveReason, Places, TakeReply
from celeriac.executor.limit import Limit, PlaceRequest


class NoPlace(Struct, frozen=True):
    """A task that must not start, because it has no place."""

    reply: TakeReply

    @property
    def is_final(self) -> bool:
        """Whether it is no use to ask again. A worker that was declared dead gets another lease."""
        return self.reply is not TakeReply.DEAD


class TakenPlace(Struct, frozen=True):
    """The places of one delivery of a task."""

    places: Places
    request: PlaceRequest
    holder: str
    delivery: str

    def __call__(self, reason: LeaveReason) -> None:
        """Give them up. Raise an error of the store."""
        self.places.leave(self.request, holder=self.holder, delivery=self.delivery, reason=reason)


def no_places() -> None:
    """Stand for a result backend that keeps no places."""


class TakenPlaces:
    """Takes places in the store, and knows those that tasks of this process hold. Any thread may use it."""

    def __init__(self, open_places: Callable[[], Places | None]) -> None:
        """`open_places` is called when the first task has limits."""
        self._open = open_places
        self._places: Places | None = None
        self._taken: dict[str, TakenPlace] = {}

    def take(self, task_id: str, limits: Sequence[Sequence[Any]], holder: str, delivery: str) -> NoPlace | None:
        """Take the places of a task. Return None if it has them now. Raise an error of the store."""
        if self._places is None:
            self._places = self._open()
        if self._places is None:  # the executor holds the places of its tasks in flight
            return None
        request = PlaceRequest(task_id, tuple(Limit(*limit) for limit in limits))
        if (reply := self._places.take(request, holder=holder, delivery=delivery)) is not TakeReply.TAKEN:
            return NoPlace(reply)
        self._taken[task_id] = TakenPlace(self._places, request, holder, delivery)
        return None

    def pop(self, task_id: str) -> TakenPlace | None:
        """Return what a task holds, and forget it."""
        return self._taken.pop(task_id, None)

    def close(self) -> None:
        """Close the connection."""
        if self._places is not None:
            self._places.close()
