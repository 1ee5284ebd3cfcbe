"""Tasks that need CPUs, memory and GPUs, and workers that have some of each.

The commands of a worker need together no more than it has, and no GPU belongs to two of them. An executor that knows
the workers sends no task that fits at none of them beside what it has sent there.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING

from msgspec.structs import replace

from celeriac.executor.executor import CeleryExecutor
from celeriac.task.amounts import NOTHING, RESOURCES, amounts_of
from celeriac.task.task import Task
from celeriac.worker.machine import Machine
from celeriac.worker.resource_room import ResourceRoom
from tests.simulation.features import Feature
from tests.simulation.jobs import Job
from tests.simulation.supervisor import Run

if TYPE_CHECKING:
    from tests.simulation.history import History

CPUS = (1, 2, 4)  # of a machine
GPUS = (0, 1, 2)
MEMORY = 4  # bytes: only their sum matters


class ResourceNeeds(Feature):
    """The needs of one history. All of its workers have the same."""

    def __init__(self, history: History, random: Random) -> None:
        super().__init__(history, random)
        self._cpus, gpus = random.choice(CPUS), random.choice(GPUS)
        names = tuple(str(number) for number in range(gpus))
        self._machine = Machine(milli_cpus=1_000 * self._cpus, memory=MEMORY, gpus=names)

    def changed(self, task: Task, random: Random) -> Task:
        if random.random() < 0.2:
            return task
        cpus = random.choice((None, 0.5, 1, self._cpus))
        memory, gpus = random.choice((None, 1, 3)), random.randint(0, len(self._machine.gpus))
        return replace(task, cpus=cpus, memory=memory, gpus=gpus)

    def room(self) -> ResourceRoom:
        """Return the resources of a new worker."""
        return ResourceRoom(self._machine)

    def holds_back(self, task: Task, executor: CeleryExecutor) -> bool:
        return executor.adjustments.resources.are_limited and amounts_of(task) is not None

    def started(self, job: Job, run: Run, running: Sequence[tuple[Job, Run]]) -> None:
        in_use, names = NOTHING, list[str]()
        for each, other in self._runs_beside(run):
            in_use = in_use.plus(amounts_of(each.task) or NOTHING)
            own = other.request.env.get("CUDA_VISIBLE_DEVICES", "")
            names += own.split(",") if own else []
            if len(own.split(",") if own else []) != each.task.gpus:
                self.history.fail(f"{each.task.key} has the GPUs {own!r}, and needs {each.task.gpus}")
        left = self._machine.amounts.minus(in_use)
        if any(getattr(left, name) < 0 for name in RESOURCES):
            self.history.fail(f"the commands of {machine_of(run)} need {in_use}, and it has {self._machine.amounts}")
        if len({*names}) < len(names):
            self.history.fail(f"a GPU of {machine_of(run)} belongs to two commands: {', '.join(names)}")

    def _runs_beside(self, run: Run) -> list[tuple[Job, Run]]:
        """Return the commands of the worker of a command, with their jobs."""
        jobs = self.history.jobs.values()
        return [(job, other) for job in jobs for other in job.live if machine_of(other) == machine_of(run)]

    def published(self, tasks: Sequence[Task], executor: CeleryExecutor) -> None:
        resources = executor.adjustments.resources
        for task in tasks if resources.are_limited else ():
            needs, taken = amounts_of(task), resources._taken.get(task.key)
            if needs is None or taken is None or executor._lifecycle.unconfirmed.get(task.key):
                continue
            has_worker = taken[1] in (resources._shares or {})
            left = resources.free(taken[1]) if has_worker else NOTHING.minus(needs)
            if any(getattr(needs, name) and getattr(left, name) < 0 for name in RESOURCES):
                self.history.fail(f"{task.key} is sent, and its worker has no room for it: {left}")


def machine_of(run: Run) -> str:
    """Return the name of the worker of a command: it may have several supervisors, one after the other."""
    return run.process.name.partition(" ")[0]
