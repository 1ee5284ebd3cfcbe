"""A database, opened as a ledger: connections, transactions, and readable errors.

The caller's thread writes to SQLite, where one process writes at a time: `in_turn` waits for the others. A server may
not answer, so a separate thread calls it, and the caller stops waiting at a deadline. The server may still commit that
transaction; the executor then writes the same batch again.
"""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypedDict, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, SQLAlchemyError

from celeriac.broker.deadline_thread import DeadlineThread
from celeriac.config.clients import check_client
from celeriac.config.masking import masked
from celeriac.config.postgres import connect_timeouts, engine_options
from celeriac.config.schema import NO_LEDGER, default_ledger
from celeriac.errors import (
    InvalidConfig,
    LedgerBroken,
    LedgerLocked,
    LedgerNotWritable,
    LedgerUnavailable,
    describe_error,
    describe_refusal,
)
from celeriac.ledger.ledger_file import CREATE_OR_NAME, RESTORE, hold_again, hold_to_read, hold_to_write, release
from celeriac.ledger.progress import OnProgress
from celeriac.ledger.read_only import connect_to_read
from celeriac.ledger.schema import VERSION, add_tables, has_all_tables, migrate, read_version
from celeriac.server_errors import is_server_error

T = TypeVar("T")
OnLocked: TypeAlias = Callable[[LedgerLocked | None, float], None]
"""Called again and again while a write waits for other processes, with the seconds so far, and with None at its end."""

LOCK_TIMEOUT = 0.25  # seconds that one attempt to write waits for the lock of another process
OPEN_TIMEOUT = 5.0  # seconds that opening waits for this lock
RETRY_DELAY = 0.05  # seconds between two attempts of `retry_until` and `in_turn`

DAMAGE_SIGNS = ("malformed", "not a database", "file is encrypted")  # in the messages of SQLite
LOCK_SIGNS = ("locked", "locking protocol")
WRITE_URL = "write sqlite:///PATH or postgresql+psycopg://USER:PASSWORD@HOST/NAME"


class OpenOptions(TypedDict, total=False):
    """The options of `Database`."""

    timeout: float
    must_exist: bool
    read_only: bool
    on_locked: OnLocked | None


class Database:
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
        self.url = url = normalise_url(url)
        self.masked_url = str(masked(url))
        self.has_all_tables = False
        """Whether the ledger has also the tables that were added to its version later."""

        self.is_file = url.startswith("sqlite")
        self.on_locked = on_locked
        self.on_progress: OnProgress | None = None
        """Takes the number of rows while many are read or written."""

        self._timeout = timeout
        self._deadline_thread: DeadlineThread[Any] = DeadlineThread("celeriac-ledger")
        self.engine = self._create_engine(url, must_exist=must_exist, read_only=read_only)
        try:
            prepare = partial(self._prepare, must_exist=must_exist, read_only=read_only)
            self.in_turn(prepare) if on_locked is not None else retry_until(prepare, OPEN_TIMEOUT, LedgerLocked)
        except BaseException:  # Ctrl-C, too, must leave no connection open
            self.close()
            raise

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

    def in_turn(self, action: Callable[[], T]) -> T:
        """Call `action` until no other process is writing, if there is an `on_locked`. Raises what both raise."""
        began, has_waited = time.monotonic(), False
        while True:
            try:
                result = action()
            except LedgerLocked as error:
                if self.on_locked is None:
                    raise
                has_waited = True
                self.on_locked(error, time.monotonic() - began)
            else:
                if has_waited and self.on_locked is not None:
                    self.on_locked(None, time.monotonic() - began)
                return result
            time.sleep(RETRY_DELAY)  # SQLite does not report when another process has written

    def write_in_turn(self, transaction: Callable[[Connection], T]) -> T:
        """Do the same as `write`, but wait for other processes: see `in_turn`."""
        return self.in_turn(lambda: self.write(transaction))

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
        event.listen(engine, "connect", on_connect)
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

    def _check_version(self, version: int | None, *, must_exist: bool, read_only: bool) -> None:
        name = f"ledger {self.masked_url}"
        if version is None:
            if must_exist or read_only:
                raise InvalidConfig("ledger", f"{self.masked_url} is no ledger yet", CREATE_OR_NAME)
        elif version < 1:
            raise LedgerBroken(self.masked_url, f"has no valid version; {RESTORE}")
        elif version > VERSION:
            problem = f"has version {version}, and this Celeriac knows version {VERSION}"
            raise InvalidConfig(name, problem, "use the Celeriac that wrote it, or a newer one")
        elif version < VERSION and read_only:
            problem = f"has version {version} and must be migrated to version {VERSION}"
            raise InvalidConfig(name, problem, "run something with it first")

    # — errors —

    @contextmanager
    def _translate_errors(self, *, is_opening: bool = False) -> Iterator[None]:
        try:
            yield
        except IntegrityError:  # the caller handles it: a row exists already
            raise
        except DBAPIError as error:
            raise self._translate(error, is_opening=is_opening) from error
        except Exception as error:
            if not isinstance(error, SQLAlchemyError) and not is_server_error(error):
                raise
            raise LedgerUnavailable(self.masked_url, f"cannot be reached: {describe_refusal(error)}") from error

    def _translate(self, error: DBAPIError, *, is_opening: bool) -> Exception:
        message = str(error.orig or error)
        description = describe_error(error)
        if any(sign in message for sign in DAMAGE_SIGNS):
            return LedgerBroken(self.masked_url, f"is damaged: {description}; {RESTORE}")
        if "readonly" in message or "read-only" in message:
            if is_opening and self.is_file:
                return LedgerNotWritable("ledger", f"{self.masked_url} is read-only", "give the permission to write")
            return LedgerUnavailable(self.masked_url, "is read-only")
        if any(sign in message for sign in LOCK_SIGNS):
            return LedgerLocked(self.masked_url, "is locked by another process")
        if "disk is full" in message or "No space left" in message:
            return LedgerUnavailable(self.masked_url, "cannot grow: the disk is full")
        if "no such table" in message or "no such column" in message:
            return LedgerBroken(self.masked_url, f"does not have the tables of its version: {description}; {RESTORE}")
        return LedgerUnavailable(self.masked_url, f"cannot be used: {describe_refusal(error)}")


