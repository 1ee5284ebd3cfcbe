"""Queue tasks of a submitted run again, for the next service that takes the run.

ended tasks that the filter names ─► waiting, under new ids; their last ends become earlier events
the run                           ─► has not ended, and has no owner

A run with a live owner cannot be changed: the owner has its tasks in memory. The priority of a waiting task can only be
changed here while the run has no owner, too.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

from msgspec.structs import replace
from sqlalchemy import Connection, bindparam, delete, select, update

from celeriac.errors import InvalidConfig
from celeriac.ledger.cancel import key_conditions
from celeriac.ledger.codec import MalformedRow, decode_task, encode_event
from celeriac.ledger.liveness import owner_label
from celeriac.ledger.many_rows import insert_rows
from celeriac.ledger.owner import is_alive
from celeriac.ledger.retry import RetryFilter
from celeriac.ledger.run_writer import FETCH_SIZE
from celeriac.ledger.schema import EARLIER_EVENTS, OWNERS, RUNS, TASKS, UNFINISHED
from celeriac.ledger.views import task_view
from celeriac.task.event import Event, priority_event
from celeriac.task.state import State
from celeriac.task.task import new_task_id

MAX_TASKS = 100_000  # tasks in one transaction: other processes wait for it
WAITING = State.WAITING.value
QUEUE_AGAIN = (
    update(TASKS)
    .where(TASKS.c.run == bindparam("of_run"), TASKS.c.key == bindparam("of_key"))
    .values(
        id=bindparam("new_id"),
        state=WAITING,
        attempt=1,
        lost=0,
        arrived=bindparam("now"),
        moved=bindparam("now"),
        not_before=None,
        revoking=False,
        reason=None,
        detail=None,
        execution=None,
    )
)


def requeue(connection: Connection, run: int, name: str, retry: RetryFilter) -> int:
    """Queue tasks again. Return their number. Raises `InvalidConfig` for a run that cannot be changed here."""
    row = take_unowned(connection, run, name)
    if not row.submitted:
        raise InvalidConfig(f"run {name!r}", "was not submitted, so no service takes it", f"run celeriac retry {name}")
    tasks = tasks_to_queue(connection, run, retry)
    if len(tasks) > MAX_TASKS:
        problem = f"more than {MAX_TASKS:,} tasks would run again"
        raise InvalidConfig(f"run {name!r}", problem, "name fewer keys, or use celeriac retry")
    if not tasks:
        return 0
    ends = [last_end(task, row.number + n) for n, task in enumerate(tasks, 1)]
    insert_rows(connection, EARLIER_EVENTS, [end for end in ends if end is not None])
    now = time.time()
    parameters = [{"of_run": run, "of_key": task.key, "new_id": new_task_id(), "now": now} for task in tasks]
    connection.execute(QUEUE_AGAIN, parameters)
    values = {"ended": None, "owner": None, "counts": None, "number": row.number + len(tasks)}
    connection.execute(update(RUNS).where(RUNS.c.id == run).values(**values))
    return len(tasks)


def reprioritise(connection: Connection, run: int, name: str, key: str, priority: int, asked_by: str) -> bool:
    """Change the priority of a waiting task, and record the event. Return whether there is one. Raises as `requeue`
    does."""
    row = take_unowned(connection, run, name)
    of_task = (TASKS.c.run == run, TASKS.c.key == key, UNFINISHED, TASKS.c.state == WAITING)
    task_row = connection.execute(select(TASKS).where(*of_task)).one_or_none()
    if task_row is None:
        return False
    connection.execute(update(TASKS).where(*of_task).values(priority=priority))
    with suppress(MalformedRow):
        task = replace(decode_task(key, task_row), priority=priority)
        event = priority_event(task, task_row.priority, asked_by, time.time(), row.number + 1)
        insert_rows(connection, EARLIER_EVENTS, [event_row(run, event)])
        connection.execute(update(RUNS).where(RUNS.c.id == run).values(number=event.number))
    return True


def take_unowned(connection: Connection, run: int, name: str) -> Any:
    """Return the row of a run, and lock it. A dead owner loses it. Raises `InvalidConfig` for a live owner."""
    row = connection.execute(select(RUNS).where(RUNS.c.id == run).with_for_update()).one()
    if row.owner is None:
        return row
    owner = connection.execute(select(OWNERS).where(OWNERS.c.id == row.owner).with_for_update()).one_or_none()
    if owner is not None and is_alive(connection, owner):
        raise InvalidConfig(f"run {name!r}", f"is running in {owner_label(owner)}", "wait for its end")
    # The owner may be frozen and wake up later. Without its row, it cannot write then.
    connection.execute(delete(OWNERS).where(OWNERS.c.id == row.owner))
    connection.execute(update(RUNS).where(RUNS.c.id == run).values(owner=None))
    return row


def tasks_to_queue(connection: Connection, run: int, retry: RetryFilter) -> Sequence[Any]:
    """Return the rows of the tasks to queue again, at most one more than `MAX_TASKS`."""
    ended = select(TASKS).where(TASKS.c.run == run, ~UNFINISHED).order_by(TASKS.c.place)
    if not retry.keys:
        failed, success = State.FAILED.value, State.SUCCESS.value
        ended = ended.where(TASKS.c.state == failed if retry.failed else TASKS.c.state != success)
    if retry.where is not None:
        named = ended.where(*retry.where.conditions()).execution_options(yield_per=FETCH_SIZE)
        with connection.execute(named) as rows:
            return list(islice(filter(retry.where.matches, rows), MAX_TASKS + 1))
    batches = key_conditions(retry.keys or None)
    ended = ended.limit(MAX_TASKS + 1)
    return [row for condition in batches for row in connection.execute(ended.where(*condition))]


def last_end(row: Any, number: int) -> dict[str, Any] | None:
    """Return the row of an earlier event for the end of a task; None for a task that cannot be decoded."""
    try:
        view = task_view(row)
    except MalformedRow:
        return None
    return event_row(row.run, view.last_event(number))


def event_row(run: int, event: Event) -> dict[str, Any]:
    return {"run": run, "number": event.number, "key": str(event.key), "event": encode_event(event)}
