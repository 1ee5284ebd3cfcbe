"""Count the waiting tasks of a run by queue. A queue is a part of the stored JSON, and has no index.

One query over the waiting tasks takes a second or two for a million. So it runs beside the requests, and its result is
shared: see `reads`. The database does the work: decoding in Python would hold up the other threads.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, and_, case, func, or_, select

from celeriac.ledger.database import Database
from celeriac.ledger.schema import TASKS, UNFINISHED
from celeriac.ledger.views import RunView
from celeriac.task.state import State
from celeriac.task.task import DEFAULT_QUEUE
from celeriac.web.task_pages import QUEUE

FIELD = '"queue":"'  # a quote within a text of JSON is escaped, so this is the name of a field or of a variable
ENV = '"env":{'  # comes after the queue
MAX_DECODED = 100_000  # tasks whose queues have unusual names


def count_waiting(database: Database, run: RunView) -> dict[str, int]:
    """Return the number of waiting tasks by queue, the fullest first. Raises `LedgerError`.

    Tasks that are only in the file of their run are in no queue yet.
    """
    waits = and_(TASKS.c.run == run.id, UNFINISHED, TASKS.c.state == State.WAITING.value)  # the index has `UNFINISHED`
    with database.reading() as connection:
        name = queue_name(connection.dialect.name)
        groups = select(name.label("queue"), func.count().label("number")).where(waits).group_by("queue")
        counts: Counter[str] = Counter()
        for queue, number in connection.execute(groups).all():
            if "\\" in queue:  # the name has escaped characters, and may be cut off at one
                counts.update(decoded_queues(connection, waits, name == queue))
            else:
                counts[queue] += number
    return dict(counts.most_common())


def queue_name(dialect: str) -> ColumnElement[str]:
    """Return the part of the stored JSON that names the queue."""
    position = func.instr if dialect == "sqlite" else func.strpos
    payload = TASKS.c.payload
    begin, env = position(payload, FIELD), position(payload, ENV)
    rest = func.substr(payload, begin + len(FIELD))
    is_named = and_(begin > 0, or_(env == 0, begin < env))
    return case((is_named, func.substr(rest, 1, position(rest, '"') - 1)), else_=DEFAULT_QUEUE)


def decoded_queues(connection: Connection, *conditions: Any) -> Counter[str]:
    """Count tasks by their decoded queues. Leave malformed tasks out."""
    queues: Counter[str] = Counter()
    for payload in connection.execute(select(TASKS.c.payload).where(*conditions).limit(MAX_DECODED)).scalars():
        with suppress(msgspec.MsgspecError, RecursionError):
            queues[QUEUE.decode(payload).queue] += 1
    return queues
