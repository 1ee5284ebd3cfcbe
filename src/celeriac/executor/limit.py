"""Limits, and the places that they have: what an executor asks the store of places for, and what it replies.

A task holds a place of each of its limits. A place of a number of running tasks is held from before the task is sent
until it has ended. A place of a rate is held until the length of its window has passed since the task was started.
"""

from __future__ import annotations

from msgspec import Struct


class Limit(Struct, frozen=True):
    """The most tasks that may hold a place together."""

    name: str
    """Unique among all limits of all executors."""

    number: int
    period: float | None = None
    """The length of the window of a rate, in seconds; None if a place is held until its task has ended."""

    @property
    def subject(self) -> str:
        """The key or the queue, for a person."""
        kind, _, name = self.name.partition(":")
        return f"queue {name!r}" if kind == "queue-rate" else f"key {name!r}"

    @property
    def rate(self) -> str:
        """The rate as it was given."""
        return f"{self.number}/{'s' if self.period == 1 else 'm' if self.period == 60 else 'h'}"


class PlaceRequest(Struct, frozen=True):
    """The limits of one attempt of a task."""

    id: str
    """Its Celery id."""

    limits: tuple[Limit, ...]


class Refusal(Struct, frozen=True):
    """A limit that has no place."""

    limit: Limit
    taken: int
    """How many places are taken."""

    retry_in: float
    """Seconds until it is worth asking again."""

    detail: str = ""
    """Why nothing is known of its places, if that is so."""
