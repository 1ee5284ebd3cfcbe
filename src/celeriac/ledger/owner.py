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
from typing import TYPE_CHECKING

from celeriac.config.lease import LEASE_DURATION, boot_id
from celeriac.errors import InvalidConfig, LedgerLost, LedgerUnavailable
from celeriac.ledger import liveness
from celeriac.ledger.liveness import Machine, OwnerRow, owner_label
from celeriac.ledger.prepared import (
    DELETE_OWNER,
    INSERT_OWNER,
    RELEASE_RUNS,
    RENEW_LEASE,
    SELECT_OWNER,
    SELECT_OWNER_OF_RUN,
    TAKE_RUN,
)
from celeriac.ledger.statement import is_sqlite
from celeriac.ledger.transactions import AnyTransactions

if TYPE_CHECKING:
    from celeriac.ledger.statement import AnyConnection

PID_NAMESPACE = Path("/proc/self/ns/pid")
START_FIELD = 19  # of /proc/PID/stat, counted from the name of the program: ticks from the boot to the start


class Owner:
    """This process as an owner of runs."""

    def __init__(self, database: AnyTransactions) -> None:
        """Insert the owner's row. Raises `LedgerUnavailable`."""
        self._database = database
        self.id: int = database.write_in_turn(self._insert)

    def renew_or_raise(self, connection: AnyConnection) -> None:
        """Renew the lease in a transaction that only an owner may make. Raises `LedgerLost` if the row is gone."""
        lease_end = database_time(connection) + LEASE_DURATION
        if RENEW_LEASE.execute(connection, {"owner_id": self.id, "lease_end": lease_end}).rowcount != 1:
            raise LedgerLost(
                self._database.masked_url, "was taken over by another executor, which considered this one dead"
            )

    def take(self, connection: AnyConnection, run: int) -> str | None:
        """Take a run. If its owner may be alive, return that owner's label instead."""
        self.renew_or_raise(connection)
        owner = SELECT_OWNER_OF_RUN.scalar(connection, {"of_run": run})
        if owner is not None and owner != self.id:
            for row in list(SELECT_OWNER.rows(connection, {"owner_id": owner})):
                if is_alive(connection, row):
                    return owner_label(row)
            DELETE_OWNER.execute(connection, {"owner_id": owner})
        if TAKE_RUN.execute(connection, {"of_run": run, "owner_id": self.id}).rowcount != 1:
            raise LedgerUnavailable(self._database.masked_url, "no longer has the run: another process has removed it")
        return None

    def release_all(self, connection: AnyConnection) -> None:
        """Give up all runs and delete the owner's row."""
        RELEASE_RUNS.execute(connection, {"owner_id": self.id})
        DELETE_OWNER.execute(connection, {"owner_id": self.id})

    def _insert(self, connection: AnyConnection) -> int:
        machine = this_machine()
        row = {
            "host": machine.host,
            "boot_id": machine.boot_id,
            "pid": os.getpid(),
            "process_started": start_of_this_process(),
            "until": database_time(connection) + LEASE_DURATION,
        }
        return INSERT_OWNER.insert(connection, row)


def is_alive(connection: AnyConnection, owner: OwnerRow) -> bool:
    """Return whether an owner may be alive: see `celeriac.ledger.liveness`."""
    machine = this_machine() if is_sqlite(connection) else None
    return liveness.is_alive(owner, machine=machine, now=database_time(connection), start_of=start_of)


def database_time(connection: AnyConnection) -> float:
    """Return the server's time, which is the same for all processes, in seconds since the epoch."""
    if is_sqlite(connection):
        return time.time()
    from celeriac.ledger.statements import server_time  # late: it imports SQLAlchemy

    return server_time(connection)


def start_of(pid: int) -> float | None:
    """Return the start time of a process of this machine, as `seconds_from_boot` has it. None if it has ended."""
    import psutil  # late: a new run need not know the start of another process

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        started = seconds_from_boot(str(pid))
        return process.create_time() if started is None else started
    except psutil.NoSuchProcess:
        return None


def start_of_this_process() -> float:
    """Return the start time of this process, as `start_of` does."""
    started = seconds_from_boot("self")
    if started is None:
        import psutil  # late: to import it takes longer than to record a run

        return psutil.Process().create_time()
    return started


def seconds_from_boot(process: str) -> float | None:
    """Return the seconds from the boot to the start of a process in /proc. None where the system has no such file.

    A step of the clock changes the seconds since the epoch that are told of the start of a process: a live owner would
    count as dead.
    """
    try:
        status = Path(f"/proc/{process}/stat").read_bytes()
    except OSError:
        return None
    return int(status.rpartition(b")")[2].split()[START_FIELD]) / os.sysconf("SC_CLK_TCK")


def this_machine() -> Machine:
    """Return the machine and the container that this process runs in. Raises `InvalidConfig` without /proc."""
    with suppress(OSError):  # not Linux, or no /proc
        if kernel_boot_id := boot_id():
            return Machine(socket.gethostname(), f"{kernel_boot_id}/{PID_NAMESPACE.stat().st_ino}")
    import psutil

    try:
        boot = f"{psutil.boot_time():.0f}/"
    except OSError:
        problem = "cannot be read, and without it the owner of a run cannot be told from a later process"
        raise InvalidConfig("/proc", problem, "mount it, or give --ledger none") from None
    return Machine(socket.gethostname(), boot)
