"""The ownership of runs: an owner is an executor that has a row in the ledger.

An owner renews its lease in each transaction, and the transaction counts only while the owner's row exists. A process
that takes over a run deletes that row first. So when two processes both believe that they own a run, one of them writes
and the other gets `LedgerLost`.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import ColumnElement, Connection, bindparam, delete, func, insert, or_, select, text, update

from celeriac.config.lease import LEASE_DURATION, boot_id
from celeriac.errors import InvalidConfig, LedgerLost
from celeriac.ledger import liveness
from celeriac.ledger.database import Database
from celeriac.ledger.liveness import Machine, OwnerRow, owner_label
from celeriac.ledger.schema import OWNERS, RUNS, SUBMITTED

PID_NAMESPACE = Path("/proc/self/ns/pid")

RENEW = update(OWNERS).where(OWNERS.c.id == bindparam("owner_id")).values(until=bindparam("lease_end"))


class Owner:
    """This process as an owner of runs."""

    def __init__(self, database: Database) -> None:
        """Insert the owner's row. Raises `LedgerUnavailable`."""
        self._database = database
        self.id: int = database.write_in_turn(self._insert)

    def renew_or_raise(self, connection: Connection) -> None:
        """Renew the lease in a transaction that only an owner may make. Raises `LedgerLost` if the row is gone."""
        lease_end = database_time(connection) + LEASE_DURATION
        if connection.execute(RENEW, {"owner_id": self.id, "lease_end": lease_end}).rowcount != 1:
            raise LedgerLost(
                self._database.masked_url, "was taken over by another executor, which considered this one dead"
            )

    def take(self, connection: Connection, run: int) -> str | None:
        """Take a run. If its owner may be alive, return that owner's label instead."""
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
        self, connection: Connection, limit: int, *, from_dead: bool, include_own: bool
    ) -> list[tuple[Any, str | None]]:
        """Take submitted runs that have not ended and have no owner; with `from_dead`, runs of dead owners, too.

        Return each row with the label of its dead owner. Two processes that call this at once get different runs. With
        `include_own`, return the runs that this owner has already, too.
        """
        self.renew_or_raise(connection)
        other_owners = select(RUNS.c.owner).where(SUBMITTED, RUNS.c.owner.is_not(None), RUNS.c.owner != self.id)
        dead = delete_expired(connection, OWNERS.c.id.in_(other_owners)) if from_dead else {}
        has_no_owner = or_(RUNS.c.owner.is_(None), RUNS.c.owner.not_in(select(OWNERS.c.id)))
        idle = select(RUNS).where(SUBMITTED, has_no_owner).order_by(RUNS.c.id).limit(limit)
        runs = connection.execute(idle.with_for_update(of=RUNS, skip_locked=True)).all()
        # An owner inserted after the SELECT began is invisible to it, so check again.
        owners = set(connection.execute(select(OWNERS.c.id)).scalars())
        runs = [run for run in runs if run.owner not in owners]
        if include_own:
            runs += connection.execute(select(RUNS).where(SUBMITTED, RUNS.c.owner == self.id)).all()
        if runs:
            connection.execute(
                update(RUNS).where(RUNS.c.id.in_([run.id for run in runs])).values(owner=self.id, counts=None)
            )
        return [(run, dead.get(run.owner)) for run in runs]

    def release_all(self, connection: Connection) -> None:
        """Give up all runs and delete the owner's row."""
        connection.execute(update(RUNS).where(RUNS.c.owner == self.id).values(owner=None))
        connection.execute(delete(OWNERS).where(OWNERS.c.id == self.id))

    def _insert(self, connection: Connection) -> int:
        machine = this_machine()
        row = {
            "host": machine.host,
            "boot_id": machine.boot_id,
            "pid": os.getpid(),
            "process_started": psutil.Process().create_time(),
            "until": database_time(connection) + LEASE_DURATION,
        }
        owner_id: int = connection.execute(insert(OWNERS).values(**row)).inserted_primary_key[0]
        return owner_id


def delete_expired(connection: Connection, condition: ColumnElement[bool]) -> dict[int, str]:
    """Delete the dead owners among those that meet the condition. Return their labels by id.

    A locked row belongs to an owner that is renewing, and is skipped.
    """
    owners = select(OWNERS).where(condition).with_for_update(skip_locked=True)
    dead = {row.id: owner_label(row) for row in connection.execute(owners).all() if not is_alive(connection, row)}
    if dead:
        connection.execute(delete(OWNERS).where(OWNERS.c.id.in_(list(dead))))
    return dead


def is_alive(connection: Connection, owner: OwnerRow) -> bool:
    """Return whether an owner may be alive: see `celeriac.ledger.liveness`."""
    machine = this_machine() if connection.dialect.name == "sqlite" else None
    return liveness.is_alive(owner, machine=machine, now=database_time(connection), start_of=start_of)


def database_time(connection: Connection) -> float:
    """Return the server's time, which is the same for all processes, in seconds since the epoch."""
    if connection.dialect.name == "postgresql":
        return float(connection.execute(select(func.extract("epoch", func.clock_timestamp()))).scalar_one())
    if connection.dialect.name == "sqlite":
        return time.time()
    return float(connection.execute(text("SELECT UNIX_TIMESTAMP(NOW(6))")).scalar_one())


def start_of(pid: int) -> float | None:
    """Return the start time of a process of this machine, in seconds since the epoch. None if it has ended."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None


def this_machine() -> Machine:
    """Return the machine and the container that this process runs in. Raises `InvalidConfig` without /proc."""
    try:
        boot = f"{psutil.boot_time():.0f}/"
    except OSError:
        problem = "cannot be read, and without it the owner of a run cannot be told from a later process"
        raise InvalidConfig("/proc", problem, "mount it, or give --ledger none") from None
    with suppress(OSError):  # not Linux, or no /proc
        if kernel_boot_id := boot_id():
            boot = f"{kernel_boot_id}/{PID_NAMESPACE.stat().st_ino}"
    return Machine(socket.gethostname(), boot)
