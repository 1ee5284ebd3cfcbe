"""Decide whether the owner of a run is alive. Values in, decisions out: no SQL, no clock, no processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

CLOCK_TOLERANCE = 1.0  # seconds by which two readings of the start time of one process may differ


class OwnerRow(Protocol):
    """The row of an owner in the ledger."""

    @property
    def host(self) -> str: ...
    @property
    def boot_id(self) -> str: ...
    @property
    def pid(self) -> int: ...
    @property
    def process_started(self) -> float: ...
    @property
    def until(self) -> float: ...


class Machine(NamedTuple):
    """A machine since its last boot, seen from one container."""

    host: str
    boot_id: str
    """The boot and the PID namespace, as BOOT/NAMESPACE. Process ids of two namespaces cannot be compared."""


def is_alive(owner: OwnerRow, *, machine: Machine | None, now: float, start_of: Callable[[int], float | None]) -> bool:
    """Return whether an owner may be alive. If not, another process may take its runs.

    `machine` is this machine if the ledger is a file, because only one machine writes it. An owner of this machine and
    container is alive while its process exists, even if it is slow to renew. An owner from before the last boot is
    dead. In all other cases the lease decides.

    `machine` is None for a server: a process elsewhere may be alive and cut off, so the lease alone decides. `now` and
    `until` are on the same clock. `start_of` returns the start time of the process with this id, or None.
    """
    if machine is not None and owner.host == machine.host:
        if owner.boot_id == machine.boot_id:
            return is_same_process(owner.process_started, start_of(owner.pid))
        if boot_of(owner.boot_id) != boot_of(machine.boot_id):
            return False
    return owner.until > now


def is_same_process(started: float, running_since: float | None) -> bool:
    """Return whether the process that now has the owner's id is the owner, and not a later process with that id."""
    return running_since is not None and abs(running_since - started) < CLOCK_TOLERANCE


def boot_of(boot_id: str) -> str:
    """Return the boot without the PID namespace."""
    return boot_id.partition("/")[0]


def owner_label(owner: OwnerRow) -> str:
    """Return the owner's name in messages."""
    return f"process {owner.pid} on {owner.host}"
