"""Divide the life of a task into the parts that a trace shows."""

from __future__ import annotations

from dataclasses import dataclass

from celeriac.task.state import State
from celeriac.telemetry.telemetry import EndedTask, Step

FAILURES = (State.WAITING, State.PUBLISHING, State.FAILED)


@dataclass(frozen=True, slots=True)
class Part:
    """A time in which a task was in one state: waiting, publishing, queued at the broker, or running."""

    state: str
    attempt: int
    start: float
    """Seconds since the epoch, as `end`."""

    end: float
    failure: str | None = None
    """Why the attempt failed with which this part ended."""


def parts_of(task: EndedTask) -> list[Part]:
    """Return the parts of a task, without gaps from its arrival to its end."""
    parts: list[Part] = []
    state, start = str(State.WAITING), task.arrived
    for step in task.steps:
        end = max(start, step.when)
        if state == State.QUEUED and step.started is not None and step.state != State.RUNNING:
            begun = min(max(start, step.started), end)  # its start was not reported; the clocks may differ
            parts.append(Part(state, step.attempt, start, begun))
            state, start = str(State.RUNNING), begun
        parts.append(Part(state, step.attempt, start, end, failure_of(step)))
        state, start = step.state, end
    return parts


def failure_of(step: Step) -> str | None:
    """Return why an attempt failed with this step; None if none did."""
    if step.state == State.FAILED:
        return step.reason or str(State.FAILED)
    return step.reason if step.state in FAILURES else None
