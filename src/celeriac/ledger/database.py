"""A database, opened as a ledger: connections, transactions, and what can go wrong put into words.

SQLite is written by the caller's own thread. A server may not answer: it is asked from a thread, which the caller does
not wait for beyond its deadline; what it wrote after all, the same page will write again.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, SQLAlchemyError

from celeriac.config.postgres import connect_timeouts
from celeriac.config.schema import default_ledger, masked
from celeriac.errors import InvalidConfig, LedgerBroken, LedgerUnavailable
from celeriac.ledger.read_only import check_readable, connect_to_read
from celeriac.ledger.schema import VERSION, migrate, read_version

T = TypeVar("T")

LOCK_TIMEOUT = 0.25  # seconds that a write waits for another process's
OPEN_TIMEOUT = 5.0  # seconds that opening waits for one

RETRY_DELAY = 0.05  # seconds between two tries of what must be done

DAMAGED = ("malformed", "not a database", "file is encrypted")
REMEDY = "write sqlite:///PATH or postgresql+psycopg://USER:PASSWORD@HOST/NAME"


class Database:
    def __init__(self, url: str, *, timeout: float = 2.0, must_exist: bool = False, read_only: bool = False) -> None:
        """`timeout`, in seconds, bounds a write to a server. Makes the ledger if there is none, unless it `must_exist`;
        one that is opened `read_only` must, and need not be writable.

        Raises `InvalidConfig` for what cannot be used as a ledger, `LedgerBroken` and `LedgerAway`.
        """
        self.url = url = normalise_url(url)
        self.masked_url = str(masked(url))
        self._timeout = timeout
        self.is_file = url.startswith("sqlite")
        self._deadline_thread = None if self.is_file else DeadlineThread()
        self.engine = self._open(url, must_exist=must_exist, read_only=read_only)
        try:
            self._prepare(must_exist=must_exist, read_only=read_only)
        except BaseException:  # Ctrl-C too leaves nothing open
            self.close()
            raise

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that writes nothing. Raises `LedgerAway` and `LedgerBroken`."""
        with self._translate_errors(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction, committed at its end. Raises `LedgerAway` and `LedgerBroken`."""
        with (
            self._translate_errors(),
            self.engine.connect() as connection,
            connection.execution_options(writes=True).begin(),
        ):
            yield connection

    def write(self, transaction: Callable[[Connection], T]) -> T:
        """Do it all in one transaction, and return before long. Raises `LedgerAway` and `LedgerBroken`."""

        def work() -> T:
            with self.writing() as connection:
                return transaction(connection)

        return self._with_deadline(work)

    def read(self, question: Callable[[Connection], T], timeout: float | None = None) -> T:
        """Read in one transaction, and return before long, at the latest after `timeout` seconds if given.

        Raises `LedgerAway` and `LedgerBroken`.
        """

        def work() -> T:
            with self.reading() as connection:
                return question(connection)

        return self._with_deadline(work, timeout)

    def _with_deadline(self, work: Callable[[], T], timeout: float | None = None) -> T:
        if self._deadline_thread is None:
            return work()
        timeout = self._timeout if timeout is None else timeout
        try:
            return self._deadline_thread.call(work, timeout)
        except TimeoutError:
            raise LedgerUnavailable(self.masked_url, f"has not answered for {timeout:g} s") from None

    def close(self) -> None:
        if self._deadline_thread is not None:
            self._deadline_thread.close()
        self.engine.dispose()

    def _open(self, url: str, *, must_exist: bool, read_only: bool) -> Engine:
        try:
            parsed = make_url(url)
            path = parsed.database
            if not self.is_file:
                connect_args = connect_timeouts(url, self._timeout)
                return create_engine(url, pool_pre_ping=True, connect_args=connect_args)
            if not path or path == ":memory:" or path.startswith("file:"):
                raise InvalidConfig("ledger", f"{self.masked_url} names no file", "write sqlite:///PATH")
            if read_only:
                return open_read_only(url, Path(path))
            create_private_file(Path(path), must_exist=must_exist)
            engine = create_engine(url, connect_args={"timeout": OPEN_TIMEOUT, "check_same_thread": False})
        except ArgumentError:
            raise InvalidConfig("ledger", "is no URL of a database", REMEDY) from None
        except ModuleNotFoundError as missing:
            problem = f"needs the module {missing.name}, which is not installed"
            raise InvalidConfig("ledger", problem, "install celeriac[postgresql], or name another database") from None
        event.listen(engine, "connect", on_connect)
        event.listen(engine, "begin", on_begin)
        return engine

    def _prepare(self, *, must_exist: bool, read_only: bool) -> None:
        with self._translate_errors(opening=True), self.engine.connect() as connection:
            version = read_version(connection)
        if version is not None and version > VERSION:
            problem = f"is of version {version}, and this Celeriac knows {VERSION}"
            raise InvalidConfig(f"ledger {self.masked_url}", problem, "use the Celeriac that wrote it, or a newer one")
        if version is None and (must_exist or read_only):
            raise InvalidConfig(
                "ledger", f"{self.masked_url} is no ledger yet", "run something first, or name another one"
            )
        if read_only:
            if version != VERSION:
                problem = f"is of version {version}, and must be brought up to {VERSION}"
                raise InvalidConfig(f"ledger {self.masked_url}", problem, "run something with it first")
            return
        with self._translate_errors(opening=True), self.engine.connect() as connection:
            if version is None or version < VERSION:
                with connection.execution_options(writes=True).begin():
                    lock_schema(connection)
                    migrate(connection)
            elif self.is_file:  # a ledger that cannot be written is no use, and better known now
                with connection.execution_options(writes=True).begin():
                    connection.exec_driver_sql("UPDATE celeriac_ledger SET version = version")
        if self.is_file:
            with self.engine.connect() as connection:
                connection.exec_driver_sql(f"PRAGMA busy_timeout = {round(LOCK_TIMEOUT * 1000)}")
            event.listen(self.engine, "connect", set_busy_timeout)

    @contextmanager
    def _translate_errors(self, *, opening: bool = False) -> Iterator[None]:
        try:
            yield
        except IntegrityError:  # for whoever asked: it says that something is there already
            raise
        except DBAPIError as error:
            raise self._translate(error, opening=opening) from error
        except SQLAlchemyError as error:
            raise LedgerUnavailable(self.masked_url, f"cannot be reached: {describe_error(error)}") from error

    def _translate(self, error: DBAPIError, *, opening: bool) -> Exception:
        words = describe_error(error.orig or error)
        if any(sign in words for sign in DAMAGED):
            return LedgerBroken(self.masked_url, f"is damaged: {words}; put a copy in its place, or move it away")
        if "readonly" in words or "read-only" in words:
            if opening:
                return InvalidConfig("ledger", f"{self.masked_url} may only be read", "give the right to write to it")
            return LedgerUnavailable(self.masked_url, "may only be read")
        if "locked" in words:
            return LedgerUnavailable(self.masked_url, "is locked by another process")
        if "disk is full" in words or "No space left" in words:
            return LedgerUnavailable(self.masked_url, "cannot grow: the disk is full")
        if "no such table" in words or "no such column" in words:
            return LedgerBroken(self.masked_url, f"is not what it says: {words}")
        return LedgerUnavailable(self.masked_url, f"cannot be used: {words}")


class DeadlineThread:
    """One thread that may have to wait for a server, so that its caller need not."""

    def __init__(self) -> None:
        self._work: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()
        self._done: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._is_late = False

    def call(self, work: Callable[[], T], timeout: float) -> T:
        """Raises `TimeoutError` after so many seconds, also for what was asked before and has no answer yet."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="celeriac-ledger", daemon=True)
            self._thread.start()
        if self._is_late:
            self._answer(0.0)  # of a call whose caller has gone
        self._work.put(work)
        result, error = self._answer(timeout)
        if error is not None:
            raise error
        done: T = result
        return done

    def close(self) -> None:
        if self._thread is not None:
            self._work.put(None)
            if not self._is_late:
                self._thread.join()

    def _answer(self, timeout: float) -> tuple[Any, BaseException | None]:
        self._is_late = True
        try:
            answer = self._done.get(timeout=timeout) if timeout else self._done.get_nowait()
        except Empty:
            raise TimeoutError from None
        self._is_late = False
        return answer

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                self._done.put((work(), None))
            except BaseException as error:  # noqa: BLE001 - raised again where it was asked for
                self._done.put((None, error))


def normalise_url(url: str) -> str:
    """PostgreSQL is reached through psycopg 3, which SQLAlchemy does not take by itself. `db+` is what Celery puts
    before the URL of a result backend."""
    url = url.removeprefix("db+")
    scheme, found, rest = url.partition("://")
    return f"postgresql+psycopg://{rest}" if found and scheme in ("postgresql", "postgres") else url


def folder_of(url: str) -> Path:
    """Of a ledger in a file."""
    return Path(str(make_url(url).database)).parent


def data_folder(url: str) -> Path:
    """For what belongs to a ledger and to this machine. Beside that of a user on this machine, if it is on a server."""
    if url.startswith("sqlite"):
        path = Path(str(make_url(url).database)).absolute()
        return path.with_name(f"{path.name}.d")
    name = hashlib.sha256(url.encode()).hexdigest()[:16]
    return folder_of(default_ledger()) / f"{name}.d"


def is_writable_folder(folder: Path) -> bool:
    """Whether there is such a folder to write in now. Makes it if it can."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def create_private_file(path: Path, *, must_exist: bool) -> None:
    """The file may hold secrets: nobody else is to read it. Raises `InvalidConfig` if it cannot be made."""
    if not path.exists() and must_exist:
        raise InvalidConfig("ledger", f"there is no {path}", "run something first, or name another one")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        problem = f"{path}: {error.strerror}"
        raise InvalidConfig("ledger", problem, "name a file that can be written, or --ledger none") from None
    check_length(path)


def open_read_only(url: str, path: Path) -> Engine:
    """Raises `InvalidConfig` and `LedgerBroken`."""
    check_readable(path)
    check_length(path)
    engine = create_engine(url, creator=lambda: connect_to_read(path, OPEN_TIMEOUT))
    event.listen(engine, "begin", on_begin)
    return engine


def check_length(path: Path) -> None:
    """Raises `LedgerBroken`."""
    if is_truncated(path):
        problem = "is damaged: it is shorter than it says"
        raise LedgerBroken(f"sqlite:///{path}", f"{problem}; put a copy in its place, or move it away")


def is_truncated(path: Path) -> bool:
    """A file without a log of its own must be as long as its header says."""
    log = path.with_name(path.name + "-wal")
    if log.exists() and log.stat().st_size:
        return False
    with path.open("rb") as file:
        header = file.read(100)
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        return False  # of what is no database SQLite tells
    page = int.from_bytes(header[16:18], "big")
    page = 65_536 if page == 1 else page
    counted = header[24:28] == header[92:96]  # else a very old SQLite wrote it last
    return counted and path.stat().st_size < page * int.from_bytes(header[28:32], "big")


def on_connect(connection: sqlite3.Connection, _: Any) -> None:
    connection.isolation_level = None  # transactions begin where we say so: see `on_begin`
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # of a file that is made now: see `prune`
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA cache_size = -65536")


def set_busy_timeout(connection: sqlite3.Connection, _: Any) -> None:
    connection.execute(f"PRAGMA busy_timeout = {round(LOCK_TIMEOUT * 1000)}")


def on_begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def lock_schema(connection: Connection) -> None:
    """Two that make the same ledger do it one after the other."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(20263107)")


def retry_until(action: Callable[[], T], patience: float) -> T:
    """Try until the ledger can be used, `patience` seconds long. Raises what `action` does."""
    until = time.monotonic() + patience
    while True:
        try:
            return action()
        except LedgerUnavailable:
            if time.monotonic() >= until:
                raise
            time.sleep(RETRY_DELAY)  # nothing tells when it can


def describe_error(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
