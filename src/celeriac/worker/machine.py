"""Find out what this machine has for commands: CPUs, memory and GPUs that this process may use.

CPUs    affinity, quotas of the control groups
memory  physical memory, limits of the control groups
GPUs    CUDA_VISIBLE_DEVICES, or else what nvidia-smi lists
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from msgspec import Struct

from celeriac.config.executor_config import Config
from celeriac.errors import InvalidConfig
from celeriac.task.amounts import MILLI, Amounts, milli
from celeriac.worker.kill_evidence import CGROUPS, PROC, UNLIMITED, number_in

VISIBLE = "CUDA_VISIBLE_DEVICES"
LIST_GPUS = ("nvidia-smi", "-L")
GPU_LINE = re.compile(r"^GPU \d+:", re.MULTILINE)
LIST_TIMEOUT = 20.0  # seconds; a driver that is not loaded yet takes long


class Machine(Struct, frozen=True, kw_only=True):
    """The resources that commands may use together."""

    milli_cpus: int
    memory: int
    gpus: tuple[str, ...]
    """The names of the GPUs, as CUDA_VISIBLE_DEVICES has them."""

    @property
    def amounts(self) -> Amounts:
        return Amounts(self.milli_cpus, self.memory, len(self.gpus))


NO_MACHINE = Machine(milli_cpus=0, memory=0, gpus=())


def machine_for(config: Config) -> Machine:
    """Return what the user says that commands may use together; as far as the user says nothing, all that there is.

    Raise `InvalidConfig` for more GPUs than this process may use.
    """
    return machine_of(config.cpus, config.memory, config.gpus)


def machine_of(cpus: float | None, memory: int | None, gpus: int | None) -> Machine:
    """Do the same for single settings; None for all that there is."""
    return find_machine(cpus, memory, gpus, os.environ.get(VISIBLE))


@lru_cache(maxsize=8)
def find_machine(cpus: float | None, memory: int | None, gpus: int | None, visible: str | None) -> Machine:
    return Machine(
        milli_cpus=usable_milli_cpus() if cpus is None else milli(cpus),
        memory=usable_memory() if memory is None else memory,
        gpus=usable_gpus(gpus, visible),
    )


# — CPUs —


def usable_milli_cpus(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Return the CPUs that this process may use, in thousandths."""
    try:
        cpus = len(os.sched_getaffinity(0))
    except AttributeError:  # no Linux
        cpus = os.cpu_count() or 1
    return min([cpus * MILLI, *quotas(proc, cgroups)])


def quotas(proc: Path, cgroups: Path) -> Iterator[int]:
    """Yield the quotas of CPU time of the control groups of this process, in thousandths of a CPU."""
    for folder in groups(proc, cgroups, "cpu"):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            if (folder / "cpu.max").exists():
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if int(quota) > 0:
                yield max(1, int(quota) * MILLI // int(period))


# — memory —


def usable_memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Return the bytes of memory that this process may use."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([physical, *memory_limits(proc, cgroups)])


def memory_limits(proc: Path, cgroups: Path) -> Iterator[int]:
    """Yield the limits of memory of the control groups of this process, in bytes."""
    for folder in groups(proc, cgroups, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = number_in(folder / name)
            if limit and limit < UNLIMITED:
                yield limit


def groups(proc: Path, cgroups: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of the control groups of this process with a controller: its own, and all around it."""
    found: list[tuple[Path, str]] = []
    with contextlib.suppress(OSError):
        for line in (proc / "self" / "cgroup").read_text().splitlines():
            _, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            if controller in controllers.split(","):
                found.append((cgroups / controller, path))
            elif not controllers:
                found.append((cgroups, path))
    for root, path in found:
        own = root / path.strip("/")
        yield own
        for parent in own.parents:
            if not parent.is_relative_to(root):
                break
            yield parent


# — GPUs —


def usable_gpus(wanted: int | None, visible: str | None) -> tuple[str, ...]:
    """Return the names of GPUs: as many as the user says, or else all that this process may use.

    `visible` is the value of CUDA_VISIBLE_DEVICES; None if it is not set. Raise `InvalidConfig`.
    """
    if visible is None:
        return tuple(map(str, range(count_gpus() if wanted is None else wanted)))
    names = visible_gpus(visible)
    if wanted is not None and wanted > len(names):
        problem = f"{wanted} are more than the {len(names)} of {VISIBLE}"
        raise InvalidConfig("gpus", problem, "give fewer, or name more there")
    return names[:wanted]


def visible_gpus(text: str) -> tuple[str, ...]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES names. As CUDA does, end at the first that can be none."""
    names: list[str] = []
    for name in map(str.strip, text.split(",")):
        if not re.fullmatch(r"\d+|(GPU|MIG)-.+", name) or name in names:
            break
        names.append(name)
    return tuple(names)


def count_gpus() -> int:
    """Return the number of GPUs that nvidia-smi lists; 0 if there is none, or it fails."""
    if shutil.which(LIST_GPUS[0]) is None:
        return 0
    try:
        listed = subprocess.run(LIST_GPUS, capture_output=True, text=True, timeout=LIST_TIMEOUT, check=True)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return 0
    return len(GPU_LINE.findall(listed.stdout))
