"""How things are said on a terminal."""

from __future__ import annotations

from celeriac.task.event import Event

TAIL_LINES = 5


def on_one_line(text: str) -> str:
    """Whatever would move the cursor is shown as an escape: it comes from files and from commands."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def seconds(value: float) -> str:
    """A duration as a person would say it."""
    if value < 10:
        return f"{value:.2f} s"
    if value < 120:
        return f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def many(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def failure(event: Event) -> str:
    """Why an attempt failed, on one line."""
    parts = [event.detail or (event.reason.value if event.reason else "failed")]
    if event.attempt > 1:
        parts.append(f"attempt {event.attempt}")
    if event.execution is not None and event.execution.duration is not None:
        parts.append(f"after {seconds(event.execution.duration)}")
    return on_one_line(f"{event.key}: {', '.join(parts)}")


def last_words(event: Event) -> list[str]:
    """The last lines a failed command wrote to its standard error, or else to its output."""
    if event.execution is None:
        return []
    tail = event.execution.stderr.tail or event.execution.stdout.tail
    return [on_one_line(line.expandtabs()) for line in tail.splitlines()[-TAIL_LINES:]]
