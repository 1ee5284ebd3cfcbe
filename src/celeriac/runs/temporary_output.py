"""The temporary folders for the output of runs: they stay if a task failed, and are removed when they are old.

A process locks the folder of its run, so that no other process removes it.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "celeriac-output-"
NAME = rf"{PREFIX}[a-z0-9_]{{8}}"


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Lock the folder of a run. Remove it at the end if it is empty."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(lock)
        if not any(folder.iterdir()):
            folder.rmdir()


def remove_old_folders(age: float) -> list[Path]:
    """Remove the folders of this user in which nothing has changed for `age` seconds. Return them."""
    before = time.time() - age
    folders: list[Path] = []
    with suppress(OSError):
        parent = tempfile.gettempdir()
        folders += [Path(parent, name) for name in os.listdir(parent) if is_name(name)]  # noqa: PTH208 - it may be full
    return [folder for folder in folders if is_unchanged(folder, before) and remove_folder(folder)]


def is_temporary(folder: Path) -> bool:
    """Return whether the folder may be one of a run."""
    return folder.parent == Path(tempfile.gettempdir()) and is_name(folder.name)


def is_name(name: str) -> bool:
    """Return whether a name may be that of a folder of a run."""
    return name.startswith(PREFIX) and re.fullmatch(NAME, name) is not None


def remove_folder(folder: Path) -> bool:
    """Remove a temporary folder of this user, unless a run uses it. Return whether it was removed."""
    if not is_temporary(folder):
        return False
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        if os.fstat(lock).st_uid != os.geteuid():
            return False
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
    except OSError:  # a run has the lock, or a file cannot be removed
        return False
    finally:
        os.close(lock)
    return True


def is_unchanged(folder: Path, since: float) -> bool:
    """Return whether nothing in a folder has changed since a time, in seconds since the epoch."""
    try:
        return folder.lstat().st_mtime < since and all(file.lstat().st_mtime < since for file in folder.iterdir())
    except OSError:  # another process removes it
        return False
