"""Transactions on a ledger: they wait their turn, and their errors can be read.

`Database` makes them through SQLAlchemy, for any database. `FileDatabase` makes them without it, for a file of SQLite.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from celeriac.config.masking import masked
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
from celeriac.ledger.ledger_file import CREATE_OR_NAME, RESTORE
from celeriac.ledger.prepared import VERSION
from celeriac.ledger.progress import OnProgress

if TYPE_CHECKING:
    from celeriac.ledger.database import Database

T = TypeVar("T")
C = TypeVar("C")
"""The class of the connections."""

OnLocked: TypeAlias = Callable[[LedgerLocked | None, float], None]
"""Called again and again while a write waits for other processes, with the seconds so far, and with None at its end."""

OPEN_TIMEOUT = 5.0  # seconds that opening waits for the lock of another process
RETRY_DELAY = 0.05  # seconds between two attempts of `retry_until` and `in_turn`

DAMAGE_SIGNS = ("malformed", "not a database", "file is encrypted")  # in the messages of SQLite
LOCK_SIGNS = ("locked", "locking protocol")


class RowExists(Exception):
    """A row has the key, or the name, of another one. The caller handles it."""


class Transactions(ABC, Generic[C]):
    """The transactions of one ledger. Each method may raise `LedgerUnavailable` and `LedgerBroken`."""

    def __init__(self, url: str, on_locked: OnLocked | None) -> None:
        """`on_locked` is for `in_turn`."""
        self.url = url
        self.masked_url = str(masked(url))
        self.is_file = url.startswith("sqlite")
        self.has_all_tables = False
        """Whether the ledger has also the tables that were added to its version later."""

        self.on_locked = on_locked
        self.on_progress: OnProgress | None = None
        """Takes the number of rows while many are read or written."""

    @abstractmethod
    def reading(self) -> AbstractContextManager[C]:
        """Begin a transaction that writes nothing."""

    @abstractmethod
    def writing(self) -> AbstractContextManager[C]:
        """Begin a transaction and commit it at the end."""

    @abstractmethod
    def close(self) -> None:
        """Close the connections. The next use opens them again."""

    @abstractmethod
    def complete(self) -> AbstractContextManager[Database]:
        """Open connections that execute all statements, also expressions of SQLAlchemy."""

    def write(self, transaction: Callable[[C], T]) -> T:
        """Run a function in one transaction."""
        with self.writing() as connection:
            return transaction(connection)

    def write_in_turn(self, transaction: Callable[[C], T]) -> T:
        """Do the same as `write`, but wait for other processes: see `in_turn`."""
        return self.in_turn(lambda: self.write(transaction))

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

    def _open(self, prepare: Callable[[], None]) -> None:
        """Prepare the ledger in turn. After an error no connection stays open."""
        try:
            self.in_turn(prepare) if self.on_locked is not None else retry_until(prepare, OPEN_TIMEOUT, LedgerLocked)
        except BaseException:  # Ctrl-C, too
            self.close()
            raise

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

    def _translate(self, error: BaseException, message: str, *, is_opening: bool) -> Exception:
        """Return the error to raise for one of the database, whose driver gave this message."""
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


AnyTransactions: TypeAlias = Transactions[Any]
"""Of either class: a `Statement` takes the connections of both."""


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


# — files —


def path_of(url: str) -> str | None:
    """Return the path in the URL of a ledger in a file; None for the URL of a server."""
    if (path := plain_path(url)) is not None or not url.startswith("sqlite"):
        return path
    from sqlalchemy.engine import make_url  # late: such a URL is seldom

    return str(make_url(url).database)


def plain_path(url: str) -> str | None:
    """Return the path in a URL `sqlite:///PATH`; None for any other URL."""
    path = url.removeprefix("sqlite:///")
    is_plain = path not in (url, "", ":memory:") and "?" not in path and not path.startswith("file:")
    return path if is_plain else None


def data_folder(url: str) -> Path:
    """Return the folder of this machine for the files that belong to a ledger: beside its file, or beside the user's
    default ledger if it is on a server."""
    if (file := path_of(url)) is not None:
        path = Path(file).absolute()
        return path.with_name(f"{path.name}.d")
    import hashlib  # late: a ledger in a file does not need it

    name = hashlib.sha256(url.encode()).hexdigest()[:16]
    if (ledger := default_ledger()) == NO_LEDGER:
        raise InvalidConfig("HOME", "is not set, and this user has no home folder", "set HOME or XDG_STATE_HOME")
    return Path(str(path_of(ledger))).parent / f"{name}.d"
