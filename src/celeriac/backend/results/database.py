"""Results in a database: many in one SELECT over Celery's own table, with task events to say which have moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from celery import Celery
from sqlalchemy import Engine, LargeBinary, PickleType, create_engine, delete, inspect, select, type_coerce
from sqlalchemy.exc import DatabaseError

from celeriac.backend.results import plain_pickle
from celeriac.backend.results.change_feed import ChangeSource
from celeriac.backend.results.decode import decode_with, from_status, is_plain_json
from celeriac.backend.results.reader import BackendResults
from celeriac.config.postgres import connect_timeouts
from celeriac.executor.interfaces import Unreadable
from celeriac.task.result import Result

CHUNK = 500


class DatabaseResults(BackendResults):
    def __init__(self, app: Celery, *, timeout: float, hints: ChangeSource | None = None) -> None:
        """`timeout`, in seconds, bounds one `read`; what was not reached then comes with a later one."""
        super().__init__(DatabaseStore(app, timeout), timeout=timeout, source=hints)


class DatabaseStore:
    chunk = CHUNK

    def __init__(self, app: Celery, timeout: float) -> None:
        self._backend = app.backend
        self._engine = engine_of(self._backend, timeout)
        self._closed = False
        self._table = self._backend.task_cls.__table__
        self._is_pickled = isinstance(self._table.c.result.type, PickleType)  # before Celery 5.7
        self._quickly = quick_row if is_plain_json(self._backend) and not self._is_pickled else None

    def fetch(self, ids: Sequence[str]) -> Mapping[str, Result | Unreadable]:
        columns = self._table.c
        # As bytes: a value that cannot be decoded must not fail the rows beside it.
        wanted = select(columns.task_id, columns.status, type_coerce(columns.result, LargeBinary))
        rows = self._execute(wanted.where(columns.task_id.in_(ids)))
        return decode_with(
            self._meta, {task_id: (status, value) for task_id, status, value in rows}, quickly=self._quickly
        )

    def delete(self, ids: Sequence[str]) -> None:
        self._execute(delete(self._table).where(self._table.c.task_id.in_(ids)))

    def close(self) -> None:
        self._closed = True
        self._engine.dispose()

    def _execute(self, statement: Any) -> Sequence[Any]:
        """Its rows; none while Celery has not made its table, because nothing was stored yet."""
        try:
            with self._engine.connect() as connection:
                with connection.begin():
                    result = connection.execute(statement)
                    rows = result.all() if result.returns_rows else []
                if self._closed:  # while a thread was still at it: nobody else would end this connection
                    connection.detach()
                return rows
        except DatabaseError:
            if inspect(self._engine).has_table(self._table.name, schema=self._table.schema):
                raise
            return []

    def _meta(self, row: tuple[str, bytes | None]) -> Any:
        status, value = row
        return self._backend.meta_from_decoded({"status": status, "result": self._decode(value)})

    def _decode(self, value: bytes | None) -> Any:
        """Before Celery 5.7 the column held pickles; since then what the serializer gave, or pickles from before."""
        if value is None:
            return None
        if plain_pickle.PICKLE not in self._backend.accept:
            return plain_pickle.decode(value, self._backend.decode)
        if self._is_pickled:
            return self._table.c.result.type.pickler.loads(value)
        return self._backend._decode_stored_result(value)


def quick_row(row: tuple[str, bytes | None]) -> Result | None:
    return from_status(*row)


def engine_of(backend: Any, timeout: float) -> Engine:
    """As Celery makes its own, but with connections that are kept; one for reading, one for deleting."""
    options = {name: value for name, value in backend.engine_options.items() if not name.startswith("pool")}
    connect_args = {**connect_timeouts(backend.url, timeout), **options.pop("connect_args", {})}
    options.pop("max_overflow", None)
    engine = create_engine(backend.url, pool_pre_ping=True, connect_args=connect_args, **options)
    callback = getattr(backend.session_manager, "engine_callback", None)
    if callback is not None:
        callback(engine)
    return engine
