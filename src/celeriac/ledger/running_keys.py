"""The keys of tasks that workers run, by the ids in the workers' leases."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from sqlalchemy import select

from celeriac.ledger.database import Database
from celeriac.ledger.schema import TASKS, UNFINISHED

MOST_URGENT = 5_000  # unfinished tasks of one run that are looked at: running ones are among the most urgent
MAX_IDS = 500  # in one statement


def keys_of_ids(database: Database, runs: Iterable[int], ids: Collection[str]) -> dict[str, str]:
    """Return the keys of these message ids, as far as they are among the most urgent unfinished tasks of these runs.

    There is no index of ids, so not all tasks of a large run are searched. Raises `LedgerError`.
    """
    found: dict[str, str] = {}
    columns = (TASKS.c.id, TASKS.c.attempt, TASKS.c.key)
    with database.reading() as connection:
        for run in runs:
            missing = [each for each in ids if each not in found][:MAX_IDS]
            if not missing:
                break
            urgent = (
                select(*columns)
                .where(TASKS.c.run == run, UNFINISHED)
                .order_by(TASKS.c.priority.desc(), TASKS.c.place)
                .limit(MOST_URGENT)
                .subquery()
            )
            first_ids = {*missing, *(each.rpartition(".")[0] for each in missing)}  # a later attempt adds its number
            for row in connection.execute(select(urgent).where(urgent.c.id.in_(first_ids))):
                found[row.id if row.attempt == 1 else f"{row.id}.{row.attempt}"] = row.key
    return found
