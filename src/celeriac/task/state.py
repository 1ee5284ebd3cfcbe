"""Every state a task can be in, and every move between two of them.

`MOVES` is the only place that says what may follow what; `docs/states.md` is drawn from it.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    WAITING = "waiting"
    """In the executor's own queue: never sent yet, or due again after a failed attempt."""

    PUBLISHING = "publishing"
    """Handed to the publisher, and the broker has not confirmed it: it may be there, or not."""

    QUEUED = "queued"
    """With the broker; no worker has started it."""

    RUNNING = "running"
    """A worker has started it."""

    SUCCESS = "success"
    FAILED = "failed"

    REVOKED = "revoked"
    """Called back before it ended by itself."""

    SKIPPED = "skipped"
    """It never ran: a task that it needs did not end well."""

    @property
    def is_final(self) -> bool:
        return not TRANSITIONS[self]


TRANSITIONS: dict[State, dict[State, str]] = {
    State.WAITING: {
        State.PUBLISHING: "it is among the most urgent and a slot is open",
        State.FAILED: "the broker stayed away past the publish deadline, or the caller failed it",
        State.SUCCESS: "the caller said it is done",
        State.REVOKED: "revoked while it waited",
        State.SKIPPED: "a task that it needs did not end well",
    },
    State.PUBLISHING: {
        State.QUEUED: "the broker has it",
        State.WAITING: "the broker does not have it: sent again after a back-off",
        State.RUNNING: "its result came before the broker's confirmation",
        State.SUCCESS: "its result came before the broker's confirmation",
        State.FAILED: "it cannot be sent, or nobody could say until the publish deadline",
        State.REVOKED: "revoked while nobody knew whether the broker had it",
    },
    State.QUEUED: {
        State.RUNNING: "a worker started it",
        State.PUBLISHING: "neither the broker nor a worker has it any more: it is sent again",
        State.WAITING: "the attempt failed and retries are left, or its worker was lost",
        State.SUCCESS: "it ended before its start was seen",
        State.FAILED: "it ended before its start was seen, and no retries are left",
        State.REVOKED: "revoked before a worker started it",
    },
    State.RUNNING: {
        State.QUEUED: "its worker handed it back, or the broker delivers it again",
        State.WAITING: "the attempt failed and retries are left, or its worker was lost",
        State.SUCCESS: "it ended well",
        State.FAILED: "it ended badly and no retries are left",
        State.REVOKED: "revoked, and its processes are dead",
    },
    State.SUCCESS: {},
    State.FAILED: {},
    State.REVOKED: {},
    State.SKIPPED: {},
}
"""What may follow each state, and when it does. A state that nothing follows is final."""
