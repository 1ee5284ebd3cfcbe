"""Insert many rows with one statement of SQLAlchemy.

SQLite needs about 5 µs for a row, and SQLAlchemy as much again to process its values, none of which needs that. So the
statement is compiled once, and the driver gets the values.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from importlib import import_module
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection, Dialect


def insert_rows(connection: Connection, table: Any, rows: list[dict[str, Any]], *, replace: bool = False) -> None:
    """Insert rows, all with the same names. A row that exists already stays, or is replaced."""
    if not rows:
        return
    statement = insertion(table, connection.dialect.name, replace=replace)
    if connection.dialect.name != "sqlite":
        connection.execute(statement, rows)
        return
    sql, values_of = compiled(statement, connection.dialect, tuple(rows[0]))
    connection.exec_driver_sql(sql, list(map(values_of, rows)))


@cache
def insertion(table: Any, dialect: str, *, replace: bool) -> Any:
    """Return the statement of `insert_rows`. Imports only the module of the dialect in use."""
    statement = import_module(f"sqlalchemy.dialects.{dialect}").insert(table)
    if not replace:
        return statement.on_conflict_do_nothing()
    values = {column.name: statement.excluded[column.name] for column in table.columns if not column.primary_key}
    return statement.on_conflict_do_update(index_elements=list(table.primary_key), set_=values)


@lru_cache(maxsize=32)
def compiled(statement: Any, dialect: Dialect, names: tuple[str, ...]) -> tuple[str, Callable[[Any], Any]]:
    """Return the SQL of a statement, and a function that returns the values of a row in the order of the SQL."""
    form = statement.compile(dialect=dialect, column_keys=names)
    return form.string, itemgetter(*form.positiontup)
