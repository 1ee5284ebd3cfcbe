"""The limits of a ledger, and what was removed because of them: see `celeriac.ledger.keep`. Nothing here writes."""

from __future__ import annotations

import sqlite3
import time
from typing import TYPE_CHECKING

from msgspec import Struct, field

from celeriac.config.ledger_keep import LedgerKeep
from celeriac.ledger.prepared import HAS_OLDER_RUN
from celeriac.ledger.transactions import AnyTransactions

if TYPE_CHECKING:
    from celeriac.ledger.statement import AnyConnection
    from celeriac.ledger.views import RunView

NO_RUN = -1


class Removed(Struct):
    """The runs that were removed."""

    runs: list[RunView] = field(default_factory=list)
    is_first: bool = False
    """Whether this ledger has removed something by itself for the first time."""


def may_exceed(database: AnyTransactions, keep: LedgerKeep, *, present: int | None) -> bool:
    """Return whether runs besides the `present` one are old, or the ledger is too large."""
    if keep.seconds is not None:
        values = {"before": time.time() - keep.seconds, "of_run": NO_RUN if present is None else present}
        with database.reading() as connection:
            if HAS_OLDER_RUN.scalar(connection, values):
                return True
    return is_too_large(database, keep)


def is_too_large(database: AnyTransactions, keep: LedgerKeep) -> bool:
    """Return whether the ledger exceeds its size. That of a server cannot be told: it frees no space at once."""
    if keep.size is None or not database.is_file:
        return False
    with database.reading() as connection:
        return used_bytes(driver_of(connection)) > keep.size


def used_bytes(connection: sqlite3.Connection) -> int:
    """Return the size of the ledger without its free pages."""
    pages, free, size = (
        int(connection.execute(f"PRAGMA {name}").fetchone()[0])
        for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * size


def driver_of(connection: AnyConnection) -> sqlite3.Connection:
    """Return the connection of the driver: that behind one of SQLAlchemy."""
    if isinstance(connection, sqlite3.Connection):
        return connection
    driver: sqlite3.Connection = connection.connection.driver_connection
    return driver
