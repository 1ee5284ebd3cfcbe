"""The inputs of a run that its tasks do not hold: its working folder, and options of its first start.

They have a table of their own, because Celeriacs that do not know it must be able to use the same ledger.
"""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection, delete, select

from celeriac.errors import describe_error
from celeriac.ledger.codec import decode, encode
from celeriac.ledger.run_writer import insert_rows
from celeriac.ledger.schema import INPUTS, RUNS
from celeriac.log_lines import logger_for

logger = logger_for(__name__)


class RunInputs(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The inputs of a run."""

    folder: str | None = None
    """The working folder of its commands."""

    format: str = "auto"
    """The value of --format."""

    defaults: dict[str, int | float] = {}
    """Fields for jobs that do not set them."""

    parallelism: int | None = None
    """The value of -j."""

    queue_limits: tuple[str, ...] = ()
    """The values of --queue-limit."""

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
DECODER = msgspec.json.Decoder(RunInputs)


def write_inputs(connection: Connection, run: int, inputs: RunInputs) -> None:
    """Store the inputs of a run, in place of earlier ones."""
    insert_rows(connection, INPUTS, [{"run": run, "inputs": encode(inputs)}], replace=True)


def read_inputs(connection: Connection, run: int) -> RunInputs:
    """Return the inputs of a run; the defaults for a run of an earlier version, and for a malformed row."""
    text = connection.execute(select(INPUTS.c.inputs).where(INPUTS.c.run == run)).scalar()
    if text is None:
        return NO_INPUTS
    try:
        return decode(DECODER, text)
    except Exception as error:  # noqa: BLE001 - a decoder can raise anything
        logger.warning("run %s: its inputs are malformed: %s", run, describe_error(error))
        return NO_INPUTS


def delete_inputs(connection: Connection, run: int) -> None:
    """Delete the inputs of a run."""
    connection.execute(delete(INPUTS).where(INPUTS.c.run == run))


def delete_leftover_inputs(connection: Connection) -> None:
    """Delete the inputs of runs that a Celeriac has removed that does not know this table."""
    connection.execute(delete(INPUTS).where(INPUTS.c.run.not_in(select(RUNS.c.id))))
