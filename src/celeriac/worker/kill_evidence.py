"""Evidence about processes that were killed from outside: was it the kernel, for lack of memory?

    before a task: read_memory ─► MemoryCounters ─┐
    it was killed: read_memory ─► MemoryCounters ─┴► describe_kill ─► "…; the kernel killed 1 process of its cgroup …"

The kernel counts such kills for each cgroup, and for the machine. Both versions of cgroups are read. A container may
see its own cgroup as the root.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
UNLIMITED = 2**60  # bytes: the first version of cgroups shows a number of about this size in place of no limit
RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes, of `ru_maxrss`


class MemoryCounters(Struct, frozen=True):
    """The counters of this process's cgroup and of the machine. What cannot be read is None."""

    group_kills: int | None = None
    """Processes of the cgroup that the kernel has killed for lack of memory."""

    machine_kills: int | None = None
    """The same for the whole machine; read only if the cgroup's cannot be."""

    peak: int | None = None
    """The largest use of memory of the cgroup so far, in bytes."""

    limit: int | None = None
    """Bytes; None for no limit."""

    child_peak: int | None = None
    """The largest resident set of any one child of this process that has ended, in bytes."""


def read_memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> MemoryCounters:
    """Read the counters: a few small files of the kernel."""
    child_peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * RSS_UNIT
    for folder, events, peak, limit in counter_files(proc, cgroups):
        kills = fields_of(folder / events).get("oom_kill")
        if kills is not None:
            most = number_in(folder / limit)
            return MemoryCounters(
                kills,
                None,
                number_in(folder / peak),
                None if most is None or most >= UNLIMITED else most,
                child_peak,
            )
    return MemoryCounters(machine_kills=fields_of(proc / "vmstat").get("oom_kill"), child_peak=child_peak)


class KillWatch:
    """Remembers the counters since the last KILL that it explained, or since it was made."""

    def __init__(self, read: Callable[[], MemoryCounters] = read_memory) -> None:
        self._read = read
        self._before, self._since = read(), time.monotonic()

    def explain(self) -> str:
        """Return a sentence that follows "ended by SIGKILL"; an empty one if memory did not run out, or is unknown."""
        before, since = self._before, self._since
        after, now = self._read(), time.monotonic()
        self._before, self._since = after, now
        if not ran_out_of_memory(before, after):
            return ""
        return f"; in the last {max(1, round(now - since)):,} s {cause_of(before, after).removeprefix('meanwhile ')}"


def counter_files(proc: Path, cgroups: Path) -> list[tuple[Path, str, str, str]]:
    """Return where the counters of this process may be: a folder, and the files of events, peak and limit."""
    first = ("memory.oom_control", "memory.max_usage_in_bytes", "memory.limit_in_bytes")
    second = ("memory.events", "memory.peak", "memory.max")
    found = []
    for line in text_of(proc / "self/cgroup").splitlines():
        _, _, names_and_path = line.partition(":")
        controllers, _, path = names_and_path.partition(":")
        if "memory" in controllers.split(","):
            found += [(cgroups / "memory" / path.lstrip("/"), *first), (cgroups / "memory", *first)]
        elif not controllers:
            found += [(root / path.lstrip("/"), *second) for root in (cgroups, cgroups / "unified")]
            found += [(cgroups, *second)]
    return found


def describe_kill(before: MemoryCounters, after: MemoryCounters) -> str:
    """Return what the counters say of a kill between the two readings, and how much memory was in use."""
    return "; ".join(part for part in (cause_of(before, after), usage(before, after)) if part)


def ran_out_of_memory(before: MemoryCounters, after: MemoryCounters) -> bool:
    """Return whether the kernel killed any process between the two readings: of the cgroup, if it can be read."""
    in_group = growth(before.group_kills, after.group_kills)
    return bool(growth(before.machine_kills, after.machine_kills) if in_group is None else in_group)


def cause_of(before: MemoryCounters, after: MemoryCounters) -> str:
    in_group = growth(before.group_kills, after.group_kills)
    on_machine = growth(before.machine_kills, after.machine_kills) if in_group is None else None
    if in_group:
        return f"meanwhile the kernel killed {processes(in_group)} of its cgroup for lack of memory"
    if on_machine:
        return f"meanwhile the kernel killed {processes(on_machine)} of this machine for lack of memory"
    if in_group is None and on_machine is None:
        return "whether memory ran out is not known: the counters of its cgroup cannot be read"
    return "the kernel killed no process for lack of memory: another program or a person sent the signal"


def usage(before: MemoryCounters, after: MemoryCounters) -> str:
    parts = []
    if growth(before.child_peak, after.child_peak):
        parts.append(f"its largest process had {in_bytes(after.child_peak)}")
    if after.peak is not None:
        limit = "without a limit" if after.limit is None else f"of {in_bytes(after.limit)}"
        parts.append(f"its cgroup had {in_bytes(after.peak)} at most, {limit}")
    return "; ".join(parts)


def growth(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before


def processes(number: int) -> str:
    return "1 process" if number == 1 else f"{number:,} processes"


def in_bytes(number: int | None) -> str:
    return "?" if number is None else f"{number / 2**20:,.1f} MiB"


def fields_of(path: Path) -> dict[str, int]:
    """Return the names and numbers in a file of the kernel that has one of each a line."""
    pairs = (line.split() for line in text_of(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def number_in(path: Path) -> int | None:
    text = text_of(path).strip()
    return int(text) if text.isdecimal() else None


def text_of(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
