"""The places of limits that the tasks of a worker hold."""

from __future__ import annotations

import os
import threading
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
    """Takes places in the store, and knows those that tasks of this process hold. A thread takes and pops its own."""

    def __init__(self, open_places: Callable[[], Places | None]) -> None:
        """`open_places` is called when the first task has limits."""
        self._open = open_places
        self._places: Places | None = None
        self._taken: dict[tuple[int, str], TakenPlace] = {}
        """By thread and task: another thread may have a copy of the message."""

    def take(self, task_id: str, limits: Sequence[Sequence[Any]], holder: str, delivery: str) -> NoPlace | None:
        """Take the places of a task. Return None if it has them now. Raise an error of the store."""
        taken = self._place_of(task_id, limits, holder, deliveries_of(os.getpid()) + delivery)
        if taken is None:
            return None
        is_first_try = (threading.get_ident(), task_id) not in self._taken
        # First: the store may have given the places although its reply is lost.
        self._taken[threading.get_ident(), task_id] = taken
        reply = taken.places.take(taken.request, holder=holder, delivery=taken.delivery)
        if reply is TakeReply.TAKEN:
            return None
        if is_first_try:  # a later one may hold those that have no window
            self.pop(task_id)
        return NoPlace(reply)

    def of_process(self, pid: int, task_id: str, limits: Sequence[Sequence[Any]], holder: str) -> TakenPlace | None:
        """Return the places of a task that this process of the worker may hold."""
        return self._place_of(task_id, limits, holder, deliveries_of(pid))

    def _place_of(self, task_id: str, limits: Sequence[Sequence[Any]], holder: str, delivery: str) -> TakenPlace | None:
        """Return the places of a task. Return None if the executor holds those of its tasks in flight."""
        if self._places is None:
            self._places = self._open()
        if self._places is None:
            return None
        request = PlaceRequest(task_id, tuple(Limit(*limit) for limit in limits))
        return TakenPlace(self._places, request, holder, delivery)

    def pop(self, task_id: str) -> TakenPlace | None:
        """Return what the task of this thread may hold, and forget it."""
        return self._taken.pop((threading.get_ident(), task_id), None)

    def close(self) -> None:
        """Close the connection."""
        if self._places is not None:
            self._places.close()


def deliveries_of(pid: int) -> str:
    """Return how the names begin under which a process takes places."""
    return f"{pid}."
