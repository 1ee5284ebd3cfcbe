"""The tables of the ledger, their version, and the migrations between versions.

celeriac_ledger  the version, in one row
celeriac_owner   a row for each running executor; its transactions count only while the row exists
celeriac_run     a group of tasks; the counts of its tasks by state while it has no owner
celeriac_order   requests of other processes to a run's owner: cancel one task, or all tasks
celeriac_task    a row for each task: the task and its current state
celeriac_move    events of a task's earlier attempts; the row of the task shows only the last attempt
celeriac_event   final events that a caller has not acknowledged
celeriac_input   the inputs of a run that its tasks do not hold
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    and_,
    insert,
    literal_column,
    select,
    true,
    update,
)

from celeriac.ledger.stored_version import version_of
from celeriac.task.state import State

VERSION = 1

ROW_ID = BigInteger().with_variant(Integer, "sqlite")  # the only type that SQLite numbers by itself
EPOCH_SECONDS = Float(53)  # seconds since the epoch

TABLES = MetaData()
VERSION_TABLE = Table("celeriac_ledger", TABLES, Column("version", Integer, nullable=False))
OWNERS = Table(
    "celeriac_owner",
    TABLES,
    Column("id", ROW_ID, primary_key=True),
    Column("host", String(255), nullable=False),
    Column("boot_id", String(64), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("process_started", Float(53), nullable=False),  # seconds from the boot, or since the epoch: see `owner`
    Column("until", EPOCH_SECONDS, nullable=False),
    sqlite_autoincrement=True,  # an id is never used twice, even after its row is deleted
)
RUNS = Table(
    "celeriac_run",
    TABLES,
    Column("id", ROW_ID, primary_key=True),
    Column("name", String(255), nullable=False, unique=True),
    Column("source", Text),
    Column("submitted", Boolean, nullable=False, default=False),
    Column("created", EPOCH_SECONDS, nullable=False),
    Column("ended", EPOCH_SECONDS),
    Column("owner", ROW_ID),
    Column("number", BigInteger, nullable=False, default=0),
    Column("acknowledged", BigInteger, nullable=False, default=0),
    Column("output", Text),
    Column("content", String(64)),
    Column("total", BigInteger),
    Column("counts", Text),
    sqlite_autoincrement=True,
)
SUBMITTED = and_(RUNS.c.submitted == true(), RUNS.c.total.is_not(None), RUNS.c.ended.is_(None))
"""Runs that `celeriac serve` may take: submitted, stored to the last task, and not ended."""

CONTROL_REQUESTS = Table(
    "celeriac_order",
    TABLES,
    Column("id", ROW_ID, primary_key=True),
    Column("run", ROW_ID, nullable=False, index=True),
    Column("key", Text),
    Column("what", String(16), nullable=False),
    Column("asked", EPOCH_SECONDS, nullable=False),
)
TASKS = Table(
    "celeriac_task",
    TABLES,
    Column("run", ROW_ID, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("place", BigInteger, nullable=False),
    Column("id", String(255), nullable=False),
    Column("digest", BigInteger, nullable=False),
    Column("payload", Text, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("arrived", EPOCH_SECONDS, nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("lost", Integer, nullable=False),
    Column("moved", EPOCH_SECONDS, nullable=False),
    Column("not_before", EPOCH_SECONDS),
    Column("revoking", Boolean, nullable=False),
    Column("reason", String(32)),
    Column("detail", Text),
    Column("execution", Text),
)
UNFINISHED = TASKS.c.state.in_([literal_column(f"'{state.value}'") for state in State if not state.is_final])
"""With literal values: SQLite uses a partial index only if the condition holds no bound parameters."""

UNFINISHED_INDEX = Index(
    "celeriac_task_unfinished", TASKS.c.run, TASKS.c.priority.desc(), TASKS.c.place, sqlite_where=UNFINISHED
)
"""A partial index on PostgreSQL, too: `migrate` sets that, because setting it here would import the dialect."""

Index("celeriac_task_place", TASKS.c.run, TASKS.c.place)
EARLIER_EVENTS = Table(
    "celeriac_move",
    TABLES,
    Column("run", ROW_ID, primary_key=True),
    Column("number", BigInteger, primary_key=True),
    Column("key", Text, nullable=False),
    Column("event", Text, nullable=False),
    Index("celeriac_move_of_task", "run", "key"),
)
UNACKNOWLEDGED_EVENTS = Table(
    "celeriac_event",
    TABLES,
    Column("run", ROW_ID, primary_key=True),
    Column("number", BigInteger, primary_key=True),
    Column("key", Text, nullable=False),
    Column("event", Text, nullable=False),
)

INPUTS = Table(
    "celeriac_input",
    TABLES,
    Column("run", ROW_ID, primary_key=True),
    Column("inputs", Text, nullable=False),
)
"""A ledger of version 1 may lack this table: `add_tables` adds it. Celeriacs that do not know it ignore it."""

MIGRATIONS: dict[int, Callable[[Connection], None]] = {}
"""For each version, the function that migrates it to the next version."""


def read_version(connection: Connection) -> int | None:
    """Return the version of the tables, or None if there is no ledger yet. A version that is no number is 0."""
    if not connection.dialect.has_table(connection, VERSION_TABLE.name):
        return None
    return version_of(connection.execute(select(VERSION_TABLE.c.version)).scalar())


def has_all_tables(connection: Connection) -> bool:
    """Return whether a ledger of this version has the tables that were added to the version later."""
    return bool(connection.dialect.has_table(connection, INPUTS.name))


def add_tables(connection: Connection) -> None:
    """Create the tables that were added to this version later, in the caller's transaction."""
    INPUTS.create(connection, checkfirst=True)


def migrate(connection: Connection) -> None:
    """Create the tables, or migrate older tables to this version, in the caller's transaction."""
    version = read_version(connection)
    if version is None:
        if connection.dialect.name == "postgresql":
            UNFINISHED_INDEX.dialect_options["postgresql"]["where"] = UNFINISHED
        TABLES.create_all(connection)
        connection.execute(insert(VERSION_TABLE).values(version=VERSION))
        return
    while version < VERSION:
        MIGRATIONS[version](connection)
        version += 1
    connection.execute(update(VERSION_TABLE).values(version=version))
