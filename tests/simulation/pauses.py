"""Pauses of an executor, of its queue, or of a submitted run: meanwhile it sends nothing, also no message once more."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING

from celeriac.executor.executor import CeleryExecutor
from celeriac.ledger.owned_run import RunKey
from celeriac.task.task import DEFAULT_QUEUE, Task
from tests.simulation.features import Feature
from tests.simulation.primitives import here, sleep

if TYPE_CHECKING:
    from tests.simulation.history import History

PAUSED_WITHIN = 60.0  # seconds from the begin of a history until the last pause begins
LONGEST = 40.0  # seconds
RUN_PAUSED_WITHIN = 10.0  # seconds from the submission of a run until a pause of it begins
KNOWN_WITHIN = 8.0  # seconds until an owner that nothing hinders has read a pause in the ledger


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


class RunPauses(Feature):
    """The pauses of the submitted runs of one history. An owner reads them in the ledger."""

    needs_inputs = True

    def __init__(self, history: History, random: Random) -> None:
        super().__init__(history, random)
        self._random = random
        self._paused: dict[tuple[str, str | None], float] = {}
        """Since when a run, or a queue of it, is paused in the ledger."""

    def submitted(self, run: str, row: int) -> None:
        for _ in range(self._random.randint(0, 2)):
            begins, lasts = self._random.uniform(0, RUN_PAUSED_WITHIN), self._random.uniform(0, LONGEST)
            queue = self._random.choice((None, DEFAULT_QUEUE))
            self.history.owners.client.spawn(self._pause, run, row, queue, begins, lasts, name=f"pause {run}")

    def _pause(self, run: str, row: int, queue: str | None, begins: float, lasts: float) -> None:
        sleep(begins)
        self._change(run, row, queue, resume=False)
        sleep(lasts)
        self._change(run, row, queue, resume=True)

    def _change(self, run: str, row: int, queue: str | None, *, resume: bool) -> None:
        queues = [] if queue is None else [queue]
        if resume:
            self._paused.pop((run, queue), None)
        self.history.owners.until_changed(
            lambda store: store.change_pauses(row, queues, asked_by="client", resume=resume)
        )
        if resume:  # another pause of it may have begun and ended meanwhile
            self._paused.pop((run, queue), None)
        else:
            self._paused[run, queue] = self.history.world.now
        self.history.tell(f"{run}{'' if queue is None else f', queue {queue},'} is {'resumed' if resume else 'paused'}")

    def holds_back(self, task: Task, executor: CeleryExecutor) -> bool:
        return executor.adjustments.pauses.of_run(task) is not None

    def published(self, tasks: Sequence[Task], executor: CeleryExecutor) -> None:
        world, process = self.history.world, here().process
        quiet = self.history.owners.quiet_for(process)
        for task in tasks:
            if self.holds_back(task, executor):
                self.history.fail(f"{task.key} is sent by an owner that knows of the pause of its run")
            run = task.key.run if isinstance(task.key, RunKey) else ""
            since = min(self._paused.get((run, queue), world.now) for queue in (None, task.queue))
            if min(world.now - since, quiet) > KNOWN_WITHIN:
                self.history.fail(f"{task.key} is sent {world.now - since:.1f} s after its run was paused")
