"""Tell a command which resources are its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

GPU_NAMES = "gpu_names"
"""The field of a message with the GPUs of the command. The worker itself adds it."""


class GpuPool:
    """The GPUs of a worker. Each belongs to one command at most."""

    def __init__(self, names: Sequence[str]) -> None:
        self._free = list(names)
        self._order = {name: place for place, name in enumerate(names)}

    def take(self, number: int) -> tuple[str, ...] | None:
        """Take GPUs, the first ones that are free; None if too few are."""
        if number > len(self._free):
            return None
        taken, self._free = tuple(self._free[:number]), self._free[number:]
        return taken

    def give_back(self, names: Sequence[str]) -> None:
        """Let other commands have these GPUs."""
        self._free = sorted([*self._free, *names], key=self._order.__getitem__)


def default_variables(message: dict[str, Any]) -> dict[str, str]:
    """Return the variables that the command of a message gets unless it sets them itself: its number of threads."""
    cpus = message.get("cpus")
    return {} if cpus is None else {"OMP_NUM_THREADS": str(max(1, int(cpus)))}


def own_variables(message: dict[str, Any]) -> dict[str, str]:
    """Return the variables with the resources of the command of a message.

    Those of Celeriac are settings, too: a `celeriac run` in the command shares these resources among its jobs.
    """
    variables = {}
    if (cpus := message.get("cpus")) is not None:
        variables["CELERIAC_CPUS"] = f"{cpus:.10g}"
    if (memory := message.get("memory")) is not None:
        variables["CELERIAC_MEMORY"] = str(memory)
    if names := message.get(GPU_NAMES):
        variables["CELERIAC_GPUS"], variables["CUDA_VISIBLE_DEVICES"] = str(len(names)), ",".join(names)
    return variables
