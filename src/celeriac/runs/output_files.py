"""Read the output of a run on this machine, whatever the ledger says about its place."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from celeriac.worker.output import OutputPolicy

if TYPE_CHECKING:
    from celeriac.ledger.task_attempts import Attempts


def files_of_attempt(attempts: Attempts, number: int) -> dict[str, Path] | None:
    """Return the files of the streams of an attempt that runs; None if its output is kept elsewhere.

    A service runs several runs: its files have the name of the run, too.
    """
    run = attempts.run
    if run.output is None:
        return None
    key = f"{run.name}/{attempts.key}" if run.is_submitted else attempts.key
    request = OutputPolicy(directory=Path(run.output)).request(key, number)
    return {"stdout": Path(str(request.stdout)), "stderr": Path(str(request.stderr))}


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
