"""Why a try failed, in a file beside its log: `attempt=N.log.celeriac.log`. The scheduler's side of `task_log`.

Airflow reads all files whose names begin as that of the try's log.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from airflow.sdk.log import init_log_file

from celeriac.airflow import adoption, versions
from celeriac.airflow.failure_log import Failure
from celeriac.airflow.task_log import base_folder, log_line, path_in
from celeriac.errors import describe_error
from celeriac.log_lines import logger_for

SUFFIX = ".celeriac.log"
MAX_TAIL = 64 * 1024  # bytes at the end of a log in which a line is searched

log = logger_for(__name__)


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
