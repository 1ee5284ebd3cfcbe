"""Pauses of an executor, or of its queue: meanwhile it sends nothing, also no message once more."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING

from celeriac.executor.executor import CeleryExecutor
from celeriac.task.task import DEFAULT_QUEUE, Task
from tests.simulation.features import Feature

if TYPE_CHECKING:
    from tests.simulation.history import History

PAUSED_WITHIN = 60.0  # seconds from the begin of a history until the last pause begins
LONGEST = 40.0  # seconds


class Pauses(Feature):
    """The pauses of one history. They hold for each of its executors."""

    share = 0.15

    def __init__(self, history: History, random: Random) -> None:
        super().__init__(history, random)
        begins = [random.uniform(0, PAUSED_WITHIN) for _ in range(random.randint(1, 3))]
        self._pauses = [
            (begin, begin + random.uniform(0, LONGEST), random.choice((None, DEFAULT_QUEUE))) for begin in begins
        ]
        self._paused: dict[CeleryExecutor, set[str | None]] = {}
        """The queues that are paused of each executor; None stands for all of it."""

    def before_heartbeat(self, executor: CeleryExecutor) -> None:
        """Pause and resume an executor, as it is time."""
        now, before = self.history.world.now, self._paused.get(executor, set())
        wanted = {queue for begin, end, queue in self._pauses if begin <= now < end}
        for queue in sorted(wanted - before, key=str):
            executor.adjustments.pause(queue)
        for queue in sorted(before - wanted, key=str):
            executor.adjustments.resume(queue)
        self._paused[executor] = wanted

    def holds_back(self, task: Task, executor: CeleryExecutor) -> bool:
        return task.queue in self._paused.get(executor, ())

    def published(self, tasks: Sequence[Task], executor: CeleryExecutor) -> None:
        paused = self._paused.get(executor, ())
        for task in tasks:
            if None in paused or task.queue in paused:
                self.history.fail(f"{task.key} is sent in a pause")
