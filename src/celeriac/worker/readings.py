"""How busy this machine is: its load, and the memory that is free on it and in the cgroup of this process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from celeriac.executor.start_gate import Readings
from celeriac.worker.kill_evidence import CGROUPS, PROC, UNLIMITED, fields_of, number_in
from celeriac.worker.machine import groups

FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""The limit, the usage, and what of it can be taken back, in both versions of cgroups."""


def read_machine() -> Readings:
    """Return how busy this machine is now."""
    import psutil  # late: few runs have such a limit

    try:
        load = os.getloadavg()[0]
    except OSError:
        load = None
    free = min([psutil.virtual_memory().available, *free_of_groups()])
    return Readings(load=load, cpus=os.cpu_count() or 1, free_memory=free)


def free_of_groups(proc: Path = PROC, cgroups: Path = CGROUPS) -> Iterator[int]:
    """Yield the bytes that the cgroup of this process and each one around it leave free, if they have a limit.

    The kernel takes back the memory of files that were not used lately before a limit is reached."""
    for folder in groups(proc, cgroups, "memory"):
        for limit_file, usage_file, inactive in FILES:
            limit, usage = number_in(folder / limit_file), number_in(folder / usage_file)
            if limit is not None and usage is not None and limit < UNLIMITED:
                yield max(0, limit - usage + fields_of(folder / "memory.stat").get(inactive, 0))
