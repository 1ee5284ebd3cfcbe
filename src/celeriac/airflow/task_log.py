"""Lines that Celeriac adds to the log of a task, in the format in which Airflow's supervisor writes it.

worker, its child is dead ─► the try's own file, which the worker's log server serves
scheduler ─► a file beside it, `attempt=N.log.celeriac.log`: Airflow reads all files whose names begin as the try's
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from pathlib import Path

from airflow.configuration import conf
from airflow.sdk.log import init_log_file

from celeriac.airflow import adoption, versions
from celeriac.airflow.failure_log import Failure
from celeriac.errors import describe_error
from celeriac.log_lines import logger_for

SUFFIX = ".celeriac.log"
MAX_TAIL = 64 * 1024  # bytes at the end of a log in which a line is searched

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


# — in the scheduler —


def write_failure(failure: Failure) -> None:
    """Write why a try failed into a file beside its log, and upload it where remote logging is configured.

    A file that only this machine has could keep the API server from asking the worker's log server for the log of a try
    that has started. So it is written only if the log is in the same folder: the workers share it.
    """
    upload, ti, relative = versions.remote_upload(), None, failure.log_path
    if relative is None or upload is not None:
        ti, rendered = adoption.read_log_path(failure.ti_id, failure.try_number)
        relative = relative or rendered
    path = path_in(base_folder(), relative)
    if path is None or relative is None:
        return
    is_shared = path.is_file()
    is_told = is_shared and says(path, failure.detail)
    if upload is None and (is_told or (failure.has_started and not is_shared)):
        return
    try:
        with init_log_file(relative + SUFFIX).open("a") as file:
            file.write(log_line(failure.text, logging.ERROR, failure.at))
        if upload is not None and ti is not None:
            upload(relative + SUFFIX, ti)
    except Exception as error:  # noqa: BLE001 - any kind of remote logging
        log.warning("why a try failed cannot be added to its log %s: %s", relative, describe_error(error))


def says(path: Path, detail: str) -> bool:
    """Return whether the last lines of a log have this text."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - MAX_TAIL))
        return json.dumps(detail)[1:-1].encode() in file.read()
