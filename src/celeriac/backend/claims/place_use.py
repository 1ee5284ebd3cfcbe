"""Tell those who look which limits executors have, and how many places of each they hold.

executor ─► announce, at most once a second ─► its note in the store ─► limits_in_use: all notes, and the places

A note counts for nothing: the places decide.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import msgspec

from celeriac.executor.limit import Limit

NOTE_KEPT = 30.0  # seconds after its last renewal until the note of an executor counts no more
MAX_LIMITS = 1_000  # limits of one note; with a limit for all keys there may be very many

LimitNote: TypeAlias = tuple[str, int, int, int]
"""The name of a limit, its number, the length of its window in ms, or 0, and how many places the executor holds."""


class Note(msgspec.Struct):
    """The limits of one executor."""

    executor: str
    """As it names itself in its replies: "4711@host"."""

    limits: list[LimitNote]


class PlacesOfLimit(msgspec.Struct, frozen=True):
    """The places of a limit, as the store has them."""

    used: int
    first_end: float | None
    """When the first of them ends, as far as that is known, in seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class LimitStatus:
    """A limit of a key or a rate, with the executors that have it now."""

    setting: str
    """The field of `Config`: concurrency_limits, concurrency_rates or queue_rates."""

    name: str
    """The key or the queue."""

    number: int
    """The least of those of its executors."""

    period: float | None
    """The length of the window of a rate, in seconds."""

    used: int
    """How many places are reserved or taken. The starts of the last window of a rate count."""

    executors: dict[str, int]
    """How many places the tasks in flight of each executor hold."""

    full_until: float | None
    """When a place of a rate that is used up is free, in seconds since the epoch."""

    @property
    def text(self) -> str:
        """The limit as it is set: "concurrency_rates api=100/m"."""
        value = str(self.number) if self.period is None else Limit(self.name, self.number, self.period).rate
        return f"{self.setting} {self.name}={value}"


SETTINGS = {"key": "concurrency_limits", "key-rate": "concurrency_rates", "queue-rate": "queue_rates"}


def note_of(executor: str, held: Iterable[Limit], wanted: Iterable[Limit]) -> Note | None:
    """Return the note about the limits of the places that an executor holds, and of those that it was refused; None if
    there are none."""
    numbers: dict[str, list[int]] = {}
    limits: dict[str, Limit] = {}
    for number, of_number in ((1, held), (0, wanted)):
        for limit in of_number:
            limits.setdefault(limit.name, limit)
            numbers.setdefault(limit.name, [0])[0] += number
    entries = [
        (name, limit.number, round(1_000 * (limit.period or 0)), numbers[name][0])
        for name, limit in sorted(limits.items())[:MAX_LIMITS]
    ]
    return Note(executor, entries) if entries else None


def limits_of(notes: Iterable[Note], places: dict[str, PlacesOfLimit]) -> tuple[LimitStatus, ...]:
    """Return the limits of all executors, sorted by name."""
    found: dict[str, LimitStatus] = {}
    for note in notes:
        for name, number, period, held in note.limits:
            before = found.get(name)
            number = number if before is None else min(before.number, number)
            executors = {**({} if before is None else before.executors), note.executor: held}
            of_limit = places.get(name, PlacesOfLimit(0, None))
            is_used_up = period > 0 and of_limit.used >= number
            kind, _, subject = name.partition(":")
            found[name] = LimitStatus(
                SETTINGS.get(kind, kind),
                subject,
                number,
                period / 1_000 or None,
                of_limit.used,
                executors,
                of_limit.first_end if is_used_up else None,
            )
    return tuple(sorted(found.values(), key=lambda limit: (limit.setting, limit.name)))
