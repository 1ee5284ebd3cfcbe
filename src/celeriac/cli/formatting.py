"""Values as text for a terminal."""

from __future__ import annotations

import shlex
import socket
from datetime import UTC, datetime

from celeriac.errors import on_one_line
from celeriac.task.event import Event
from celeriac.task.task import Command

__all__ = ("count", "failure_line", "format_seconds", "format_time", "on_one_line", "stderr_tail")

TAIL_LINES = 5
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


def failure_line(event: Event, command: Command | None = None) -> str:
    """Return one line that says why an attempt failed. A command is shown behind the key, shortened."""
    parts = [event.detail or (event.reason.value if event.reason else "failed")]
    if event.attempt > 1:
        parts.append(f"attempt {event.attempt}")
    if event.execution is not None and event.execution.duration is not None:
        parts.append(f"after {format_seconds(event.execution.duration)}")
    if event.execution is not None and event.execution.host != socket.gethostname():
        parts.append(f"on {event.execution.host}")
    name = str(event.key) if command is None else f"{event.key} ({shorten_command(command)})"
    return on_one_line(f"{name}: {', '.join(parts)}")


def shorten_command(command: Command) -> str:
    """Return a command as one line, or its beginning if it is long."""
    text = " ".join((command if isinstance(command, str) else shlex.join(command)).split())
    return text if len(text) <= MAX_COMMAND_SHOWN else f"{text[: MAX_COMMAND_SHOWN - 1]}…"


def stderr_tail(event: Event) -> list[str]:
    """Return the last lines of a failed command's standard error, or of its standard output."""
    if event.execution is None:
        return []
    tail = event.execution.stderr.tail or event.execution.stdout.tail
    return [on_one_line(line.expandtabs()) for line in tail.splitlines()[-TAIL_LINES:]]
