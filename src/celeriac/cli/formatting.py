"""Values as text for a terminal."""

from __future__ import annotations

import socket

from celeriac.errors import on_one_line
from celeriac.task.event import Event
from celeriac.task.task import Command
from celeriac.values_as_text import count, format_seconds, format_time, shorten_command

__all__ = ("count", "failure_line", "format_seconds", "format_time", "on_one_line", "stderr_tail")

TAIL_LINES = 5


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


def stderr_tail(event: Event) -> list[str]:
    """Return the last lines of a failed command's standard error, or of its standard output."""
    if event.execution is None:
        return []
    tail = event.execution.stderr.tail or event.execution.stdout.tail
    return [on_one_line(line.expandtabs()) for line in tail.splitlines()[-TAIL_LINES:]]
