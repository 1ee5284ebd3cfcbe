"""Refused messages in a database.

celeriac_refused  a row for each message
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery import Celery
from sqlalchemy import BigInteger, Column, Integer, MetaData, Table, Text, delete, insert, select
from sqlalchemy.exc import DatabaseError

from celeriac.backend.refused.message import KEPT, RefusedMessage, decode_all, encode
from celeriac.backend.results.database import engine_per_process, is_table_missing, make_missing_tables

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
        self._engine = engine_per_process(app.backend, timeout)

    def add(self, message: RefusedMessage) -> None:
        number = self._insert(insert(REFUSED).values(content=encode(message)))
        self._execute(delete(REFUSED).where(REFUSED.c.number <= number - KEPT))

    def newest(self) -> Sequence[RefusedMessage]:
        query = select(REFUSED.c.content).order_by(REFUSED.c.number.desc()).limit(KEPT)
        try:
            with self._engine.get().connect() as connection:
                return decode_all(connection.execute(query).scalars().all())
        except DatabaseError:
            if not is_table_missing(self._engine.get(), TABLES):
                raise
            return []  # no worker has refused anything yet

    def close(self) -> None:
        if (engine := self._engine.take()) is not None:
            engine.dispose()

    def _insert(self, row: Any) -> int:
        """Insert a row, and return its number. Create the table if it is missing."""
        try:
            return self._execute(row)
        except DatabaseError:
            make_missing_tables(self._engine.get(), TABLES)  # if it is there now, another worker has created it
        return self._execute(row)

    def _execute(self, statement: Any) -> int:
        """Execute a statement in its own transaction. Return the number of a new row, or 0."""
        with self._engine.get().connect() as connection:
            result = connection.execute(statement)
            return int(result.inserted_primary_key[0]) if statement.is_insert else 0
