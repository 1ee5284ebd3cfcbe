"""A moment that a user gives: the time before which a task must not start, or by which it must have started.

A time without an offset is local time of the machine that reads it. From there on it is seconds since the epoch, so
that it means the same on every machine.
"""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from msgspec.structs import force_setattr

from celeriac.errors import InvalidTask

if TYPE_CHECKING:
    from celeriac.task.task import Task

EARLIEST = 1e9  # seconds since the epoch: in 2001; a smaller number is no time, but perhaps a delay
LATEST = 253_370_764_800.0  # seconds since the epoch: the year 9999
UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}  # seconds
DELAY = re.compile(r"(?:[0-9]{1,9}(?:\.[0-9]{1,6})?[smhd])+")
PART = re.compile(r"([0-9.]+)([smhd])")
EXAMPLE = "write for example 2030-01-31T04:15:00+01:00, or without an offset for local time"


def set_moments(task: Task) -> None:
    """Check the times of a task, and set them as seconds since the epoch. Raise `InvalidTask`."""
    for name in ("not_before", "deadline"):
        if (value := getattr(task, name)) is not None:
            force_setattr(task, name, to_moment(name, value))
    check_order(task.not_before, task.deadline)


def to_moment(name: str, value: object) -> float:
    """Return seconds since the epoch of an ISO 8601 text, a `datetime`, or such seconds. Raise `InvalidTask`."""
    seconds = float("nan")
    with suppress(ValueError, OverflowError, OSError):
        if isinstance(value, str):
            seconds = datetime.fromisoformat(value.strip()).timestamp()
        elif isinstance(value, datetime):
            seconds = value.timestamp()
        elif type(value) in (int, float):
            seconds = float(value)  # type: ignore[arg-type]
    if EARLIEST <= seconds <= LATEST:
        return seconds
    shown = repr(value)
    raise InvalidTask(name, f"{shown if len(shown) <= 60 else shown[:57] + '...'} is not a time", EXAMPLE)


def delay_of(text: str) -> float | None:
    """Return the seconds of a delay such as "90s", "10m" or "1h30m"; None for another text."""
    text = text.strip()
    if not DELAY.fullmatch(text):
        return None
    return sum(float(number) * UNITS[unit] for number, unit in PART.findall(text))


def check_order(not_before: float | None, deadline: float | None) -> None:
    """Raise `InvalidTask` for a task that may start only when it is too late."""
    if not_before is not None and deadline is not None and deadline <= not_before:
        problem = f"{show_moment(deadline)} is not after not_before, {show_moment(not_before)}"
        raise InvalidTask("deadline", problem, "give a later deadline")


def show_moment(seconds: float) -> str:
    """Return a time for a person: local time, with its offset."""
    return datetime.fromtimestamp(seconds, tz=UTC).astimezone().isoformat(" ", "seconds")
