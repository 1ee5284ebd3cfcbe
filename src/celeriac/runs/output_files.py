"""Read the output of a run on this machine, whatever the ledger says about its place."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def read_file(path: Path, folder: str | None, offset: int, limit: int) -> tuple[bytes, int] | None:
    """Return a part of a regular file in the folder of a run, and its size; None if it cannot be read there.

    A negative `offset` counts from the end. A worker elsewhere could write any path into the ledger.
    """
    if folder is None:
        return None
    try:
        real = path.parent.resolve() / path.name
        if not real.is_relative_to(Path(folder).resolve()):
            return None
        descriptor = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (OSError, ValueError):
        return None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return None
        file.seek(offset if offset >= 0 else max(0, status.st_size + offset))
        return file.read(limit), status.st_size
