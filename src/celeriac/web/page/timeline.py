"""The life of a task as moments and as spans of time: values in, values out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from celeriac.executor.requests import Explanation
from celeriac.task.event import Event
from celeriac.task.state import State
from celeriac.web.page import display

WIDTH = 1000.0  # units of the drawing
MIN_WIDTH = 2.0  # units: a shorter span could not be seen
MAX_ROWS = 8  # attempts that are drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A task has entered a state."""

    when: float
    state: str
    lasted: float | None
    """Seconds until the next moment, or until now; None for the end."""

    attempt: int | None = None
    place: str = ""
    reason: str = ""
    is_of_next: bool = False
    """Whether the task waits for this attempt already, and not for the one after it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """The time in one state, as a bar."""

    state: str
    row: int
    """That of its attempt."""

    x: float
    width: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """The life of a task."""

    moments: Sequence[Moment]
    spans: Sequence[Span]
    rows: int
    left_out: int = 0


def timeline_of(history: Explanation, now: float) -> Timeline:
    """Return the life of a task from its arrival to its end, or to now."""
    moves = history.moves
    starts = [event.when for event in moves]
    moments: list[Moment] = []
    if history.arrived is not None:
        first = starts[0] if starts else now
        moments.append(moment(history.arrived, State.WAITING.value, first))
    for index, event in enumerate(moves):
        is_last = index == len(moves) - 1
        until = None if is_last and event.state.is_final else now if is_last else starts[index + 1]
        moments.append(
            moment(
                event.when,
                event.state.value,
                until,
                attempt=event.attempt,
                place=place(event),
                reason=reason(event),
                is_of_next=event.priority is not None,
            )
        )
    spans = spans_of(moments)
    rows = max((each.row for each in spans), default=-1) + 1
    return Timeline(moments=moments, spans=spans, rows=rows, left_out=history.left_out)


def moment(
    when: float,
    state: str,
    until: float | None,
    *,
    attempt: int | None = None,
    place: str = "",
    reason: str = "",
    is_of_next: bool = False,
) -> Moment:
    lasted = None if until is None else max(0.0, until - when)
    return Moment(
        when=when, state=state, lasted=lasted, attempt=attempt, place=place, reason=reason, is_of_next=is_of_next
    )


def spans_of(moments: Sequence[Moment]) -> list[Span]:
    """Return the bars of the last attempts, one row for each attempt."""
    timed = [each for each in moments if each.lasted is not None]
    rows = rows_of(timed)
    shown = sorted(set(rows))[-MAX_ROWS:]
    drawn = [(each, shown.index(row)) for each, row in zip(timed, rows, strict=True) if row in shown]
    begin = min((each.when for each, _ in drawn), default=0.0)
    length = max((each.when + (each.lasted or 0.0) for each, _ in drawn), default=0.0) - begin
    scale = WIDTH / length if length > 0 else 0.0
    return [span(each, row, begin, scale) for each, row in drawn]


def rows_of(moments: Sequence[Moment]) -> list[int]:
    """Return the attempt that each moment belongs to: a task that waits for its next attempt belongs to that."""
    rows, attempt = [], 1
    for each in moments:
        if each.state == State.WAITING.value and each.attempt is not None and not each.is_of_next:
            attempt = each.attempt + 1
        elif each.attempt is not None:
            attempt = each.attempt
        rows.append(attempt)
    return rows


def span(each: Moment, row: int, begin: float, scale: float) -> Span:
    x = min((each.when - begin) * scale, WIDTH - MIN_WIDTH)
    width = min(max((each.lasted or 0.0) * scale, MIN_WIDTH), WIDTH - x)
    return Span(state=each.state, row=row, x=round(x, 2), width=round(width, 2))


def place(event: Event) -> str:
    execution = event.execution
    if execution is None:
        return ""
    return execution.host if execution.pid is None else f"{execution.host}, pid {execution.pid}"


def reason(event: Event) -> str:
    """Return why a task entered the state."""
    parts = [event.detail or (event.reason.value.replace("_", " ") if event.reason is not None else "")]
    if event.retry_in is not None:
        parts.append(f"next attempt after {display.duration(event.retry_in)}")
    return ", ".join(filter(None, parts))
