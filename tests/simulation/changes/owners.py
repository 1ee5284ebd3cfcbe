"""Changes of the owner sessions of several `serve`: of taking runs, renewing, losing and releasing them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from msgspec.structs import replace as replace_struct
from sqlalchemy import Connection, select, update

from celeriac.executor.adjustments import Adjustments
from celeriac.ledger import idle_runs, owned_runs
from celeriac.ledger import owner as owner_module
from celeriac.ledger.liveness import owner_label
from celeriac.ledger.owned_runs import OwnedRuns
from celeriac.ledger.owner import Owner, is_alive
from celeriac.ledger.schema import OWNERS, RUNS
from celeriac.runs.owner_session import OwnerSession
from tests.simulation.changes.change import change

REAL_TAKE, REAL_RELEASE, REAL_EVENT_ROW = idle_runs.take_idle, Owner.release_all, OwnedRuns._event_row
HASTE = 7.0  # seconds before the end of its lease


def write_without_renewal(owner: Owner, connection: Connection) -> None:
    """Do not look whether the owner's row exists."""


def free_runs_of_expired(connection: Connection, condition: Any) -> dict[int, str]:
    """Take the runs of dead owners, and leave them their rows."""
    rows = connection.execute(select(OWNERS).where(condition)).all()
    dead = {row.id: owner_label(row) for row in rows if not is_alive(connection, row)}
    connection.execute(update(RUNS).where(RUNS.c.owner.in_(list(dead))).values(owner=None))
    return dead


def is_alive_hastily(connection: Connection, owner: Any) -> bool:
    return is_alive(connection, owner) and bool(owner.until > owner_module.database_time(connection) + HASTE)


def release_all_of_all(owner: Owner, connection: Connection) -> None:
    connection.execute(update(RUNS).values(owner=None))
    REAL_RELEASE(owner, connection)


def take_without_own(*args: Any, include_own: bool, **options: Any) -> Any:
    return REAL_TAKE(*args, include_own=False, **options)


def event_row_from_one(runs: OwnedRuns, event: Any) -> dict[str, Any]:
    row = REAL_EVENT_ROW(runs, event)
    return row | {"number": event.number}


def all_requests(session: OwnerSession) -> Collection[Any]:
    return list(session._requests)


def resume_without_blocked(session: OwnerSession, run: Any) -> list[Any]:
    """Take what needs others for tasks that need nothing."""
    blocked, session._blocked = session._blocked, []
    return [replace_struct(unfinished, task=replace_struct(unfinished.task, needs=())) for unfinished in blocked]


change(
    "owner-without-renewal",
    "An owner writes without a look whether it was declared dead: it goes on with what another one has taken over.",
    (Owner, "renew_or_raise", write_without_renewal),
)
change(
    "takeover-without-fence",
    "The runs of an owner whose lease expired are taken, and its row stays: when it wakes up it sends tasks.",
    (idle_runs, "delete_expired", free_runs_of_expired),
)
change(
    "hasty-takeover",
    "An owner is taken for dead before its lease ends.",
    (idle_runs, "is_alive", is_alive_hastily),
    (owned_runs, "is_alive", is_alive_hastily),
)
change(
    "release-of-all",
    "A `serve` that ends gives up the runs of the others, too.",
    (Owner, "release_all", release_all_of_all),
)
change(
    "taken-unseen",
    "If the reply to a take is lost, the owner has a run that it does not know of, and no process goes on with it.",
    (owned_runs, "take_idle", take_without_own),
)
change(
    "numbers-from-one",
    "The next owner gives its events the numbers of the earlier ones: the ledger lacks its own.",
    (OwnedRuns, "_event_row", event_row_from_one),
)
change(
    "requests-acknowledged-early",
    "A request to cancel is deleted before its task is revoked: a crash in between loses it.",
    (OwnerSession, "finished_requests", all_requests),
)
change(
    "needs-of-others-forgotten",
    "The next owner takes what needs another task for a task that needs none.",
    (OwnerSession, "take_blocked", resume_without_blocked),
)
change(
    "deaf-to-run-pauses",
    "An owner goes on with a submitted run that is paused.",
    (Adjustments, "pause_runs", lambda adjustments, pauses: False),
)
