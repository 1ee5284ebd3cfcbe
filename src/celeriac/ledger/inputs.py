"""The inputs of a run that its tasks do not hold: its working folder, and options of its first start.

They have a table of their own, because Celeriacs that do not know it must be able to use the same ledger.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from celeriac.errors import describe_error
from celeriac.ledger.codec import decode, encode
from celeriac.ledger.prepared import REPLACE_INPUTS, SELECT_INPUTS
from celeriac.log_lines import logger_for

if TYPE_CHECKING:
    from celeriac.ledger.statement import AnyConnection

logger = logger_for(__name__)


class StoredPause(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The pause of a run, or of one of its queues."""

    asked_by: str
    since: float
    """Seconds since the epoch."""

    owner: str | None = None
    """The label of the owner that was asked itself; None if services keep to the pause."""


class RunInputs(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The inputs of a run."""

    tags: tuple[str, ...] = ()
    """Words by which the run is found."""

    pauses: dict[str, StoredPause] = {}
    """By queue; "" for the whole run."""

    folder: str | None = None
    """The working folder of its commands."""

    format: str = "auto"
    """The value of --format."""

    defaults: dict[str, int | float | bool] = {}
    """Fields for jobs that do not set them."""

    template: dict[str, object] | None = None
    """What makes the commands: see `celeriac.runs.job_file.template.JobTemplate`."""

    parallelism: int | None = None
    """The value of -j."""

    cpus: str | None = None
    """The value of --cpus."""

    memory: str | None = None
    """The value of --memory."""

    gpus: str | None = None
    """The value of --gpus."""

    queue_limits: tuple[str, ...] = ()
    """The values of --queue-limit."""

    concurrency_limits: tuple[str, ...] = ()
    concurrency_rates: tuple[str, ...] = ()
    queue_rates: tuple[str, ...] = ()
    max_load: str | None = None
    """The value of --max-load."""

    min_free_memory: str | None = None
    """The value of --min-free-memory."""

    delay: str | None = None
    """The value of --delay."""

    output: str | None = None
    """The absolute path of --output."""

    on_end: str | None = None
    """The value of --on-end."""

    notify: str | None = None
    """The value of --notify."""

    notify_file: str | None = None
    """The absolute path of --notify-file."""

    notify_first_failure: bool = False
    notice_due: float | None = None
    """The time from which a service may report the end of a submitted run, in seconds since the epoch; None if it need
    not be reported, or was."""

    failure_reported: bool = False
    """Whether a service has reported the first failure of a submitted run."""


NO_INPUTS = RunInputs()
ELSEWHERE = "/"
"""At the end of the folder for output, in the row of a run: workers elsewhere run the commands, and their output comes
to the folder. An earlier version reads the same path. Without a folder they run elsewhere, too, and keep their output.
"""

DECODER = msgspec.json.Decoder(RunInputs)


def write_inputs(connection: AnyConnection, run: int, inputs: RunInputs) -> None:
    """Store the inputs of a run, in place of earlier ones."""
    REPLACE_INPUTS.execute(connection, {"run": run, "inputs": encode(inputs)})


def read_inputs(connection: AnyConnection, run: int) -> RunInputs:
    """Return the inputs of a run; the defaults for a run of an earlier version, and for a malformed row."""
    text = SELECT_INPUTS.scalar(connection, {"of_run": run})
    if text is None:
        return NO_INPUTS
    try:
        return decode(DECODER, text)
    except Exception as error:  # noqa: BLE001 - a decoder can raise anything
        logger.warning("run %s: its inputs are malformed: %s", run, describe_error(error))
        return NO_INPUTS


def stored_folder(folder: Path | None, *, on_workers: bool) -> str | None:
    """Return the folder for output as the row of a run has it."""
    return None if folder is None else f"{folder}{ELSEWHERE if on_workers else ''}"


def folder_of_output(stored: str | None) -> tuple[str | None, bool]:
    """Return the folder for output of the row of a run, and whether workers elsewhere run the commands."""
    if stored is None:
        return None, True
    return stored.rstrip("/") or "/", stored.endswith(ELSEWHERE)
