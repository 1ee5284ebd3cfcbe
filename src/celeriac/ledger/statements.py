"""The statements with which an executor writes its run, as expressions of SQLAlchemy: one source for all databases.

    this module ─► tools/prepared_statements.py ─► prepared.py: their SQL for SQLite, which needs no SQLAlchemy

`Statement` executes them. Each value that varies is a `bindparam`, also in INSERT; all other values are literals.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import (
    ClauseElement,
    Insert,
    Table,
    bindparam,
    case,
    delete,
    exists,
    false,
    func,
    insert,
    literal_column,
    null,
    select,
    update,
)

from celeriac.ledger.many_rows import insertion
from celeriac.ledger.schema import (
    EARLIER_EVENTS,
    INPUTS,
    OWNERS,
    RUNS,
    TASKS,
    UNACKNOWLEDGED_EVENTS,
    UNFINISHED,
    VERSION_TABLE,
)
from celeriac.task.result import Reason
from celeriac.task.state import State

RECORD_COLUMNS = (
    "state",
    "priority",
    "attempt",
    "lost",
    "moved",
    "not_before",
    "revoking",
    "reason",
    "detail",
    "execution",
)

ZERO = literal_column("0")
STARTED = TASKS.c.execution.like(literal_column("""'%"started":%'"""))
"""In JSON: inside a string, these quotes would be escaped."""

OF_RUN = bindparam("of_run")
OWNER = bindparam("owner_id")


def text(value: str) -> Any:
    """Return a literal of SQL for a word."""
    return literal_column(f"'{value}'")


def inserted(table: Table, *names: str, **others: Any) -> Insert:
    """Return an INSERT of one row whose columns of these names vary."""
    return insert(table).values({name: bindparam(name) for name in names} | others)


WAITING_OF_RUN = (TASKS.c.run == OF_RUN, UNFINISHED, TASKS.c.state == text(State.WAITING.value))
REVOKED = {
    "state": text(State.REVOKED.value),
    "reason": text(Reason.REVOKED.value),
    "detail": bindparam("detail"),
    "moved": bindparam("moved"),
    "execution": null(),
    "not_before": null(),
    "revoking": false(),
}
HAS_RUN = case(
    (
        TASKS.c.state == text(State.REVOKED.value),
        case((STARTED | (TASKS.c.attempt > literal_column("1")), literal_column("1")), else_=ZERO),
    ),
    else_=literal_column("1"),
)

STATEMENTS: dict[str, ClauseElement] = {
    # — the ledger —
    "SELECT_VERSION": select(VERSION_TABLE.c.version),
    "INSERT_VERSION": inserted(VERSION_TABLE, "version"),
    "TOUCH_LEDGER": update(VERSION_TABLE).values(version=VERSION_TABLE.c.version),
    # — owners —
    "INSERT_OWNER": inserted(OWNERS, "host", "boot_id", "pid", "process_started", "until"),
    "RENEW_LEASE": update(OWNERS).where(OWNERS.c.id == OWNER).values(until=bindparam("lease_end")),
    "SELECT_OWNER": select(OWNERS).where(OWNERS.c.id == OWNER).with_for_update(),
    "DELETE_OWNER": delete(OWNERS).where(OWNERS.c.id == OWNER),
    "SELECT_OWNER_OF_RUN": select(RUNS.c.owner).where(RUNS.c.id == OF_RUN).with_for_update(),
    "TAKE_RUN": update(RUNS).where(RUNS.c.id == OF_RUN).values(owner=OWNER, ended=null(), counts=null()),
    "RELEASE_RUNS": update(RUNS).where(RUNS.c.owner == OWNER).values(owner=null()),
    # — runs —
    "SELECT_SIMILAR_NAMES": select(RUNS.c.name).where(RUNS.c.name.like(bindparam("pattern"), escape="/")),
    "SELECT_RUN_OF_NAME": select(RUNS.c.id).where(RUNS.c.name == bindparam("wanted")),
    "HAS_OLDER_RUN": select(exists().where(RUNS.c.created < bindparam("before"), RUNS.c.id != OF_RUN)),
    "INSERT_RUN": inserted(
        RUNS,
        *("name", "source", "created", "content", "total"),
        submitted=false(),
        number=ZERO,
        acknowledged=ZERO,
    ),
    "SET_OUTPUT": update(RUNS).where(RUNS.c.id == OF_RUN).values(output=bindparam("output")),
    "SELECT_TOTAL": select(RUNS.c.total).where(RUNS.c.id == OF_RUN),
    "SELECT_NUMBERS": select(RUNS.c.number, RUNS.c.acknowledged).where(RUNS.c.id == OF_RUN),
    "SET_NUMBERS": update(RUNS)
    .where(RUNS.c.id == OF_RUN)
    .values(number=bindparam("number"), acknowledged=bindparam("acknowledged")),
    "CLOSE_RUN": update(RUNS)
    .where(RUNS.c.id == OF_RUN, RUNS.c.owner == OWNER)
    .values(owner=null(), ended=bindparam("ended"), counts=bindparam("counts")),
    "SELECT_INPUTS": select(INPUTS.c.inputs).where(INPUTS.c.run == OF_RUN),
    # — tasks —
    "SELECT_LAST_PLACE": select(func.max(TASKS.c.place)).where(TASKS.c.run == OF_RUN),
    "SELECT_UNFINISHED": select(TASKS).where(TASKS.c.run == OF_RUN, UNFINISHED).order_by(TASKS.c.place),
    "HAS_UNFINISHED": select(exists().where(TASKS.c.run == OF_RUN, UNFINISHED)),
    "COUNT_TASKS": select(TASKS.c.state, HAS_RUN.label("ran"), func.count().label("number"), func.max(TASKS.c.moved))
    .where(TASKS.c.run == OF_RUN)
    .group_by(TASKS.c.state, "ran"),
    "UPDATE_TASK_STATE": update(TASKS)
    .where(TASKS.c.run == OF_RUN, TASKS.c.key == bindparam("of_key"))
    .values({name: bindparam(name) for name in RECORD_COLUMNS}),
    "REVOKE_WAITING": update(TASKS).where(*WAITING_OF_RUN).values(REVOKED),
    "REVOKE_WAITING_TASK": update(TASKS).where(*WAITING_OF_RUN, TASKS.c.key == bindparam("of_key")).values(REVOKED),
    # — events —
    "SELECT_UNACKNOWLEDGED": select(UNACKNOWLEDGED_EVENTS)
    .where(UNACKNOWLEDGED_EVENTS.c.run == OF_RUN)
    .order_by(UNACKNOWLEDGED_EVENTS.c.number),
    "DELETE_ACKNOWLEDGED": delete(UNACKNOWLEDGED_EVENTS).where(
        UNACKNOWLEDGED_EVENTS.c.run == OF_RUN, UNACKNOWLEDGED_EVENTS.c.number <= bindparam("last")
    ),
}

INSERTIONS: dict[str, tuple[Table, bool]] = {
    "INSERT_TASK": (TASKS, False),
    "REPLACE_TASK": (TASKS, True),
    "INSERT_EARLIER_EVENT": (EARLIER_EVENTS, False),
    "INSERT_UNACKNOWLEDGED": (UNACKNOWLEDGED_EVENTS, False),
    "REPLACE_INPUTS": (INPUTS, True),
}
"""Inserts of rows that may exist already: each with its table, and whether such a row is replaced."""


def server_time(connection: Any) -> float:
    """Return the time of a server, in seconds since the epoch."""
    if connection.dialect.name == "postgresql":
        return float(connection.execute(select(func.extract("epoch", func.clock_timestamp()))).scalar_one())
    return float(connection.exec_driver_sql("SELECT UNIX_TIMESTAMP(NOW(6))").scalar_one())


@cache
def source_of(name: str, dialect: str) -> Any:
    """Return the expression of a statement for a dialect."""
    if name not in INSERTIONS:
        return STATEMENTS[name]
    table, replace = INSERTIONS[name]
    return insertion(table, dialect, replace=replace)
