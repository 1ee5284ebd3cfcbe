"""Lines that Celeriac adds to the log of a task, in the format in which Airflow's supervisor writes it.

worker, its child is dead ─► the try's own file, which the worker's log server serves

`failure_file` is the scheduler's side.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from pathlib import Path

from airflow.configuration import conf

from celeriac.errors import describe_error
from celeriac.log_lines import logger_for

log = logger_for(__name__)


def base_folder() -> Path:
    return Path(conf.get("logging", "base_log_folder"))


def log_line(text: str, level: int, at: datetime | None = None) -> str:
    """Return one line of a task's log."""
    moment = (at or datetime.now(UTC)).isoformat().replace("+00:00", "Z")
    name = logging.getLevelName(level).lower()
    return json.dumps({"timestamp": moment, "event": text, "level": name, "logger": "celeriac"}) + "\n"


def path_in(base: Path, relative: str | None) -> Path | None:
    """Return the path of a log; None for a path outside of the folder: a message may name any."""
    if not relative:
        return None
    path = (base / relative).resolve()
    return path if path.is_relative_to(base.resolve()) else None


def append_to_existing(relative: str | None, text: str, level: int) -> None:
    """Append a line to a log that a supervisor has begun. If that fails, only the worker's log has the line."""
    path = path_in(base_folder(), relative)
    if path is None or not path.is_file():
        return
    try:
        with path.open("a") as file:
            file.write(log_line(text, level))
    except OSError as error:
        log.warning("the log of a task cannot be written: %s: %s", path, describe_error(error))
