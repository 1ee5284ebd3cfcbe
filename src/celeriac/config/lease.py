"""The constants of leases: the same for a worker's lease in the result backend and an owner's lease in the ledger."""

from __future__ import annotations

from pathlib import Path

RENEWAL_INTERVAL = 2.0  # seconds between two renewals of a lease
LEASE_DURATION = 10.0  # seconds after the last renewal until its holder counts as dead
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Return the id of this boot of the machine, or "" where the kernel has none.

    Process ids and monotonic clocks of two boots cannot be compared.
    """
    return BOOT_ID.read_text().strip() if BOOT_ID.exists() else ""
