"""The current status of a task as stored events show it: those of a file, or of the ledger."""

from __future__ import annotations

from datetime import UTC, datetime

from celeriac.executor.requests import CurrentStatus, WaitReason
from celeriac.task.state import State

WAITS_FOR = {
    State.WAITING: WaitReason.HEARTBEAT,
    State.PUBLISHING: WaitReason.CONFIRMATION,
    State.QUEUED: WaitReason.START,
    State.RUNNING: WaitReason.END,
}


def ended_status(state: State, detail: str | None) -> CurrentStatus:
    reason = f": {detail}" if detail else ""
    return CurrentStatus(waits_for=WaitReason.NOTHING, words=f"ended: {state.value}{reason}")


def in_milliseconds(when: float) -> str:
    """Return seconds since the epoch as local time."""
    return datetime.fromtimestamp(when, tz=UTC).astimezone().replace(tzinfo=None).isoformat(" ", "milliseconds")
