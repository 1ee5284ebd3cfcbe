"""The folder with the control sockets of this user's executors. Other users cannot enter it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

SUFFIX = ".sock"
MAX_PATH = 103  # bytes of a socket's path: macOS takes 104 with the final NUL
MAX_NAME = 24  # bytes of a socket's file name
LAST_RESORT = "/tmp"  # noqa: S108 - `ensure_folder` refuses a folder of another user


def folders() -> Iterator[Path]:
    """Yield the possible folders. New sockets go into the first one whose path is short enough."""
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        yield Path(runtime, "celeriac")
    for parent in dict.fromkeys((*temporary_folders(), LAST_RESORT)):
        yield Path(parent, f"celeriac-{os.geteuid()}")


def temporary_folders() -> Iterator[str]:
    """Yield the folder for temporary files, if one can be written: that of `tempfile`, which takes long to import."""
    named = filter(None, map(os.environ.get, ("TMPDIR", "TEMP", "TMP")))
    for folder in (*named, LAST_RESORT, "/var/tmp", "/usr/tmp"):  # noqa: S108
        if os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK):  # noqa: PTH112
            yield os.path.abspath(folder)  # noqa: PTH100
            return


def ensure_folder() -> Path:
    """Return the folder for new sockets. Create it if it does not exist.

    Raise `OSError` if the folder cannot be created, or if other users may enter it; `FileNotFoundError` if another
    executor has removed it at this moment.
    """
    for folder in folders():
        if len(os.fsencode(folder)) + 1 + MAX_NAME <= MAX_PATH:
            break
    folder.mkdir(mode=0o700, exist_ok=True)
    if not keeps_others_out(folder.lstat()):
        raise PermissionError(f"{folder} must be a folder of this user that no other user may enter")
    return folder


def is_private(folder: Path) -> bool:
    """Return whether only this user can have created files in the folder."""
    try:
        return keeps_others_out(folder.lstat())
    except OSError:
        return False


def keeps_others_out(status: os.stat_result) -> bool:
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077


def sockets() -> list[Path]:
    """Return the paths of all control sockets, including those of dead executors."""
    return [path for folder in folders() if is_private(folder) for path in sorted(folder.glob(f"*{SUFFIX}"))]
