"""The file of a ledger in SQLite: how it is created, and the checks before SQLite opens it.

A process that closes a file loses all its locks on it, also those of SQLite, whose descriptors are others. Another
process could then remove the log of a ledger that is open here, with all that is written later. So a file that this
process may have open is not opened a second time beside SQLite.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from weakref import WeakKeyDictionary

from celeriac.config.ownership import problem_of_file
from celeriac.errors import InvalidConfig, LedgerBroken, LedgerNotWritable

CREATE_OR_NAME = "run something first, or name another one"
RESTORE = "put a copy in its place, or move it away"

lock = threading.Lock()
holders: WeakKeyDictionary[object, tuple[int, int]] = WeakKeyDictionary()
"""The objects of this process that may have a file open, with the identity of the file."""


def hold_to_write(holder: object, path: Path, *, must_exist: bool) -> None:
    """Check a file that `holder` will open, and create it unless it `must_exist`. Only its user can read it, because it
    may hold secrets. Raises `InvalidConfig`, `LedgerNotWritable` and `LedgerBroken`."""
    if not path.exists() and must_exist:
        raise InvalidConfig("ledger", f"there is no {path}", CREATE_OR_NAME)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_owner(path)  # before it is opened: a FIFO would block
        hold(holder, path, lambda: os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600)))
    except OSError as error:
        problem = f"{path}: {error.strerror}"
        raise LedgerNotWritable("ledger", problem, "name a file that can be written, or --ledger none") from None


def hold_to_read(holder: object, path: Path) -> None:
    """Check a file that `holder` will read. Raises `InvalidConfig` and `LedgerBroken`."""
    if path.exists() and not path.is_file():
        raise InvalidConfig("ledger", f"{path} is not a regular file", "name a file that can be read")
    try:
        hold(holder, path, lambda: path.open("rb").close())
    except FileNotFoundError:
        raise InvalidConfig("ledger", f"there is no {path}", CREATE_OR_NAME) from None
    except OSError as error:
        raise InvalidConfig("ledger", f"{path}: {error.strerror}", "name a file that can be read") from None


def hold(holder: object, path: Path, try_to_open: Callable[[], None]) -> None:
    """Remember that `holder` will have the file open. If no other holder may have it open, check it first.

    Raises `LedgerBroken`, and what `try_to_open` raises.
    """
    with lock:
        identity = identity_of(path)
        if identity is None or identity not in holders.values():
            try_to_open()
            check_length(path)
        hold_again(holder, path)


def hold_again(holder: object, path: Path) -> None:
    """Remember that `holder` has the file open."""
    if (identity := identity_of(path)) is not None:
        holders[holder] = identity


def release(holder: object) -> None:
    """Remember that `holder` has closed its file."""
    holders.pop(holder, None)


def identity_of(path: Path) -> tuple[int, int] | None:
    """Return the device and the inode of a file; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def check_owner(path: Path) -> None:
    """Raise `InvalidConfig` if another user may have written the ledger or its log: it holds commands that may run."""
    for end in ("", "-wal", "-shm", "-journal"):
        file = path.with_name(path.name + end)
        if (problem := problem_of_file(file, follows=not end)) is not None:
            raise InvalidConfig(
                "ledger", f"{file} {problem}", "use it as its owner, with mode 600, or name another file"
            )


def check_length(path: Path) -> None:
    """Raise `LedgerBroken` if the file is truncated."""
    if is_truncated(path):
        raise LedgerBroken(f"sqlite:///{path}", f"is damaged: the file is shorter than its header says; {RESTORE}")


def is_truncated(path: Path) -> bool:
    """Return whether the file is shorter than its header says. A file with a write-ahead log may be shorter."""
    log = path.with_name(path.name + "-wal")
    if log.exists() and log.stat().st_size:
        return False
    with path.open("rb") as file:
        header = file.read(100)
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        return False  # not a database: SQLite reports that
    page_size = int.from_bytes(header[16:18], "big")
    page_size = 65_536 if page_size == 1 else page_size
    has_page_count = header[24:28] == header[92:96]  # versions of SQLite before 3.7.0 do not write the page count
    return has_page_count and path.stat().st_size < page_size * int.from_bytes(header[28:32], "big")
