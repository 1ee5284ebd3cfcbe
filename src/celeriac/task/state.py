"""The states of a task and the transitions between them.

`TRANSITIONS` is the only definition of the allowed transitions; `docs/states.md` is generated from it.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """The state of a task."""

    WAITING = "waiting"
    """In the executor's queue: not sent yet, blocked by dependencies or until its `not_before`, or due again after a
    failed attempt."""

    PUBLISHING = "publishing"
    """Given to the publisher, and not confirmed by the broker: the broker may or may not have it."""

    QUEUED = "queued"
    """At the broker; no worker has started it."""

    RUNNING = "running"
    """A worker has started it."""

    SUCCESS = "success"
    FAILED = "failed"

    REVOKED = "revoked"
    """Cancelled before it ended by itself."""

    SKIPPED = "skipped"
    """It never ran, because a task that it needs did not succeed."""

    is_final: bool
    """Whether no other state can follow."""


TRANSITIONS: dict[State, dict[State, str]] = {
    State.WAITING: {
        State.PUBLISHING: "a slot is open, its `not_before` has come, and no ready task is more urgent",
        State.FAILED: (
            "its `deadline` has passed, the broker was unavailable until the publish deadline, "
            "or the caller failed the task"
        ),
        State.SUCCESS: "the caller set it",
        State.REVOKED: "revoked while it waited",
        State.SKIPPED: "a task that it needs did not succeed",
    },
    State.PUBLISHING: {
        State.QUEUED: "the broker has confirmed it",
        State.WAITING: "the broker does not have it; it is re-sent after a delay",
        State.RUNNING: "its result came before the confirmation of the broker",
        State.SUCCESS: "its result came before the confirmation of the broker",
        State.FAILED: (
            "it cannot be sent, the broker did not confirm it until the publish deadline, or its `deadline` has passed"
        ),
        State.REVOKED: "revoked before the broker had confirmed it",
    },
    State.QUEUED: {
        State.RUNNING: "a worker started it",
        State.PUBLISHING: "neither the broker nor a worker has it; it is re-sent",
        State.WAITING: "the attempt failed and retries are left, or its worker is dead",
        State.SUCCESS: "it succeeded before the executor learned of its start",
        State.FAILED: (
            "it failed before the executor learned of its start and no retries are left, or no worker had started it "
            "by its `deadline`"
        ),
        State.REVOKED: "revoked before a worker started it",
    },
    State.RUNNING: {
        State.QUEUED: "its worker returned it to the broker, or the broker redelivers it",
        State.WAITING: "the attempt failed and retries are left, or its worker is dead",
        State.SUCCESS: "its command succeeded",
        State.FAILED: "its command failed, and no retries are left or its `deadline` has passed",
        State.REVOKED: "revoked, and its processes have ended",
    },
    State.SUCCESS: {},
    State.FAILED: {},
    State.REVOKED: {},
    State.SKIPPED: {},
}
"""The states that may follow each state, and when they do. A state without a successor is final."""

for each in State:
    each.is_final = not TRANSITIONS[each]
