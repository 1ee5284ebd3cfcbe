"""Share CPUs, memory and GPUs among the tasks in flight, beside the slots.

    what each worker has - what the tasks in flight need there = free ─► Room: what is left for the tasks of one batch

A broker gives a task to any worker of its queue. So the executor sends a task with needs only while some worker has
room for it, and the worker itself makes sure that no more runs than fits. Commands in this process are one worker.

No task is starved. The most urgent task that is short of a resource keeps all that it needs at one worker, so a less
urgent task takes only what is left besides. It starts as soon as what it is short of is given back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache

from celeriac.errors import InvalidTask
from celeriac.executor.capacity import WorkerShare
from celeriac.task.amounts import FIELD_OF, NOTHING, RESOURCES, Amounts, amounts_of, missing, shortage_text
from celeriac.task.task import Task, TaskKey

HERE = "this process"
"""The worker of an executor whose commands run in its own process."""


class Resources:
    """The resources of the workers of one executor, and the tasks that hold them."""

    def __init__(self) -> None:
        self._find: Callable[[], Mapping[str, WorkerShare] | None] | None = None
        self._shares: Mapping[str, WorkerShare] | None = None
        self._is_here = False
        self._serving: dict[str, list[str]] = {}
        """The workers of each queue that was asked for."""

        self._taken: dict[TaskKey, tuple[Task, str, Amounts]] = {}
        self._in_use: dict[str, Amounts] = {}
        self._chosen: str | None = None

    def limit(self, find: Callable[[], Amounts]) -> None:
        """Let the tasks share what `find` returns. It is called once, when a task first needs any: it takes time."""
        self._find, self._is_here = lru_cache(lambda: {HERE: WorkerShare(find())}), True

    def share(self, find: Callable[[], Mapping[str, WorkerShare] | None]) -> None:
        """Let the tasks share what the live workers have, as `find` returns it for each batch. While it returns None,
        the workers are not known, and tasks with needs wait."""
        self._find = find

    def refresh(self) -> None:
        """Find out what the workers have now, if the executor counts what tasks need."""
        shares = None if self._find is None else self._find()
        if shares is not self._shares:
            self._shares, self._serving = shares, {}
            for task, worker, needs in [*self._taken.values()]:
                if worker not in (shares or {}):  # not known when it was adopted, or gone: it runs elsewhere
                    self.give_back(task.key)
                    self.take(task, needs)

    @property
    def workers_are_known(self) -> bool:
        """Whether it is known what the workers have."""
        return self._shares is not None

    @property
    def are_limited(self) -> bool:
        """Whether the executor counts what tasks need."""
        return self._find is not None

    @property
    def in_use(self) -> Amounts:
        """The amounts that the tasks in flight hold, of all workers together."""
        together = NOTHING
        for amounts in self._in_use.values():
            together = together.plus(amounts)
        return together

    def serving(self, queue: str) -> list[str]:
        """Return the workers that run the tasks of a queue, and have resources for them."""
        if (names := self._serving.get(queue)) is None:
            shares = (self._shares or {}).items()
            names = [name for name, each in shares if each.queues is None or queue in each.queues]
            self._serving[queue] = names
        return names

    def free(self, worker: str) -> Amounts:
        """Return the amounts of a worker that no task holds. One is below 0 if adopted tasks took more than it has."""
        return (self._shares or {})[worker].total.minus(self._in_use.get(worker, NOTHING))

    def could_start(self, task: Task, needs: Amounts) -> Iterator[str]:
        """Yield the workers of its queue that have as much as a task needs, in use or not."""
        shares = self._shares or {}
        return (name for name in self.serving(task.queue) if not missing(needs, shares[name].total))

    def check(self, task: Task) -> None:
        """Raise `InvalidTask` for a task that could never start in this process."""
        if not self._is_here or (needs := amounts_of(task)) is None:
            return
        self.refresh()
        total = (self._shares or {})[HERE].total
        for name in missing(needs, total):
            remedy = f"ask for less, or set {FIELD_OF[name]} to what there is"
            needed, there_is = shortage_text(name, getattr(needs, name), getattr(total, name))
            raise InvalidTask(FIELD_OF[name], f"asks for {needed}, and there are {there_is}", remedy)

    def choose(self, worker: str) -> None:
        """Let the next `take` count against a worker."""
        self._chosen = worker

    def take(self, task: Task, needs: Amounts) -> None:
        """Give a task what it needs."""
        worker, self._chosen = self._chosen, None
        if worker is None:  # it is in flight already
            fitting = Room(0, self).best_place(task, needs)
            worker = fitting or next(self.could_start(task, needs), HERE)
        self._taken[task.key] = (task, worker, needs)
        self._in_use[worker] = self._in_use.get(worker, NOTHING).plus(needs)

    def give_back(self, key: TaskKey) -> None:
        """Take back what a task holds."""
        if (taken := self._taken.pop(key, None)) is None:
            return
        _, worker, needs = taken
        left = self._in_use[worker].minus(needs)
        if left == NOTHING:
            del self._in_use[worker]
        else:
            self._in_use[worker] = left


class Room:
    """The resources that are left for the tasks of one batch. They are chosen one by one, the most urgent first."""

    def __init__(self, slots: int, resources: Resources) -> None:
        self.slots = slots
        self._unread, self._is_fresh = resources, False
        self._kept: dict[str, Amounts] = {}
        """What more urgent tasks keep at each worker."""

        self._short: set[tuple[str, str]] = set()
        """The resources of each worker of which a more urgent task has too little."""

    @property
    def _resources(self) -> Resources:
        """The resources, as they were when the first task of this batch needed any."""
        if not self._is_fresh:
            self._is_fresh = True
            self._unread.refresh()
        return self._unread

    def left(self, worker: str) -> Amounts:
        """Return what is left at a worker."""
        return self._resources.free(worker).minus(self._kept.get(worker, NOTHING))

    def fits(self, task: Task) -> bool:
        """Return whether the resources that a task needs are left at a worker."""
        needs = amounts_of(task)
        return needs is None or not self._unread.are_limited or self.best_place(task, needs) is not None

    def take(self, task: Task) -> None:
        """Take what a task needs. It fits."""
        self.slots -= task.slots
        if (needs := amounts_of(task)) is not None and (worker := self.best_place(task, needs)) is not None:
            self._resources.choose(worker)

    def best_place(self, task: Task, needs: Amounts) -> str | None:
        """Return the worker with the least left, in the order GPUs, CPUs, memory, of those at which a task fits."""
        best: tuple[tuple[int, int, int], str] | None = None
        for name in self._resources.could_start(task, needs):
            left = self.left(name)
            if not missing(needs, left):
                rank = ((left.gpus, left.milli_cpus, left.memory), name)
                best = rank if best is None or rank < best else best
        return None if best is None else best[1]

    def shortage(self, task: Task) -> tuple[str, int] | None:
        """Return a resource of which a task has too little, and how much of it is left at the worker that comes
        closest; None if there is none with as much, or the task fits."""
        if (closest := self._closest(task)) is None:
            return None
        short = missing(amounts_of(task) or NOTHING, self.left(closest))
        return (short[0], max(0, getattr(self.left(closest), short[0]))) if short else None

    def keep_for(self, task: Task) -> bool:
        """Keep what a task needs that does not fit, if it is the most urgent one that is short of a resource. Return
        whether any worker has as much.

        It is kept at the worker that comes closest. What is free there only grows, so the task starts. A task that is
        short only of what a more urgent one waits for keeps nothing: it is not its turn. One of its slots is not kept:
        the end of the task that it waits for frees one.
        """
        if (worker := self._closest(task)) is None:
            return False
        needs = amounts_of(task) or NOTHING
        short = {(worker, name) for name in missing(needs, self.left(worker))}
        if not short <= self._short:
            self._short |= short
            self._kept[worker] = self._kept.get(worker, NOTHING).plus(needs)
            self.slots -= task.slots - 1
        return True

    def _closest(self, task: Task) -> str | None:
        """Return the worker at which the least is missing until a task fits; None if no worker has as much."""
        needs = amounts_of(task) or NOTHING

        def shortfall(worker: str) -> tuple[float, str]:
            left = self._resources.free(worker)
            short = (getattr(needs, name) - max(0, getattr(left, name)) for name in RESOURCES)
            parts = (part / max(1, getattr(needs, name)) for part, name in zip(short, RESOURCES, strict=True))
            return sum(max(0.0, part) for part in parts), worker

        return min(self._resources.could_start(task, needs), key=shortfall, default=None)
