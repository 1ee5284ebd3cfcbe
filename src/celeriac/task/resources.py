"""Check the resources that a task needs besides slots: CPUs, memory and GPUs."""

from __future__ import annotations

from msgspec.structs import force_setattr

from celeriac.errors import InvalidTask
from celeriac.task.amounts import MILLI
from celeriac.task.size import parse_size
from celeriac.task.task import MAX_PRIORITY, Task, check_whole, describe

MAX_CPUS = 1_000_000
MAX_MEMORY = 2**60  # bytes
INEXACT = 1e-6  # thousandths by which the binary form of a decimal number may be off


def set_resources(task: Task) -> None:
    """Check what a task needs, and set each amount in its own unit. Raise `InvalidTask`."""
    if task.cpus is not None:
        force_setattr(task, "cpus", to_cpus("cpus", task.cpus))
    if task.memory is not None:
        force_setattr(task, "memory", to_memory("memory", task.memory))
    check_whole("gpus", task.gpus, 0, MAX_PRIORITY)


def to_cpus(name: str, value: object) -> float:
    """Return a number of CPUs. Raise `InvalidTask`."""
    if type(value) in (int, float) and 0 < value <= MAX_CPUS:  # type: ignore[operator]
        milli = value * MILLI  # type: ignore[operator]
        if abs(milli - round(milli)) < INEXACT:
            return float(value)  # type: ignore[arg-type]
    problem = f"{describe(value)} is not a number of CPUs above 0, with at most three digits after the point"
    raise InvalidTask(name, problem, "write for example 2 or 0.5")


def to_memory(name: str, value: object) -> int:
    """Return a number of bytes. Raise `InvalidTask`."""
    size = round(parse_size(value.strip()) or 0) if isinstance(value, str) else value
    if type(size) is int and 1 <= size <= MAX_MEMORY:
        return size
    raise InvalidTask(name, f"{describe(value)} is not a size of memory", 'write for example "2G" or "512M", or bytes')
