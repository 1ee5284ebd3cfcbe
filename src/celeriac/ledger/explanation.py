"""The history of a task as the ledger has it: each attempt, without the events in between."""

from __future__ import annotations

import time

from celeriac.executor.requests import CurrentStatus, Explanation, WaitReason
from celeriac.executor.stored_status import WAITS_FOR, ended_status, in_milliseconds
from celeriac.ledger.database import Database
from celeriac.ledger.views import RunState, RunView, TaskView, earlier_events, find_task
from celeriac.task.event import Event
from celeriac.task.result import Execution
from celeriac.task.state import State


def explain_from_ledger(database: Database, run: RunView, key: str) -> Explanation:
    """Read the attempts of a task of a run. Raises `InvalidConfig` for an unknown task, and `LedgerError`."""
    view = find_task(database, run, key)
    task = view.task
    events = [*earlier_events(database, run.id, key)]
    if view.state is not State.WAITING:
        last = Event(
            key=key,
            state=view.state,
            when=view.changed_at,
            id=task.message_id,
            attempt=task.attempt,
            reason=view.reason,
            detail=view.detail,
            execution=view.execution,
        )
        events.append(last)
    return Explanation(
        key=key,
        state=view.state,
        id=task.message_id,
        attempt=task.attempt,
        queue=task.queue,
        priority=task.priority,
        arrived=view.arrived,
        moves=tuple(event for end in events for event in with_start(end)),
        now=status_in_ledger(view, run),
    )


def with_start(end: Event) -> list[Event]:
    """Return the events of an attempt: its end, and before it the start, if the execution has the start time."""
    execution = end.execution
    if execution is None or execution.started is None or end.state is State.RUNNING:
        return [end]
    start = Event(
        key=end.key,
        state=State.RUNNING,
        when=execution.started,
        attempt=end.attempt,
        id=end.id,
        execution=Execution(host=execution.host, pid=execution.pid),
    )
    return [start, end]


def status_in_ledger(view: TaskView, run: RunView) -> CurrentStatus:
    if view.state.is_final:
        return ended_status(view.state, view.detail)
    words = f"{view.state.value} since {in_milliseconds(view.changed_at)}"
    retry = view.state is State.WAITING and view.not_before is not None
    if retry and view.not_before is not None:
        words += f", next attempt at {in_milliseconds(view.not_before)}"
    elif view.state is State.WAITING and view.task.not_before is not None and view.task.not_before > time.time():
        words += f", not before {in_milliseconds(view.task.not_before)}"
    if run.owner is not None:
        words += f"; its run belongs to {run.owner}"
    elif run.state is RunState.SUBMITTED:
        words += "; no service has taken its run yet: celeriac serve with this ledger takes it"
    else:
        words += "; no process runs it now: celeriac retry resumes it"
    return CurrentStatus(waits_for=WaitReason.RETRY if retry else WAITS_FOR[view.state], words=words)
