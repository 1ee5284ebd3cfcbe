"""Checks of a database as result backend or ledger: PostgreSQL, also behind PgBouncer, and others as far as they go."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from celery import Celery
from sqlalchemy import Connection, Engine, create_engine

from celeriac.backend.results.database import make_engine
from celeriac.backend.results.trigger import TRIGGER, ResultTrigger, TriggerState
from celeriac.cluster.preflight import check_backend
from celeriac.config.postgres import connect_timeouts, driver_of, engine_options
from celeriac.doctor.check import Check, Problem, Subject, error, warning
from celeriac.doctor.server import (
    CLOCK,
    CONNECTIONS_CHECK,
    LOGIN_CHECK,
    REACHABLE,
    RIGHTS_CHECK,
    WRITABLE,
    ServerFacts,
    attempt,
    owner_of,
)
from celeriac.errors import InvalidConfig
from celeriac.ledger.database import Database, normalise_url

BY_EVENTS = "task events and polling name changed results"
STATE = """
SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on',
       coalesce(has_schema_privilege(current_schema(), 'CREATE'), false),
       extract(epoch FROM clock_timestamp()), pg_backend_pid(),
       (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'),
       current_setting('max_connections')::int
"""
FORBIDDEN_TABLES = """
SELECT relname FROM pg_class
WHERE relkind IN ('r', 'p') AND relnamespace = current_schema()::regnamespace
  AND (relname LIKE 'celeriac\\_%%' OR relname LIKE 'celery\\_%%')
  AND NOT (has_table_privilege(oid, 'SELECT') AND has_table_privilege(oid, 'INSERT')
           AND has_table_privilege(oid, 'UPDATE') AND has_table_privilege(oid, 'DELETE'))
ORDER BY relname
"""


@dataclass(slots=True, kw_only=True)
class DatabaseFacts(ServerFacts):
    """The facts of a database. Only PostgreSQL tells more than its errors."""

    is_replica: bool = False
    is_read_only: bool = False
    may_create: bool = True
    forbidden: Sequence[str] = ()
    """The tables that this user may not read and write."""

    is_pooled: bool = False
    """Whether a pooler such as PgBouncer is between this machine and the server."""

    prepares: bool = False
    """Whether the driver prepares statements."""

    ledger_problem: InvalidConfig | None = None
    changes: str = ""
    """How an executor learns which results were stored."""

    IDS: ClassVar[Collection[str]] = ("postgresql-read-only", "postgresql-pooler", "rights", "connections")


# — decisions —


def read_only_problem(facts: DatabaseFacts) -> Iterator[Problem]:
    if facts.is_replica:
        yield error("the server is a replica", "connect to the primary server")
    elif facts.is_read_only:
        yield error("transactions are read-only", "connect to the primary server, or make this one writable")
    else:
        yield from facts.problems("postgresql-read-only")


def rights_problem(facts: DatabaseFacts) -> Iterator[Problem]:
    if facts.forbidden:
        text = f"this user may not read and write {', '.join(facts.forbidden)}"
        yield error(text, "GRANT SELECT, INSERT, UPDATE, DELETE on these tables to it")
    elif not facts.may_create:
        yield error("this user may not create tables", "GRANT CREATE, USAGE on the schema to it")
    else:
        yield from facts.problems("rights")


def pooler_problem(facts: DatabaseFacts) -> Iterator[Problem]:
    for problem in facts.problems("postgresql-pooler"):
        remedy = (
            "remove options= from the URL" if "startup parameter" in problem.text else "set pool_mode = transaction"
        )
        yield error(problem.text, remedy)
    if facts.is_pooled and facts.prepares:
        text = (
            "a pooler such as PgBouncer is before the server, and the driver prepares statements, which collide there"
        )
        yield warning(text, "set prepare_threshold to None in the connect_args of the engine options")


def ledger_content_problem(facts: DatabaseFacts) -> Iterator[Problem]:
    if (problem := facts.ledger_problem) is not None:
        yield error(f"{problem.setting}: {problem.problem}", problem.remedy)


def changes_of(*, state: TriggerState, may_create: bool, is_pooled: bool) -> str:
    """Return how an executor learns which results were stored, from the state of the trigger that announces them."""
    if is_pooled:
        return f"{BY_EVENTS}: a pooler is before the server, and loses notifications"
    match state:
        case TriggerState.PRESENT:
            return f"the trigger {TRIGGER} announces stored results"
        case TriggerState.DISABLED:
            return f"{BY_EVENTS}: the trigger {TRIGGER} is disabled"
        case TriggerState.NO_TABLE:
            return f"an executor creates the trigger {TRIGGER} when Celery has created its table"
        case TriggerState.MISSING if may_create:
            return f"the next executor creates the trigger {TRIGGER}, if result_trigger is on"
        case TriggerState.MISSING:
            return f"{BY_EVENTS}: this user may not create the trigger {TRIGGER}"


# — facts —


def read_backend(app: Celery, timeout: float) -> DatabaseFacts:
    def use(facts: DatabaseFacts) -> None:
        check_backend(app, timeout)
        if driver_of(app.backend.url) is not None:
            read_trigger(app, timeout, facts)

    return read_database(lambda: make_engine(app.backend, timeout), use)


def read_trigger(app: Celery, timeout: float, facts: DatabaseFacts) -> None:
    engine, trigger = make_engine(app.backend, timeout), ResultTrigger(app.backend.task_cls.__table__)
    try:
        with engine.connect() as connection:
            state = trigger.state(connection)
            may_create = state is not TriggerState.NO_TABLE and trigger.may_create(connection)
    finally:
        engine.dispose()
    facts.changes = changes_of(state=state, may_create=may_create, is_pooled=facts.is_pooled)


def read_ledger(url: str, timeout: float) -> DatabaseFacts:
    def engine() -> Engine:
        options = engine_options(url, {"connect_args": connect_timeouts(url, timeout)})
        return create_engine(normalise_url(url), **options)

    def use(facts: DatabaseFacts) -> None:
        try:
            Database(url, timeout=timeout, read_only=True).close()
        except InvalidConfig as problem:
            if not any(text in problem.problem for text in ("is no ledger yet", "must be migrated")):
                facts.ledger_problem = problem

    return read_database(engine, use)


def read_database(make: Callable[[], Engine], use: Callable[[DatabaseFacts], None]) -> DatabaseFacts:
    """Ask a database for its state, and then use it. The state says more than an error."""
    facts = DatabaseFacts()
    engine = make()
    try:
        if engine.dialect.name == "postgresql":
            facts.error = attempt(lambda: read_state(engine, facts))
    finally:
        engine.dispose()
    if facts.error is None or owner_of(facts.error) not in ("reachable", "login"):
        used = attempt(lambda: use(facts))
        facts.error = facts.error or used
    return facts


def read_state(engine: Engine, facts: DatabaseFacts) -> None:
    with engine.connect() as connection, connection.begin():
        before = time.time()
        row = connection.exec_driver_sql(STATE).one()
        now = (before + time.time()) / 2
        facts.is_replica, facts.is_read_only, facts.may_create, clock, process, used, allowed = row
        facts.clock, facts.connections = float(clock) - now, (used, allowed)
        facts.forbidden = connection.exec_driver_sql(FORBIDDEN_TABLES).scalars().all()
        read_driver(connection, process, facts)


def read_driver(connection: Connection, process: int, facts: DatabaseFacts) -> None:
    """Find out whether a pooler is before the server: it gives clients other process ids than the server has."""
    driver: Any = connection.connection.driver_connection
    info = getattr(driver, "info", None)
    facts.is_pooled = getattr(info, "backend_pid", process) != process
    facts.prepares = getattr(driver, "prepare_threshold", None) is not None


CHECKS: tuple[Check[Any], ...] = (
    REACHABLE,
    LOGIN_CHECK,
    Check(
        id="postgresql-read-only",
        sound="it is no replica, and not read-only",
        risk="Nothing can be written.",
        look=read_only_problem,
    ),
    Check(
        id="rights",
        sound=RIGHTS_CHECK.sound,
        risk=RIGHTS_CHECK.risk,
        look=rights_problem,
    ),
    Check(
        id="postgresql-pooler",
        sound="no pooler gets what it cannot handle",
        risk="Statements fail now and then.",
        look=pooler_problem,
    ),
    WRITABLE,
    CONNECTIONS_CHECK,
    CLOCK,
)
LEDGER_CHECKS: tuple[Check[Any], ...] = (
    *CHECKS,
    Check(
        id="ledger-content",
        sound="the ledger can be read, or has no run yet",
        risk="Commands refuse the ledger.",
        look=ledger_content_problem,
    ),
)


CHANGES_CHECK: Check[Any] = Check(
    id="result-changes",
    sound=f"a trigger announces stored results, or {BY_EVENTS}",
    risk="Results are seen later.",
    look=lambda _: (),
    describe=lambda facts: facts.changes or BY_EVENTS,
)


def backend_subject(name: str, app: Celery, timeout: float) -> Subject[DatabaseFacts]:
    return Subject(name, lambda: read_backend(app, timeout), (*CHECKS, CHANGES_CHECK))


def ledger_server_subject(name: str, url: str, timeout: float) -> Subject[DatabaseFacts]:
    return Subject(name, lambda: read_ledger(url, timeout), LEDGER_CHECKS)
