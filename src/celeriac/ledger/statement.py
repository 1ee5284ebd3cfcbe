"""A statement of an executor's ledger: SQL for the `sqlite3` of Python, and the same as an expression of SQLAlchemy.

A run on one machine writes to SQLite. To import SQLAlchemy takes longer than all the rest of a short run.
"""

from __future__ import annotations

import sqlite3
from collections import namedtuple
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from sqlalchemy import Connection

    AnyConnection: TypeAlias = sqlite3.Connection | Connection

NO_VALUES: Mapping[str, Any] = {}


class Statement(NamedTuple):
    """A statement that both kinds of connections execute. The values of a row have the names of `names`."""

    name: str
    """That in `celeriac.ledger.statements`."""

    sql: str
    """For SQLite."""

    names: tuple[str, ...] = ()
    """Those of the values, in the order of the SQL."""

    def execute(self, connection: AnyConnection, values: Mapping[str, Any] = NO_VALUES) -> Any:
        """Execute the statement. Return the cursor or the result: their common methods are those of a cursor."""
        if isinstance(connection, sqlite3.Connection):
            return connection.execute(self.sql, [values[name] for name in self.names])
        return connection.execute(self._expression(connection), dict(values))

    def execute_many(self, connection: AnyConnection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Execute the statement for each row.

        SQLAlchemy needs as long as SQLite to process the values of a row, none of which needs that. So SQLite's driver
        gets them as they are.
        """
        if not rows:
            return
        if isinstance(connection, sqlite3.Connection):
            connection.executemany(self.sql, self._values_of(rows))
        elif connection.dialect.name == "sqlite":
            connection.exec_driver_sql(self.sql, self._values_of(rows))
        else:
            connection.execute(self._expression(connection), [dict(row) for row in rows])

    def insert(self, connection: AnyConnection, values: Mapping[str, Any]) -> int:
        """Insert a row and return its id."""
        result = self.execute(connection, values)
        row_id: Any = result.lastrowid if isinstance(result, sqlite3.Cursor) else result.inserted_primary_key[0]
        return int(row_id)

    def scalar(self, connection: AnyConnection, values: Mapping[str, Any] = NO_VALUES) -> Any:
        """Return the first column of the first row; None if there is no row."""
        row = self.execute(connection, values).fetchone()
        return None if row is None else row[0]

    def rows(
        self, connection: AnyConnection, values: Mapping[str, Any] = NO_VALUES, *, fetch_size: int | None = None
    ) -> Iterable[Any]:
        """Return the rows, with their columns as attributes. With `fetch_size` a server sends so many at a time."""
        if not isinstance(connection, sqlite3.Connection) and fetch_size is not None:
            connection = connection.execution_options(yield_per=fetch_size)
        result = self.execute(connection, values)
        return named_rows(result) if isinstance(result, sqlite3.Cursor) else result

    def _values_of(self, rows: Iterable[Mapping[str, Any]]) -> list[Any]:
        return list(map(itemgetter(*self.names), rows))

    def _expression(self, connection: Connection) -> Any:
        from celeriac.ledger.statements import source_of  # late: it imports SQLAlchemy

        return source_of(self.name, connection.dialect.name)


def is_sqlite(connection: AnyConnection) -> bool:
    """Return whether a connection is one to SQLite."""
    return isinstance(connection, sqlite3.Connection) or connection.dialect.name == "sqlite"


def named_rows(cursor: sqlite3.Cursor) -> Iterable[Any]:
    """Yield the rows of a cursor with their columns as attributes."""
    if (first := cursor.fetchone()) is None:
        return
    row = namedtuple("row", [name for name, *_ in cursor.description])  # type: ignore[misc]
    yield row._make(first)
    yield from map(row._make, cursor)
