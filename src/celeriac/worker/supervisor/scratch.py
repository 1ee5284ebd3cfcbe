"""The scratch folders of commands: one for each attempt, removed when the attempt has ended.

TMPDIR/celeriac-scratch-MARK/      the folder of the supervisor with this mark, which holds its lock
TMPDIR/celeriac-scratch-MARK/N/    the folder of one command

The folder of a killed supervisor is removed by its worker, or else when the next supervisor makes a scratch folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from itertools import count

from celeriac.shortages import is_shortage

PREFIX = "celeriac-scratch-"
OWNER_ONLY = 0o700
LOCK_TRIES = 10
LOCK_DELAY = 0.02  # seconds between two tries


class NoScratchFolder(Exception):
    """The folder cannot be made."""

    about = "scratch"

    def __init__(self, text: str, number: int | None) -> None:
        super().__init__(text)
        self.errno = number


class ScratchFolders:
    """The scratch folders of one supervisor."""

    def __init__(self, mark: str) -> None:
        self._base = base_of(mark)
        self._numbers = count(1)
        self._lock = -1

    def next_path(self) -> str:
        """Return the path of a folder that does not exist yet."""
        return f"{self._base}/{next(self._numbers)}"

    def make(self, path: str) -> None:
        """Make the folder of this path, if it is missing. Raises `NoScratchFolder`, and `OSError` for lack of means."""
        try:
            if self._lock < 0:
                self._lock = make_locked(self._base)
            with contextlib.suppress(FileExistsError):  # the start of its command is tried again
                os.mkdir(path, OWNER_ONLY)
        except OSError as error:
            if is_shortage(error):
                raise
            raise NoScratchFolder(f"{self._base}: {error.strerror}", error.errno) from None

    def remove(self, path: str) -> None:
        """Remove a folder with all that is in it. Safe in any thread."""
        remove_tree(path)

    def close(self) -> None:
        """Remove all folders. No command may run any more."""
        if self._lock >= 0:
            remove_tree(self._base)
            os.close(self._lock)


def base_of(mark: str) -> str:
    """Return the folder of the supervisor with this mark."""
    return os.path.join(tempfile.gettempdir(), f"{PREFIX}{mark}")


def make_locked(folder: str) -> int:
    """Make a folder, and return the descriptor of its lock. Raises `OSError`."""
    for _ in range(LOCK_TRIES):
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, OWNER_ONLY)
        try:
            if (lock := try_lock(folder)) is not None:
                return lock
        except FileNotFoundError:  # another process took it for abandoned
            pass
        time.sleep(LOCK_DELAY)
    raise BlockingIOError(0, f"{folder} is locked")


def try_lock(folder: str) -> int | None:
    """Return the descriptor of a folder that is now locked; None if another process has the lock, or another user the
    folder. Raises `OSError`."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(lock).st_uid == os.geteuid():
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), os.stat(folder)):
                return lock
    except BlockingIOError:
        pass
    except BaseException:
        os.close(lock)
        raise
    os.close(lock)
    return None


def remove_abandoned() -> None:
    """Remove the folders of all supervisors that have ended without removing them."""
    parent = tempfile.gettempdir()
    with contextlib.suppress(OSError):
        for name in os.listdir(parent):
            if name.startswith(PREFIX):
                remove_if_abandoned(os.path.join(parent, name))


def remove_if_abandoned(folder: str) -> None:
    """Remove the folder of a supervisor, unless that lives."""
    with contextlib.suppress(OSError):
        if (lock := try_lock(folder)) is not None:
            remove_tree(folder)
            os.close(lock)


def remove_tree(folder: str) -> None:
    """Remove a folder with all that is in it, also what is in folders that may not be written. Raises no error."""
    shutil.rmtree(folder, ignore_errors=True)
    if not os.path.lexists(folder):
        return
    with contextlib.suppress(OSError):
        os.chmod(folder, OWNER_ONLY)
    for parent, names, _ in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            if not os.path.islink(path):
                with contextlib.suppress(OSError):
                    os.chmod(path, OWNER_ONLY)
    shutil.rmtree(folder, ignore_errors=True)
