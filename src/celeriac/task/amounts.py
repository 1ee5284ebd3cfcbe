"""Count what tasks need, and what there is: CPUs, memory, GPUs."""

from __future__ import annotations

from msgspec import Struct

from celeriac.task.task import Task

MILLI = 1_000
"""CPUs are counted in thousandths, so that no sum of them is inexact."""


class Amounts(Struct, frozen=True, gc=False):
    """An amount of each resource."""

    milli_cpus: int = 0
    memory: int = 0
    """Bytes."""

    gpus: int = 0

    def plus(self, other: Amounts) -> Amounts:
        return Amounts(self.milli_cpus + other.milli_cpus, self.memory + other.memory, self.gpus + other.gpus)

    def minus(self, other: Amounts) -> Amounts:
        return Amounts(self.milli_cpus - other.milli_cpus, self.memory - other.memory, self.gpus - other.gpus)


NOTHING = Amounts()
RESOURCES = ("milli_cpus", "memory", "gpus")
FIELD_OF = {"milli_cpus": "cpus", "memory": "memory", "gpus": "gpus"}
"""The fields of a task."""


def amounts_of(task: Task) -> Amounts | None:
    """Return what a task needs; None if it names nothing."""
    if task.cpus is None and task.memory is None and not task.gpus:
        return None
    return Amounts(milli(task.cpus or 0), task.memory or 0, task.gpus)


def milli(cpus: float) -> int:
    return round(cpus * MILLI)


def missing(needs: Amounts, free: Amounts) -> list[str]:
    """Return the resources that are needed, and of which too little is free."""
    return [name for name in RESOURCES if getattr(needs, name) > max(0, getattr(free, name))]


def amount_text(resource: str, amount: int) -> str:
    """Return an amount as a person writes it: "1.5 CPUs", "8 GiB of memory", "1 GPU"."""
    number = number_text(resource, amount)
    if resource == "memory":
        return f"{number} of memory"
    unit = "CPU" if resource == "milli_cpus" else "GPU"
    return f"{number} {unit if number == '1' else unit + 's'}"


def needs_texts(task: Task) -> list[str]:
    """Return each resource that a task needs, with its amount, as a text."""
    needs = amounts_of(task) or NOTHING
    return [amount_text(name, getattr(needs, name)) for name in missing(needs, NOTHING)]


def number_text(resource: str, amount: int) -> str:
    """Return an amount without the name of the resource: "1.5", "8 GiB", "1"."""
    if resource == "memory":
        from celeriac.task.size import format_size  # late: few tasks name memory

        return format_size(amount)
    return f"{amount / MILLI:,.10g}" if resource == "milli_cpus" else f"{amount:,}"


def shortage_text(resource: str, needed: int, there_is: int) -> tuple[str, str]:
    """Return what is needed, and what there is, which is less, as two texts that differ."""
    if resource == "memory" and number_text(resource, needed) == number_text(resource, there_is):
        return f"{needed:,} bytes of memory", f"{there_is:,}"
    return amount_text(resource, needed), number_text(resource, there_is)
