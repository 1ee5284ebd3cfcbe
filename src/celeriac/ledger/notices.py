"""The submitted runs whose ends a service has to report, as the ledger remembers them.

A service that reports one first puts the time of `notice_due` off, so that no other does it at once. It removes the
time when the end is reported: if the service dies before, the next one reports it when that time has come.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec
from sqlalchemy import Connection, select, update

from celeriac.ledger.codec import decode, encode
from celeriac.ledger.database import Database
from celeriac.ledger.inputs import DECODER, RunInputs
from celeriac.ledger.schema import INPUTS, RUNS

DUE = INPUTS.c.inputs.like('%"notice_due":%')  # inside a JSON string, these quotes would be escaped


class StoredInputs(NamedTuple):
    """The inputs of a submitted run."""

    run: int
    name: str
    inputs: RunInputs
    text: str
    """As the ledger has them."""


def due_ends(database: Database, now: float) -> list[StoredInputs]:
    """Return the runs that have ended and whose ends are to be reported now, in seconds since the epoch."""
    if not database.has_all_tables:
        return []
    with database.reading() as connection:
        ended = list(stored(connection, RUNS.c.ended.is_not(None), DUE))
    return [each for each in ended if each.inputs.notice_due is not None and each.inputs.notice_due <= now]


def find_inputs(database: Database, name: str) -> StoredInputs | None:
    """Return the inputs of the run of this name; None if it has none."""
    if not database.has_all_tables:
        return None
    with database.reading() as connection:
        return next(stored(connection, RUNS.c.name == name), None)


def stored(connection: Connection, *conditions: object) -> Iterator[StoredInputs]:
    """Yield the inputs of submitted runs. Malformed ones are left out."""
    query = select(RUNS.c.id, RUNS.c.name, INPUTS.c.inputs).join(INPUTS, INPUTS.c.run == RUNS.c.id)
    for run, name, text in connection.execute(query.where(RUNS.c.submitted, *conditions).order_by(RUNS.c.id)).all():
        try:
            yield StoredInputs(run, name, decode(DECODER, text), text)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            continue


def change_inputs(database: Database, before: StoredInputs, **changes: object) -> StoredInputs | None:
    """Change the inputs of a run. Return None if another process has changed them since."""
    inputs = msgspec.structs.replace(before.inputs, **changes)
    after = before._replace(inputs=inputs, text=encode(inputs))
    unchanged = (INPUTS.c.run == before.run, INPUTS.c.inputs == before.text)

    def transaction(connection: Connection) -> bool:
        return bool(connection.execute(update(INPUTS).where(*unchanged).values(inputs=after.text)).rowcount)

    return after if database.write_in_turn(transaction) else None
