"""Who owns what is in the ledger: an executor, for as long as its row says so.

What an owner writes counts only while its row is there, and whoever takes over deletes that row first: so of two that
both believe to own a run one writes, and the other is told that it has lost it.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import ColumnElement, Connection, bindparam, delete, func, insert, or_, select, text, update

from celeriac.config.lease import BOOT_ID, LEASE_DURATION
from celeriac.errors import LedgerLost
from celeriac.ledger.database import Database
from celeriac.ledger.schema import OWNERS, RUNS, SUBMITTED

PID_NAMESPACE = Path("/proc/self/ns/pid")
CLOCK_TOLERANCE = 1.0  # seconds by which two looks at the start of one process may differ

RENEW = update(OWNERS).where(OWNERS.c.id == bindparam("mine")).values(until=bindparam("good_until"))


class Owner:
    def __init__(self, store: Database) -> None:
        """Raises `LedgerAway`."""
        self._store = store
        self.id: int = store.write(self._begin)

    def renew_or_raise(self, connection: Connection) -> None:
        """In the transaction that only an owner may make. Raises `LedgerLost`."""
        until = database_time(connection) + LEASE_DURATION
        if connection.execute(RENEW, {"mine": self.id, "good_until": until}).rowcount != 1:
            raise LedgerLost(self._store.masked_url, "was taken over by another executor, which took this one for dead")

    def take(self, connection: Connection, run: int) -> str | None:
        """Own a run. Answers who owns it, if somebody does who may be alive."""
        self.renew_or_raise(connection)
        owner = connection.execute(select(RUNS.c.owner).where(RUNS.c.id == run).with_for_update()).scalar_one()
        if owner is not None and owner != self.id:
            row = connection.execute(select(OWNERS).where(OWNERS.c.id == owner).with_for_update()).one_or_none()
            if row is not None and is_alive(connection, row):
                return owner_label(row)
            connection.execute(delete(OWNERS).where(OWNERS.c.id == owner))
        connection.execute(update(RUNS).where(RUNS.c.id == run).values(owner=self.id, ended=None, counts=None))
        return None

    def take_idle(
        self, connection: Connection, most: int, *, from_dead: bool, own: bool
    ) -> list[tuple[Any, str | None]]:
        """Own runs that were submitted, have not ended, and that nobody owns; with `from_dead` also those whose owner
        is dead. Each with who owned it. Of several that ask at once each gets others. `own` are named, too."""
        self.renew_or_raise(connection)
        theirs = select(RUNS.c.owner).where(SUBMITTED, RUNS.c.owner.is_not(None), RUNS.c.owner != self.id)
        dead = delete_expired(connection, OWNERS.c.id.in_(theirs)) if from_dead else {}
        nobody = or_(RUNS.c.owner.is_(None), RUNS.c.owner.not_in(select(OWNERS.c.id)))
        idle = select(RUNS).where(SUBMITTED, nobody).order_by(RUNS.c.id).limit(most)
        runs = connection.execute(idle.with_for_update(of=RUNS, skip_locked=True)).all()
        # Who has come since that look was begun was not seen by it; now whatever owns one of these is.
        owners = set(connection.execute(select(OWNERS.c.id)).scalars())
        runs = [run for run in runs if run.owner not in owners]
        if own:
            runs += connection.execute(select(RUNS).where(SUBMITTED, RUNS.c.owner == self.id)).all()
        if runs:
            connection.execute(
                update(RUNS).where(RUNS.c.id.in_([run.id for run in runs])).values(owner=self.id, counts=None)
            )
        return [(run, dead.get(run.owner)) for run in runs]

    def release_all(self, connection: Connection) -> None:
        connection.execute(update(RUNS).where(RUNS.c.owner == self.id).values(owner=None))
        connection.execute(delete(OWNERS).where(OWNERS.c.id == self.id))

    def _begin(self, connection: Connection) -> int:
        me = {
            "host": socket.gethostname(),
            "boot_id": this_boot(),
            "pid": os.getpid(),
            "process_started": psutil.Process().create_time(),
            "until": database_time(connection) + LEASE_DURATION,
        }
        made: int = connection.execute(insert(OWNERS).values(**me)).inserted_primary_key[0]
        return made


def delete_expired(connection: Connection, whose: ColumnElement[bool]) -> dict[int, str]:
    """Remove those of them that are dead; answers who they were. A row that is locked is of one that proves that it
    lives."""
    owners = select(OWNERS).where(whose).with_for_update(skip_locked=True)
    dead = {row.id: owner_label(row) for row in connection.execute(owners).all() if not is_alive(connection, row)}
    if dead:
        connection.execute(delete(OWNERS).where(OWNERS.c.id.in_(list(dead))))
    return dead


def owner_label(row: Any) -> str:
    return f"process {row.pid} on {row.host}"


def is_alive(connection: Connection, row: Any) -> bool:
    """On a file, which one machine writes, a process of that machine is there or not, and may take its time. Elsewhere
    only its last sign of life counts: it may be alive and cut off."""
    if connection.dialect.name == "sqlite" and row.host == socket.gethostname():
        if row.boot_id == this_boot():
            return is_running(row.pid, row.process_started)
        if row.boot_id.partition("/")[0] != this_boot().partition("/")[0]:
            return False  # the machine was started anew
    return bool(row.until > database_time(connection))


def is_running(pid: int, started: float) -> bool:
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - started) < CLOCK_TOLERANCE
    except psutil.NoSuchProcess:
        return False


def database_time(connection: Connection) -> float:
    """By one clock for all: the server's."""
    if connection.dialect.name == "postgresql":
        return float(connection.execute(select(func.extract("epoch", func.clock_timestamp()))).scalar_one())
    if connection.dialect.name == "sqlite":
        return time.time()
    return float(connection.execute(text("SELECT UNIX_TIMESTAMP(NOW(6))")).scalar_one())


def this_boot() -> str:
    """Which start of this machine it is, and within it which container."""
    try:
        return f"{BOOT_ID.read_text().strip()}/{PID_NAMESPACE.stat().st_ino}"
    except OSError:  # not Linux
        return f"{psutil.boot_time():.0f}/"
