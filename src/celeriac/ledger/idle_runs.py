"""The submitted runs that no live process owns, and the owners that are dead."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, or_, select, update

from celeriac.ledger.liveness import owner_label
from celeriac.ledger.owner import Owner, is_alive
from celeriac.ledger.schema import OWNERS, RUNS, SUBMITTED


def take_idle(
    connection: Connection, owner: Owner, limit: int, *, from_dead: bool, include_own: bool
) -> list[tuple[Any, str | None]]:
    """Take submitted runs that have not ended and have no owner; with `from_dead`, runs of dead owners, too.

    Return each row with the label of its dead owner. Two processes that call this at once get different runs. With
    `include_own`, return the runs that this owner has already, too.
    """
    owner.renew_or_raise(connection)
    other_owners = select(RUNS.c.owner).where(SUBMITTED, RUNS.c.owner.is_not(None), RUNS.c.owner != owner.id)
    dead = delete_expired(connection, OWNERS.c.id.in_(other_owners)) if from_dead else {}
    has_no_owner = or_(RUNS.c.owner.is_(None), RUNS.c.owner.not_in(select(OWNERS.c.id)))
    idle = select(RUNS).where(SUBMITTED, has_no_owner).order_by(RUNS.c.id).limit(limit)
    runs = connection.execute(idle.with_for_update(of=RUNS, skip_locked=True)).all()
    # An owner inserted after the SELECT began is invisible to it, so check again.
    owners = set(connection.execute(select(OWNERS.c.id)).scalars())
    runs = [run for run in runs if run.owner not in owners]
    if include_own:
        runs += connection.execute(select(RUNS).where(SUBMITTED, RUNS.c.owner == owner.id)).all()
    if runs:
        connection.execute(
            update(RUNS).where(RUNS.c.id.in_([run.id for run in runs])).values(owner=owner.id, counts=None)
        )
    return [(run, dead.get(run.owner)) for run in runs]


def delete_expired(connection: Connection, condition: ColumnElement[bool]) -> dict[int, str]:
    """Delete the dead owners among those that meet the condition. Return their labels by id.

    A locked row belongs to an owner that is renewing, and is skipped.
    """
    owners = select(OWNERS).where(condition).with_for_update(skip_locked=True)
    dead = {row.id: owner_label(row) for row in connection.execute(owners).all() if not is_alive(connection, row)}
    if dead:
        connection.execute(delete(OWNERS).where(OWNERS.c.id.in_(list(dead))))
    return dead
