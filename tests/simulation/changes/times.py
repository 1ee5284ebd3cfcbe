"""Changes of `not_before` and `deadline`."""

from __future__ import annotations

from collections.abc import Collection
from types import SimpleNamespace

from celeriac.executor import priority_queue, result_handler
from celeriac.executor.revocation import Revocation
from celeriac.executor.tracker import Tracked
from celeriac.task.result import Reason
from celeriac.task.state import State
from celeriac.worker import execute_command
from tests.simulation.changes.change import change

REAL_CANCEL = Revocation._cancel


def end_overdue_at_once(revocation: Revocation, unstarted: Collection[Tracked]) -> None:
    for tracked in unstarted:
        if tracked.is_overdue:
            revocation._lifecycle.change_state(tracked, State.FAILED, Reason.DEADLINE, "its deadline has passed")
    REAL_CANCEL(revocation, [tracked for tracked in unstarted if not tracked.is_overdue])


change(
    "sent-early",
    "A task is sent before its time.",
    (priority_queue, "starts_later", lambda entry, when: False),
)
change(
    "late-retry",
    "A task is tried again although its deadline has passed.",
    (result_handler, "is_overdue", lambda task, when: False),
)
change(
    "start-after-deadline",
    "A worker starts a task after its deadline, if no executor has cancelled it.",
    (execute_command, "time", SimpleNamespace(time=lambda: 0.0)),
)
change(
    "overdue-at-once",
    "A task in flight whose deadline has passed has ended at once, and a worker may still start it.",
    (Revocation, "_cancel", end_overdue_at_once),
)
