"""A file of SQLite, opened as a ledger without SQLAlchemy: for a run that only writes what it does itself.

It executes a `Statement`, and no expression of SQLAlchemy. All else is as in `Database`, which other processes may use
with the same file.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from celeriac.ledger.ledger_file import hold_again, hold_to_write, release
from celeriac.ledger.prepared import ADD_TABLES, CREATE_TABLES, INSERT_VERSION, SELECT_VERSION, TOUCH_LEDGER, VERSION
from celeriac.ledger.stored_version import version_of
from celeriac.ledger.transactions import OnLocked, RowExists, Transactions

if TYPE_CHECKING:
    from celeriac.ledger.database import Database

LOCK_TIMEOUT = 0.25  # seconds that one attempt to write waits for the lock of another process

VERSION_TABLE, INPUT_TABLE = "celeriac_ledger", "celeriac_input"
NAMES_OF_TABLES = "SELECT name FROM sqlite_master"


class FileDatabase(Transactions[sqlite3.Connection]):
    """The connections to one ledger in a file. It can be used again after `close`."""

    def __init__(self, path: str, *, must_exist: bool = False, on_locked: OnLocked | None = None) -> None:
        """Open a ledger. Create it unless it `must_exist`. `on_locked` is for `in_turn`.

        Raises `InvalidConfig` if the file cannot be used as a ledger, `LedgerBroken` and `LedgerUnavailable`.
        """
        super().__init__(f"sqlite:///{path}", on_locked)
        self._path = os.path.abspath(path)  # noqa: PTH100 - like SQLAlchemy, which keeps no link's target either
        self._idle: list[sqlite3.Connection] = []
        hold_to_write(self, Path(path), must_exist=must_exist)
        self._open(partial(self._prepare, must_exist=must_exist))

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        with self._translate_errors(), self._transaction("BEGIN") as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        with self._translate_errors(), self._transaction("BEGIN IMMEDIATE") as connection:
            yield connection
            connection.execute("COMMIT")

    @contextmanager
    def complete(self) -> Iterator[Database]:
        from celeriac.ledger.database import Database  # late: it imports SQLAlchemy

        database = Database(self.url, must_exist=True, on_locked=self.on_locked)
        try:
            yield database
        finally:
            database.close()

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()
        release(self)

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        """Begin a transaction. Roll back what is not committed, and keep the connection for the next one."""
        connection = self._idle.pop() if self._idle else self._connect()
        try:
            connection.execute(begin)
            yield connection
        finally:
            try:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            except sqlite3.Error:
                connection.close()
                raise
            self._idle.append(connection)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=LOCK_TIMEOUT, check_same_thread=False)
        try:
            prepare_connection(connection)
        except BaseException:
            connection.close()
            raise
        hold_again(self, Path(self._path))
        return connection

    # — open —

    def _prepare(self, *, must_exist: bool) -> None:
        """Check the version; create the tables, or let SQLAlchemy migrate them."""
        with self._translate_errors(is_opening=True):
            with self._transaction("BEGIN") as connection:
                version, self.has_all_tables = read_version(connection)
            self._check_version(version, must_exist=must_exist, read_only=False)
            if version is not None and version < VERSION:
                with self.complete() as migrated:
                    self.has_all_tables = migrated.has_all_tables
            with self._transaction("BEGIN IMMEDIATE") as connection:
                if version is None:
                    create_tables(connection)
                    self.has_all_tables = True
                else:  # report a missing write permission now, not at the first batch
                    TOUCH_LEDGER.execute(connection)
                connection.execute("COMMIT")
        if not self.has_all_tables:
            self._add_tables()

    def _add_tables(self) -> None:
        """Add tables to a ledger of this version. Without them it can be used, too."""
        with suppress(sqlite3.Error), self._transaction("BEGIN IMMEDIATE") as connection:
            for statement in ADD_TABLES:
                connection.execute(statement)
            connection.execute("COMMIT")
            self.has_all_tables = True

    @contextmanager
    def _translate_errors(self, *, is_opening: bool = False) -> Iterator[None]:
        try:
            yield
        except sqlite3.IntegrityError as error:
            raise RowExists from error
        except sqlite3.Error as error:
            raise self._translate(error, str(error), is_opening=is_opening) from error


def prepare_connection(connection: sqlite3.Connection) -> None:
    """Prepare a connection. After this, its transactions are begun by statements of their own."""
    connection.isolation_level = None
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # takes effect in a new file; `prune` needs it
    if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):  # to set it needs a lock each time
        connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA cache_size = -65536")


def read_version(connection: sqlite3.Connection) -> tuple[int | None, bool]:
    """Return the version of the tables, and whether all tables are there that were added to that version later.

    The version is None if there is no ledger yet, and 0 if it is no number.
    """
    names = {name for (name,) in connection.execute(NAMES_OF_TABLES)}
    version = version_of(SELECT_VERSION.scalar(connection)) if VERSION_TABLE in names else None
    return version, version == VERSION and INPUT_TABLE in names


def create_tables(connection: sqlite3.Connection) -> None:
    """Create the tables, unless another process has done that meanwhile."""
    version, _ = read_version(connection)
    if version is None:
        for statement in CREATE_TABLES:
            connection.execute(statement)
        INSERT_VERSION.execute(connection, {"version": VERSION})