# — URLs and files —


def normalise_url(url: str) -> str:
    """Return the URL for SQLAlchemy: PostgreSQL through psycopg 3, which is not SQLAlchemy's default, and without the
    `db+` of Celery's result backends."""
    url = url.removeprefix("db+")
    scheme, separator, rest = url.partition("://")
    return f"postgresql+psycopg://{rest}" if separator and scheme in ("postgresql", "postgres") else url


def folder_of(url: str) -> Path:
    """Return the folder of a ledger in a file."""
    return Path(str(make_url(url).database)).parent


def data_folder(url: str) -> Path:
    """Return the folder of this machine for the files that belong to a ledger: beside its file, or beside the user's
    default ledger if it is on a server."""
    if url.startswith("sqlite"):
        path = Path(str(make_url(url).database)).absolute()
        return path.with_name(f"{path.name}.d")
    name = hashlib.sha256(url.encode()).hexdigest()[:16]
    if (ledger := default_ledger()) == NO_LEDGER:
        raise InvalidConfig("HOME", "is not set, and this user has no home folder", "set HOME or XDG_STATE_HOME")
    return folder_of(ledger) / f"{name}.d"


def open_read_only(holder: object, url: str, path: Path) -> Engine:
    """Return an engine that reads a file. Raises `InvalidConfig` and `LedgerBroken`."""
    hold_to_read(holder, path)
    engine = create_engine(url, creator=lambda: connect_to_read(path, OPEN_TIMEOUT))
    event.listen(engine, "connect", lambda *_: hold_again(holder, path))
    event.listen(engine, "begin", on_begin)
    return engine


# — connections —


def on_connect(connection: sqlite3.Connection, _: Any) -> None:
    """Prepare a connection to SQLite."""
    connection.isolation_level = None  # `on_begin` begins the transactions
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # takes effect in a new file; `prune` needs it
    if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):  # to set it needs a lock each time
        connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA cache_size = -65536")


def on_begin(connection: Connection) -> None:
    """Begin a transaction of SQLite. A transaction that writes takes the lock at once."""
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def lock_schema(connection: Connection) -> None:
    """Let only one process at a time create or migrate the tables. SQLite has taken its lock already."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(20263107)")


def retry_until(action: Callable[[], T], timeout: float, error: type[LedgerUnavailable] = LedgerUnavailable) -> T:
    """Call `action` until it raises no such `error`, for `timeout` seconds at most. Raises what `action` raises."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return action()
        except error:
            if time.monotonic() >= deadline:
                raise
            time.sleep(RETRY_DELAY)  # a database does not report when it is available again
