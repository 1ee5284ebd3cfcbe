"""Changes of the executor, of its revokes, and of the ledger."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from celeriac.cluster.revoker import ControlRevoker, PendingRevokes
from celeriac.executor import dependencies
from celeriac.executor.dispatcher import Dispatcher
from celeriac.executor.executor import CeleryExecutor
from celeriac.executor.priority_queue import Entry, PriorityQueue
from celeriac.executor.recovery import Recovery
from celeriac.executor.result_handler import ResultHandler
from celeriac.executor.revocation import Revocation
from celeriac.executor.slots import Slots
from celeriac.task.result import Reason
from celeriac.task.state import State
from celeriac.task.task import Task
from tests.simulation.changes.change import change
from tests.simulation.clients import OwnedLedger

REAL_ADOPT, REAL_RESUME = Recovery._adopt, Recovery.resume
REAL_FLUSH, REAL_END_LOST = PendingRevokes.flush, Revocation.end_lost
REAL_UPDATE, REAL_LOST = ResultHandler.update_task_state, ResultHandler._handle_lost_tasks


def as_if_not_draining(method: Callable[..., None]) -> Callable[..., None]:
    def call(handler: ResultHandler, *args: Any) -> None:
        lifecycle = handler._lifecycle
        before, lifecycle.draining = lifecycle.draining, False
        try:
            method(handler, *args)
        finally:
            lifecycle.draining = before

    return call


def place_in_order(queue: PriorityQueue, task: Task, arrived: float = 0.0, order: int | None = None) -> Entry:
    serial = queue.reserve(1) if order is None else order
    return Entry(0, serial, serial, task, arrived)


def lost_before_result(handler: ResultHandler, now: float) -> None:
    handler.read_results = lambda ids, now: True  # type: ignore[method-assign]
    try:
        REAL_LOST(handler, now)
    finally:
        del handler.read_results


def update_and_delete(handler: ResultHandler, tracked: Any, result: Any, now: float) -> None:
    task_id = tracked.task.message_id
    REAL_UPDATE(handler, tracked, result, now)
    if result.state.is_final:
        handler._results.forget([task_id])


def revoke_unrecorded(revocation: Revocation, batch: Any) -> None:
    for tracked in batch:
        tracked.revoking = True
    revocation._send_revokes(batch)


def adopt_without_revokes(recovery: Recovery, in_flight: Any) -> None:
    REAL_ADOPT(recovery, [replace(unfinished, revoking=False) for unfinished in in_flight])


def adopt_before_revokes(recovery: Recovery, in_flight: Any) -> None:
    adopt_without_revokes(recovery, in_flight)
    tracked = [recovery._tracker.get(unfinished.task.key) for unfinished in in_flight if unfinished.revoking]
    recovery._revocation.revoke([task for task in tracked if task is not None])


def flush_once(pending: PendingRevokes, *, is_last: bool = False) -> None:
    REAL_FLUSH(pending, is_last=is_last)
    pending._pending.clear()


def resume_as_waiting(*states: State) -> Callable[..., None]:
    """Return a `Recovery.resume` that queues the tasks of these states again."""

    def resume(recovery: Recovery, *args: Any, **options: Any) -> None:
        recovery._in_flight_states -= set(states)
        REAL_RESUME(recovery, *args, **options)

    return resume


def end_lost_at_once(revocation: Revocation) -> None:
    for tracked, detail in revocation._lifecycle.never_resent:
        revocation._lifecycle.change_state(tracked, State.FAILED, Reason.LOST, detail)
    revocation._lifecycle.never_resent = []


def end_revoked_at_once(revocation: Revocation) -> None:
    lifecycle = revocation._lifecycle
    for tracked, detail in lifecycle.never_resent.copy():
        if tracked.revoking:
            lifecycle.never_resent.remove((tracked, detail))
            lifecycle.change_state(tracked, State.REVOKED, Reason.REVOKED, detail)
    REAL_END_LOST(revocation)


def check_without_owner(ledger: OwnedLedger) -> None:
    """Accept the writes of an executor whose tasks another one has taken over."""


change(
    "record-late",
    "Tasks are sent before the ledger says so: after a crash they wait again, in no slot, and run all the same.",
    (Dispatcher, "_record_before_sending", lambda dispatcher, batch, now: True),
)
change(
    "unsure-is-unsent",
    "A task whose message was not confirmed gives up its slot, and may run all the same.",
    (Dispatcher, "_keep_unconfirmed", Dispatcher._requeue),
)
change(
    "no-resend",
    "A task whose message was not confirmed is not sent again, even if the broker does not have it.",
    (Dispatcher, "_unconfirmed", lambda dispatcher: iter(())),
)
change(
    "no-slots",
    "More tasks are in flight than there are slots.",
    (Slots, "open", property(lambda slots: slots.parallelism)),
)
change(
    "first-come",
    "The first task goes first, not the most urgent one.",
    (PriorityQueue, "place", place_in_order),
)
change(
    "needs-any-end",
    "A task starts although one that it needs has failed.",
    (dependencies, "skips", lambda task, end_state: False),
)
change(
    "retry-in-drain",
    "A task that fails is tried again by an executor that drains.",
    (ResultHandler, "fail", as_if_not_draining(ResultHandler.fail)),
)
change(
    "lost-retry-in-drain",
    "A task whose worker dies is tried again by an executor that drains.",
    (ResultHandler, "_handle_lost_worker", as_if_not_draining(ResultHandler._handle_lost_worker)),
)
change(
    "lost-in-drain",
    "An executor that drains tells a task as lost whose message may turn up again: it runs after its end was told.",
    (Revocation, "end_lost", end_lost_at_once),
)
change(
    "lost-is-revoked",
    "A revoked task that was not found is told as revoked before its claim is cancelled: its message may turn up.",
    (Revocation, "end_lost", end_revoked_at_once),
)
change(
    "lost-before-result",
    "A task that was not found is taken for lost before its result is read: it runs again after its success.",
    (ResultHandler, "_handle_lost_tasks", lost_before_result),
)
change(
    "events-before-ledger",
    "Events are told before the ledger has them: after a crash they come again under other numbers.",
    (CeleryExecutor, "read_events", lambda executor: executor._event_reader.take_with_unacknowledged()),
)
change(
    "results-deleted-early",
    "A result is deleted before the ledger has its event: after a crash the task runs again.",
    (ResultHandler, "update_task_state", update_and_delete),
)
change(
    "revoke-unrecorded",
    "The ledger does not know of a revoke: after a crash the task goes on.",
    (Revocation, "revoke", revoke_unrecorded),
)
change(
    "revokes-not-resumed",
    "The next executor does not repeat the revokes of a killed one.",
    (Recovery, "_adopt", adopt_without_revokes),
)
change(
    "revokes-read-late",
    "The next executor reads the result of a revoked task before it knows of the revoke: another attempt follows.",
    (Recovery, "_adopt", adopt_before_revokes),
)
change(
    "revoke-tried-once",
    "A revoke that a server did not take is not sent again.",
    (PendingRevokes, "flush", flush_once),
)
change(
    "broadcast-alone",
    "A revoke is told to the workers of this moment only: one that starts later runs the task.",
    (ControlRevoker, "_cancel_claims", lambda revoker, ids, unless_started: None),
)
change(
    "adopt-nothing",
    "The next executor queues the tasks in flight again, in no slot.",
    (Recovery, "resume", resume_as_waiting(State.PUBLISHING, State.QUEUED, State.RUNNING)),
)
change(
    "publishing-is-waiting",
    "The next executor takes a task that was being sent for one that was not.",
    (Recovery, "resume", resume_as_waiting(State.PUBLISHING)),
)
change(
    "two-owners",
    "The ledger takes the writes of an executor that was frozen while another one took over.",
    (OwnedLedger, "_check", check_without_owner),
)
