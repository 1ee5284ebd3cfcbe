"""Read results from a database: many in one SELECT from Celery's own table. Task events give the ids of changed
tasks, and on PostgreSQL the notifications of a trigger do so sooner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from celery import Celery
from sqlalchemy import (
    Engine,
    LargeBinary,
    MetaData,
    PickleType,
    create_engine,
    delete,
    event,
    inspect,
    select,
    type_coerce,
)
from sqlalchemy.exc import DatabaseError

from celeriac.backend.per_process import PerProcess
from celeriac.backend.results import plain_pickle
from celeriac.backend.results.change_feed import ChangeSource
from celeriac.backend.results.compressed import check_size
from celeriac.backend.results.decode import decode_all, decode_status, is_plain_json
from celeriac.backend.results.reader import BackendResults
from celeriac.broker.celery_internals import decode_stored_result
from celeriac.config.postgres import connect_timeouts, engine_options
from celeriac.executor.interfaces import Unreadable
from celeriac.task.result import Result

BATCH_SIZE = 500  # ids in one statement


class DatabaseResults(BackendResults):
    def __init__(self, app: Celery, *, timeout: float, sources: Iterable[ChangeSource | None] = ()) -> None:
        """`timeout`, in seconds, bounds one `read`. A later `read` returns the results that are late."""
        super().__init__(DatabaseStore(app, timeout), timeout=timeout, sources=sources)


class DatabaseStore:
    batch_size = BATCH_SIZE

    def __init__(self, app: Celery, timeout: float) -> None:
        self._backend = app.backend
        # One round trip for one statement: no transaction, and no ping before it.
        self._engine = make_engine(self._backend, timeout, pool_pre_ping=False, isolation_level="AUTOCOMMIT")
        self._closed = False
        self._table = self._backend.task_cls.__table__
        self._is_pickled = isinstance(self._table.c.result.type, PickleType)  # before Celery 5.7
        self._decode_fast = decode_row if is_plain_json(self._backend) and not self._is_pickled else None

    def fetch(self, ids: Sequence[str]) -> Mapping[str, Result | Unreadable]:
        columns = self._table.c
        # Select bytes: a value that cannot be decoded must not affect the other rows.
        query = select(columns.task_id, columns.status, type_coerce(columns.result, LargeBinary))
        rows = self._execute(query.where(columns.task_id.in_(ids)))
        return decode_all(
            self._meta, {task_id: (status, value) for task_id, status, value in rows}, decode_fast=self._decode_fast
        )

    def delete(self, ids: Sequence[str]) -> None:
        self._execute(delete(self._table).where(self._table.c.task_id.in_(ids)))

    def close(self) -> None:
        self._closed = True
        self._engine.dispose()

    def _execute(self, statement: Any) -> Sequence[Any]:
        """Return the rows. Return none while Celery has not created its table: then no result was stored yet."""
        try:
            return self._try(statement)
        except DatabaseError as error:
            if error.connection_invalidated:  # a connection of the pool was dead; now the pool has none
                return self._try(statement)
            if not inspect(self._engine).has_table(self._table.name, schema=self._table.schema):
                return []
        return self._try(statement)  # the table may have been created in between

    def _try(self, statement: Any) -> Sequence[Any]:
        with self._engine.connect() as connection:
            result = connection.execute(statement)
            rows = result.all() if result.returns_rows else []
            if self._closed:  # closed while a thread was in this call: `dispose` did not close this connection
                connection.detach()
            return rows

    def _meta(self, row: tuple[str, bytes | None]) -> Any:
        status, value = row
        return self._backend.meta_from_decoded({"status": status, "result": self._decode(value)})

    def _decode(self, value: bytes | None) -> Any:
        """Decode the column. Before Celery 5.7 it held pickles; since then the serializer's output, or older
        pickles."""
        if value is None:
            return None
        check_size(value)
        if plain_pickle.PICKLE not in self._backend.accept:
            return plain_pickle.decode(value, self._backend.decode)
        if self._is_pickled:
            return self._table.c.result.type.pickler.loads(value)
        return decode_stored_result(self._backend, value)


def decode_row(row: tuple[str, bytes | None]) -> Result | None:
    status, value = row
    if value is not None:
        check_size(value)
    return decode_status(status, value)


def make_engine(backend: Any, timeout: float, **overrides: Any) -> Engine:
    """Return an engine like that of Celery's backend, but with a pool, so that connections are kept.

    `timeout`, in seconds, bounds connecting to PostgreSQL, and the silence of its connections. `overrides` are options
    of the engine.
    """
    options = {name: value for name, value in backend.engine_options.items() if not name.startswith("pool")}
    connect_args = {**connect_timeouts(backend.url, timeout), **options.pop("connect_args", {})}
    options.pop("max_overflow", None)
    options = engine_options(backend.url, {"pool_pre_ping": True, **options, "connect_args": connect_args, **overrides})
    engine = create_engine(backend.url, **options)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", accept_any_text)
    callback = getattr(backend.session_manager, "engine_callback", None)
    if callback is not None:
        callback(engine)
    return engine


def engine_per_process(
    backend: Any, timeout: float, on_connect: Callable[[Any, Any], object] | None = None
) -> PerProcess[Engine]:
    """Return an engine in each process. Each statement is its own transaction. `on_connect` gets each connection of the
    driver."""

    def make() -> Engine:
        engine = make_engine(backend, timeout).execution_options(isolation_level="AUTOCOMMIT")
        if on_connect is not None:
            event.listen(engine, "connect", on_connect)
        return engine

    return PerProcess(make)


def make_missing_tables(engine: Engine, tables: MetaData) -> bool:
    """Create the tables that are missing. Return whether a table was missing."""
    if not is_table_missing(engine, tables):
        return False
    for is_last in (False, False, True):  # another process may be creating the tables at the same time
        try:
            tables.create_all(engine)
            break
        except DatabaseError:
            if is_last and is_table_missing(engine, tables):
                raise
    return True


def is_table_missing(engine: Engine, tables: MetaData) -> bool:
    inspector = inspect(engine)
    return not all(inspector.has_table(name) for name in tables.tables)


def accept_any_text(connection: Any, _: object) -> None:
    """Make SQLite return text that is not UTF-8 with lone surrogates. By default one such value fails the query."""
    connection.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")
