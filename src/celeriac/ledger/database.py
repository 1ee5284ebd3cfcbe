"""A database, opened as a ledger: connections, transactions, and readable errors.

The caller's thread writes to SQLite, where one process writes at a time: `in_turn` waits for the others. A server may
not answer, so a separate thread calls it, and the caller stops waiting at a deadline. The server may still commit that
transaction; the executor then writes the same batch again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, SQLAlchemyError

from celeriac.broker.deadline_thread import DeadlineThread
from celeriac.config.clients import check_client
from celeriac.config.postgres import connect_timeouts, engine_options
from celeriac.errors import InvalidConfig, LedgerUnavailable, describe_refusal
from celeriac.ledger.file_database import LOCK_TIMEOUT, prepare_connection
from celeriac.ledger.ledger_file import hold_again, hold_to_read, hold_to_write, release
from celeriac.ledger.read_only import connect_to_read
from celeriac.ledger.schema import VERSION, add_tables, has_all_tables, migrate, read_version
from celeriac.ledger.transactions import OPEN_TIMEOUT, OnLocked, RowExists, Transactions
from celeriac.server_errors import is_server_error

T = TypeVar("T")

WRITE_URL = "write sqlite:///PATH or postgresql+psycopg://USER:PASSWORD@HOST/NAME"


class OpenOptions(TypedDict, total=False):
    """The options of `Database`."""

    timeout: float
    must_exist: bool
    read_only: bool
    on_locked: OnLocked | None


class Database(Transactions[Connection]):
    """The connections to one ledger. It can be used again after `close`."""

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 2.0,
        must_exist: bool = False,
        read_only: bool = False,
        on_locked: OnLocked | None = None,
    ) -> None:
        """Open a ledger. Create it unless it `must_exist` or is opened `read_only`, which needs no write permission.

        `timeout` is in seconds and limits each call of a server. `on_locked` is for `in_turn`. Raises
        `InvalidConfig` if the URL or the database cannot be used as a ledger, `LedgerBroken` and `LedgerUnavailable`.
        """
        url = normalise_url(url)
        super().__init__(url, on_locked)
        self._timeout = timeout
        self._deadline_thread: DeadlineThread[Any] = DeadlineThread("celeriac-ledger")
        self.engine = self._create_engine(url, must_exist=must_exist, read_only=read_only)
        self._open(partial(self._prepare, must_exist=must_exist, read_only=read_only))

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Begin a transaction that writes nothing. Raises `LedgerUnavailable` and `LedgerBroken`."""
        with self._translate_errors(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Begin a transaction and commit it at the end. Raises `LedgerUnavailable` and `LedgerBroken`."""
        with (
            self._translate_errors(),
            self.engine.connect() as connection,
            connection.execution_options(writes=True).begin(),
        ):
            yield connection

    def write(self, transaction: Callable[[Connection], T]) -> T:
        """Run a function in one transaction, within the timeout. Raises `LedgerUnavailable` and `LedgerBroken`."""

        def call() -> T:
            with self.writing() as connection:
                return transaction(connection)

        return self._call(call, self._timeout)

    def read(self, query: Callable[[Connection], T], timeout: float | None = None) -> T:
        """Run a function that writes nothing in one transaction, within `timeout` seconds if given.

        Raises `LedgerUnavailable` and `LedgerBroken`.
        """

        def call() -> T:
            with self.reading() as connection:
                return query(connection)

        return self._call(call, self._timeout if timeout is None else timeout)

    @contextmanager
    def complete(self) -> Iterator[Database]:
        yield self

    def close(self) -> None:
        """Close the connections. The next use opens them again."""
        self._deadline_thread.close()
        self._deadline_thread = DeadlineThread("celeriac-ledger")
        self.engine.dispose()
        release(self)

    def _call(self, call: Callable[[], T], timeout: float) -> T:
        if self.is_file:
            return call()
        try:
            result: T = self._deadline_thread.call(call, timeout)
        except TimeoutError:
            raise LedgerUnavailable(self.masked_url, f"has not answered for {timeout:g} s") from None
        return result

    # — open —

    def _create_engine(self, url: str, *, must_exist: bool, read_only: bool) -> Engine:
        check_client("ledger", url)
        try:
            path = make_url(url).database
            if not self.is_file:
                options = {"pool_pre_ping": True, "connect_args": connect_timeouts(url, self._timeout)}
                return create_engine(url, **engine_options(url, options))
            if not path or path == ":memory:" or path.startswith("file:"):
                raise InvalidConfig("ledger", f"{self.masked_url} names no file", "write sqlite:///PATH")
            if read_only:
                return open_read_only(self, url, Path(path))
            hold_to_write(self, Path(path), must_exist=must_exist)
            engine = create_engine(url, connect_args={"timeout": LOCK_TIMEOUT, "check_same_thread": False})
        except ArgumentError:
            raise InvalidConfig("ledger", "is not the URL of a database", WRITE_URL) from None
        except ModuleNotFoundError as missing:
            problem = f"needs the module {missing.name}, which is not installed"
            raise InvalidConfig("ledger", problem, "install it, or name another database") from None
        event.listen(engine, "connect", lambda connection, _: prepare_connection(connection))
        event.listen(engine, "connect", lambda *_: hold_again(self, Path(path)))
        event.listen(engine, "begin", on_begin)
        return engine

    def _prepare(self, *, must_exist: bool, read_only: bool) -> None:
        """Check the version; create or migrate the tables."""
        with self._translate_errors(is_opening=True), self.engine.connect() as connection:
            version = read_version(connection)
            self.has_all_tables = version == VERSION and has_all_tables(connection)
        self._check_version(version, must_exist=must_exist, read_only=read_only)
        if read_only:
            return
        with self._translate_errors(is_opening=True), self.engine.connect() as connection:
            if version is None or version < VERSION:
                with connection.execution_options(writes=True).begin():
                    lock_schema(connection)
                    migrate(connection)
                    self.has_all_tables = has_all_tables(connection)
            elif self.is_file:  # report a missing write permission now, not at the first batch
                with connection.execution_options(writes=True).begin():
                    connection.exec_driver_sql("UPDATE celeriac_ledger SET version = version")
        if not self.has_all_tables:
            self._add_tables()

    def _add_tables(self) -> None:
        """Add tables to a ledger of this version. A user who may not do that uses the ledger without them."""
        with suppress(DBAPIError), self.engine.connect() as connection:
            with connection.execution_options(writes=True).begin():
                lock_schema(connection)
                add_tables(connection)
            self.has_all_tables = True

    # — errors —

    @contextmanager
    def _translate_errors(self, *, is_opening: bool = False) -> Iterator[None]:
        try:
            yield
        except IntegrityError as error:
            raise RowExists from error
        except DBAPIError as error:
            raise self._translate(error, str(error.orig or error), is_opening=is_opening) from error
        except Exception as error:
            if not isinstance(error, SQLAlchemyError) and not is_server_error(error):
                raise
            raise LedgerUnavailable(self.masked_url, f"cannot be reached: {describe_refusal(error)}") from error


# — URLs and files —


def normalise_url(url: str) -> str:
    """Return the URL for SQLAlchemy: PostgreSQL through psycopg 3, which is not SQLAlchemy's default, and without the
    `db+` of Celery's result backends."""
    url = url.removeprefix("db+")
    scheme, separator, rest = url.partition("://")
    return f"postgresql+psycopg://{rest}" if separator and scheme in ("postgresql", "postgres") else url


def open_read_only(holder: object, url: str, path: Path) -> Engine:
    """Return an engine that reads a file. Raises `InvalidConfig` and `LedgerBroken`."""
    hold_to_read(holder, path)
    engine = create_engine(url, creator=lambda: connect_to_read(path, OPEN_TIMEOUT))
    event.listen(engine, "connect", lambda *_: hold_again(holder, path))
    event.listen(engine, "begin", on_begin)
    return engine


# — connections —


def on_begin(connection: Connection) -> None:
    """Begin a transaction of SQLite. A transaction that writes takes the lock at once."""
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def lock_schema(connection: Connection) -> None:
    """Let only one process at a time create or migrate the tables. SQLite has taken its lock already."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(20263107)")
