"""The pauses of runs. They are stored with the other inputs of a run.

A service reads those of submitted runs, and keeps to them. A live `celeriac run` is asked itself: then they are stored
only to be shown, and count while the owner that was asked has the run.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import ColumnElement, Connection, select

from celeriac.executor.pauses import Pause, Pauses
from celeriac.ledger.codec import decode
from celeriac.ledger.inputs import DECODER, NO_INPUTS, StoredPause, write_inputs
from celeriac.ledger.schema import INPUTS, RUNS, SUBMITTED

WHOLE = ""
"""Stands for the whole run in place of the name of a queue."""

PAUSED = INPUTS.c.inputs.like('%"pauses":%')  # inside a JSON string, these quotes would be escaped
PAUSED_INPUTS = "paused_inputs"
SELECT_PAUSED = select(RUNS.c.name, INPUTS.c.inputs).join(INPUTS, INPUTS.c.run == RUNS.c.id).where(SUBMITTED, PAUSED)


class ChangedPauses(NamedTuple):
    """The pauses of a run after a change."""

    changed: bool
    pauses: Mapping[str, StoredPause]


def paused_inputs() -> ColumnElement[Any]:
    """Return a column for a query of runs: the inputs of a run that is paused."""
    inputs = select(INPUTS.c.inputs).where(INPUTS.c.run == RUNS.c.id, PAUSED)
    return inputs.scalar_subquery().label(PAUSED_INPUTS)


def pauses_of(row: Any, owner: str | None) -> Mapping[str, StoredPause]:
    """Return the pauses of a row of a query of runs; none if they are malformed, or were not asked for."""
    return in_force(decode_pauses(row._mapping.get(PAUSED_INPUTS)), owner)


def in_force(pauses: Mapping[str, StoredPause], owner: str | None) -> Mapping[str, StoredPause]:
    """Return the pauses without those that another owner had."""
    return {queue: pause for queue, pause in pauses.items() if pause.owner in (None, owner)}


def words_of(pauses: Mapping[str, StoredPause]) -> str | None:
    """Return what is paused, for a person; None if nothing is."""
    by_queue = {queue: Pause(pause.asked_by, pause.since) for queue, pause in pauses.items()}
    return Pauses(whole=by_queue.pop(WHOLE, None), queues=by_queue).words() or None


def pauses_of_submitted(connection: Connection) -> dict[str, dict[str, Pause]]:
    """Return the pauses of all submitted runs that have not ended, by run and queue."""
    pauses = {
        name: {queue: Pause(pause.asked_by, pause.since) for queue, pause in decode_pauses(text).items()}
        for name, text in connection.execute(SELECT_PAUSED)
    }
    return {name: of_run for name, of_run in pauses.items() if of_run}


def change_pauses(
    connection: Connection, run: int, queues: Collection[str], *, asked_by: str, resume: bool, owner: str | None
) -> ChangedPauses:
    """Pause a run or queues of it, or resume them. `owner` is that of a run that was asked itself."""
    connection.execute(select(RUNS.c.id).where(RUNS.c.id == run).with_for_update())
    text = connection.execute(select(INPUTS.c.inputs).where(INPUTS.c.run == run).with_for_update()).scalar()
    inputs = NO_INPUTS if text is None else decode(DECODER, text)
    before = in_force(inputs.pauses, owner)
    after = dict(before)
    for queue in queues or [WHOLE]:
        if resume:
            after.pop(queue, None)
        else:
            after.setdefault(queue, StoredPause(asked_by=asked_by, since=time.time(), owner=owner))
    if after != inputs.pauses:
        write_inputs(connection, run, msgspec.structs.replace(inputs, pauses=after))
    return ChangedPauses(after != before, after)


def decode_pauses(text: Any) -> Mapping[str, StoredPause]:
    try:
        return {} if text is None else decode(DECODER, text).pauses
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return {}
