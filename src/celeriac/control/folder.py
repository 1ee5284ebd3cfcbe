"""Where the sockets of this user's executors are: in a folder that is nobody else's."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

SUFFIX = ".sock"
LONGEST_PATH = 103  # bytes of a socket's path: 104 with its end, on macOS
LONGEST_NAME = 24  # bytes, of a socket's name
LAST_RESORT = "/tmp"  # noqa: S108 - `made` refuses what is not ours


def folders() -> Iterator[Path]:
    """The first is where a socket is made, if its path is short enough."""
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        yield Path(runtime, "celeriac")
    for place in dict.fromkeys((tempfile.gettempdir(), LAST_RESORT)):
        yield Path(place, f"celeriac-{os.geteuid()}")


def ensure_folder() -> Path:
    """The folder, made if it was not there. Raises `OSError` for one that is not ours alone."""
    for folder in folders():
        if len(os.fsencode(folder)) + 1 + LONGEST_NAME <= LONGEST_PATH:
            break
    folder.mkdir(mode=0o700, exist_ok=True)
    if not is_ours(folder):
        raise PermissionError(f"{folder} is not a folder of this user's alone")
    return folder


def is_ours(folder: Path) -> bool:
    """Whether nobody else can have put anything there."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077


def sockets() -> list[Path]:
    """Those that are there, of executors alive and dead."""
    return [path for folder in folders() if is_ours(folder) for path in sorted(folder.glob(f"*{SUFFIX}"))]
