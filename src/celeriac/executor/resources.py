"""Share CPUs, memory and GPUs among the tasks in flight, beside the slots.

    total - what the tasks in flight need = free ─► Room: what is left for the tasks of one batch

No task is starved. The most urgent task that is short of a resource keeps all that it needs, so a less urgent task
takes only what is left besides. It starts as soon as what it is short of is given back.
"""

from __future__ import annotations

from collections.abc import Callable

from celeriac.errors import InvalidTask
from celeriac.task.amounts import FIELD_OF, NOTHING, Amounts, amounts_of, missing, shortage_text
from celeriac.task.task import Task, TaskKey


class Resources:
    """The resources of one executor, and the tasks that hold them."""

    def __init__(self) -> None:
        self._find: Callable[[], Amounts] | None = None
        self._total: Amounts | None = None
        self._taken: dict[TaskKey, Amounts] = {}
        self._in_use = NOTHING

    def limit(self, find: Callable[[], Amounts]) -> None:
        """Let the tasks share what `find` returns. It is called when a task first needs any, because it takes time."""
        self._find, self._total = find, None

    @property
    def total(self) -> Amounts | None:
        """The amounts that there are; None if no task may need any."""
        if self._total is None and self._find is not None:
            self._total = self._find()
        return self._total

    @property
    def free(self) -> Amounts:
        """The amounts that no task holds. One is below 0 if adopted tasks took more than there is."""
        return (self.total or NOTHING).minus(self._in_use)

    @property
    def in_use(self) -> Amounts:
        """The amounts that the tasks in flight hold."""
        return self._in_use

    def check(self, task: Task) -> None:
        """Raise `InvalidTask` for a task that could never start."""
        if (needs := amounts_of(task)) is None:
            return
        if (total := self.total) is None:
            field = next(FIELD_OF[name] for name in missing(needs, NOTHING))
            problem = f"asks for {field}, which workers elsewhere do not share out"
            raise InvalidTask(field, problem, "leave it out, or run it with --local")
        for name in missing(needs, total):
            remedy = f"ask for less, or set {FIELD_OF[name]} to what there is"
            needed, there_is = shortage_text(name, getattr(needs, name), getattr(total, name))
            raise InvalidTask(FIELD_OF[name], f"asks for {needed}, and there are {there_is}", remedy)

    def take(self, key: TaskKey, needs: Amounts) -> None:
        """Give a task what it needs."""
        self._taken[key] = needs
        self._in_use = self._in_use.plus(needs)

    def give_back(self, key: TaskKey) -> None:
        """Take back what a task holds."""
        if (needs := self._taken.pop(key, None)) is not None:
            self._in_use = self._in_use.minus(needs)


class Room:
    """The amounts that are left for the tasks of one batch. They are chosen one by one, the most urgent first."""

    def __init__(self, slots: int, resources: Resources) -> None:
        self.slots = slots
        self._resources, self._left = resources, None
        self._short: set[str] = set()
        """The resources of which a more urgent task has too little."""

    _left: Amounts | None

    @property
    def left(self) -> Amounts:
        """The resources that are left."""
        if self._left is None:
            self._left = self._resources.free
        return self._left

    def fits(self, task: Task) -> bool:
        """Return whether the resources that a task needs are left."""
        needs = amounts_of(task)
        return needs is None or not missing(needs, self.left)

    def take(self, task: Task) -> None:
        """Take what a task needs. It fits."""
        self.slots -= task.slots
        if (needs := amounts_of(task)) is not None:
            self._left = self.left.minus(needs)

    def keep_for(self, task: Task) -> None:
        """Keep what a task needs that does not fit, if it is the most urgent one that is short of a resource.

        A task that is short only of what a more urgent one waits for keeps nothing: it is not its turn. One of its
        slots is not kept: the end of the task that it waits for frees one.
        """
        short = set(missing(amounts_of(task) or NOTHING, self.left))
        if not short <= self._short:
            self._short |= short
            self.take(task)
            self.slots += 1
