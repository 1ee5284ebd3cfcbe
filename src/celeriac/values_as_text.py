"""Values as text for a person: in a terminal, or on a page."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime

from celeriac.task.task import Command

MAX_COMMAND_SHOWN = 60  # characters


def format_seconds(value: float) -> str:
    """Return a duration as a person would write it."""
    if value < 10:
        return f"{value:.2f} s"
    if value < 120:
        return f"{value:.0f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"


def format_time(when: float, *, timespec: str = "seconds") -> str:
    """Return seconds since the epoch as local time. See `datetime.isoformat` for `timespec`."""
    return datetime.fromtimestamp(when, tz=UTC).astimezone().replace(tzinfo=None).isoformat(" ", timespec)


def count(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun: "1 task", "2,000 tasks"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def shorten_command(command: Command, length: int = MAX_COMMAND_SHOWN) -> str:
    """Return a command as one line, or its beginning if it is long."""
    text = " ".join((command if isinstance(command, str) else shlex.join(command)).split())
    return text if len(text) <= length else f"{text[: length - 1]}…"
