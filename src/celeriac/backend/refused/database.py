"""Refused messages in a database.

celeriac_refused  a row for each message
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Any

from celery import Celery
from sqlalchemy import BigInteger, Column, Engine, Integer, MetaData, Table, Text, delete, insert, inspect, select
from sqlalchemy.exc import DatabaseError

from celeriac.backend.refused.message import KEPT, RefusedMessage, decode_all, encode
from celeriac.backend.results.database import make_engine

CREATION_ATTEMPTS = 2

TABLES = MetaData()
REFUSED = Table(
    "celeriac_refused",
    TABLES,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("content", Text, nullable=False),
    sqlite_autoincrement=True,
)


class DatabaseRefused:
    def __init__(self, app: Celery, *, timeout: float) -> None:
        """`timeout`, in seconds, bounds one operation."""
        self._backend, self._timeout = app.backend, timeout
        self._engines: dict[int, Engine] = {}

    def add(self, message: RefusedMessage) -> None:
        number = self._insert(insert(REFUSED).values(content=encode(message)))
        self._execute(delete(REFUSED).where(REFUSED.c.number <= number - KEPT))

    def newest(self) -> Sequence[RefusedMessage]:
        query = select(REFUSED.c.content).order_by(REFUSED.c.number.desc()).limit(KEPT)
        try:
            with self._engine.connect() as connection:
                return decode_all(connection.execute(query).scalars().all())
        except DatabaseError:
            if self._has_table():
                raise
            return []  # no worker has refused anything yet

    def close(self) -> None:
        if (engine := self._engines.pop(os.getpid(), None)) is not None:
            engine.dispose()

    def _insert(self, row: Any) -> int:
        """Insert a row, and return its number. Create the table if it is missing; another process may do so, too."""
        for _ in range(CREATION_ATTEMPTS):
            with contextlib.suppress(DatabaseError):
                return self._execute(row)
            with contextlib.suppress(DatabaseError):
                TABLES.create_all(self._engine)
        return self._execute(row)

    def _has_table(self) -> bool:
        return bool(inspect(self._engine).has_table(REFUSED.name))

    def _execute(self, statement: Any) -> int:
        """Execute a statement in its own transaction. Return the number of a new row, or 0."""
        with self._engine.connect() as connection:
            result = connection.execute(statement)
            return int(result.inserted_primary_key[0]) if statement.is_insert else 0

    @property
    def _engine(self) -> Engine:
        """The engine of this process, made at its first use: a child process must not use those of its parent."""
        engine = self._engines.get(os.getpid())
        if engine is None:
            new_engine = make_engine(self._backend, self._timeout).execution_options(isolation_level="AUTOCOMMIT")
            engine = self._engines.setdefault(os.getpid(), new_engine)
        return engine
