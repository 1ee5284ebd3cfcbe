"""Tasks that wait for others to end.

hold ─► held, until the last of their needs has ended ─► Freed: ready, in order of arrival
                                  └► a need ended badly ─► Freed: skipped, and so on to those that need these

Each step costs what it changes. How the last 100,000 ended is remembered: a task may be queued after what it needs.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from celeriac.errors import InvalidTask, UnknownTask
from celeriac.executor.priority_queue import Entry
from celeriac.task.state import State
from celeriac.task.task import OnNeedFailed, Task, TaskKey

K = TypeVar("K", bound=TaskKey)

MAX_REMEMBERED = 100_000  # tasks that have ended, and may still be needed
MAX_PATH = 7  # keys of a cycle that are shown; of more, the first and the last
MAX_KEY_LENGTH = 60  # characters

END_STATE_PHRASES = {State.FAILED: "failed", State.REVOKED: "was revoked", State.SKIPPED: "was skipped"}


@dataclass(slots=True, eq=False)
class BlockedTask:
    entry: Entry
    open: int = 0
    """How many of its needs have not ended."""


@dataclass(frozen=True, slots=True)
class Skipped:
    entry: Entry
    why: str


@dataclass(frozen=True, slots=True)
class Unblocked:
    """Those that are held no longer."""

    ready: list[Entry] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


NOTHING_UNBLOCKED = Unblocked()


class Dependencies:
    def __init__(self) -> None:
        self._blocked: dict[TaskKey, BlockedTask] = {}
        self._dependants: dict[TaskKey, dict[TaskKey, None]] = {}
        """By what they need: the keys of those that are held for it. Of what nobody waits for there is none."""

        self._end_states: OrderedDict[TaskKey, State] = OrderedDict()
        """The latest last."""

    def __len__(self) -> int:
        return len(self._blocked)

    def __contains__(self, key: TaskKey) -> bool:
        return key in self._blocked

    def get(self, key: TaskKey) -> Entry | None:
        held = self._blocked.get(key)
        return None if held is None else held.entry

    def tasks(self) -> Iterator[Task]:
        """Every task that is held, in order of arrival."""
        return (held.entry.task for held in self._blocked.values())

    def unmet_needs(self, key: TaskKey) -> list[TaskKey]:
        """What a task that is held still waits for."""
        return [need for need in self._blocked[key].entry.task.needs if key in self._dependants.get(need, ())]

    def check(self, tasks: Collection[Task], is_alive: Callable[[TaskKey], bool]) -> None:
        """Refuse tasks, all to be held at once, that need what nobody knows, or each other in a circle.

        `is_alive` says of a key whether its task is ready or out. Raises `InvalidTask`.
        """
        needs = {task.key: task.needs for task in tasks if task.needs}
        together = {task.key for task in tasks} if needs else set()
        for key, needed in needs.items():
            for need in needed:
                if not (need in together or need in self._blocked or need in self._end_states or is_alive(need)):
                    problem = f"task {key!r} needs {need!r}, which neither waits nor is out, nor has ended lately"
                    raise InvalidTask("needs", problem, "queue that one first, or both at once with queue_tasks")
        for cycle in cycles(needs):
            raise InvalidTask("needs", f"none of them could be the first: {format_cycle(cycle)}", BREAK_CYCLE)

    def block(self, entries: Collection[Entry], is_alive: Callable[[TaskKey], bool]) -> Unblocked:
        """Hold tasks. Those whose needs have all ended are freed at once; of what nobody knows it is taken for granted
        that it ended well."""
        for entry in entries:
            self._blocked[entry.task.key] = BlockedTask(entry)
        freed, ended = Unblocked(), deque[tuple[TaskKey, State]]()
        doomed = [
            (entry, need, self._end_states[need])  # which may be forgotten, once many of them are skipped
            for entry in entries
            if (need := self._link(entry.task, is_alive)) is not None
        ]
        for entry, need, how in doomed:
            self._skip(entry, need, how, freed, ended)
        for entry in entries:
            held = self._blocked.get(entry.task.key)
            if held is not None and not held.open:
                self._release(held, freed)
        return self._pass_on(ended, freed)

    def on_task_ended(self, key: TaskKey, state: State) -> Unblocked:
        """A task has ended: who waited for it?"""
        self.remember(key, state)
        return self._pass_on(deque([(key, state)]), Unblocked()) if key in self._dependants else NOTHING_UNBLOCKED

    def remember(self, key: TaskKey, state: State) -> None:
        """How a task ended that nobody who is held waits for."""
        self._end_states[key] = state
        self._end_states.move_to_end(key)
        if len(self._end_states) > MAX_REMEMBERED:
            self._end_states.popitem(last=False)

    def load_ended(self, ended: Mapping[TaskKey, State]) -> None:
        """How tasks ended that an earlier executor had, however many."""
        self._end_states.update(ended)

    def take(self, key: TaskKey) -> Entry:
        """Hold a task no longer. Who needs it waits on, until `ended` says what became of it. Raises `UnknownTask`."""
        held = self._blocked.pop(key, None)
        if held is None:
            raise UnknownTask(key)
        self._unlink(held.entry.task)
        return held.entry

    def reprioritise(self, key: TaskKey, priority: int) -> Task:
        """Answers the task as it is now. Raises `UnknownTask`."""
        held = self._blocked.get(key)
        if held is None:
            raise UnknownTask(key)
        task = replace(held.entry.task, priority=priority)
        held.entry = held.entry._replace(rank=-priority, task=task)
        return task

    def _link(self, task: Task, is_alive: Callable[[TaskKey], bool]) -> TaskKey | None:
        """Answers which of its needs it is to be skipped for, if any."""
        held, failed = self._blocked[task.key], None
        for need in task.needs:
            if need in self._blocked or is_alive(need):
                self._dependants.setdefault(need, {})[task.key] = None
                held.open += 1
            elif failed is None and skips(task, self._end_states.get(need, State.SUCCESS)):
                failed = need
        return failed

    def _unlink(self, task: Task) -> None:
        for need in task.needs:
            others = self._dependants.get(need)
            if others is not None:
                others.pop(task.key, None)
                if not others:
                    del self._dependants[need]

    def _pass_on(self, ended: deque[tuple[TaskKey, State]], freed: Unblocked) -> Unblocked:
        """Whoever is skipped has ended, too: one after the other, because a chain may be long."""
        while ended:
            need, how = ended.popleft()
            for key in self._dependants.pop(need, ()):
                held = self._blocked[key]
                held.open -= 1
                if skips(held.entry.task, how):
                    self._skip(held.entry, need, how, freed, ended)
                elif not held.open:
                    self._release(held, freed)
        freed.ready.sort(key=order_of)
        return freed

    def _skip(
        self, entry: Entry, need: TaskKey, how: State, freed: Unblocked, ended: deque[tuple[TaskKey, State]]
    ) -> None:
        key = entry.task.key
        self.take(key)
        self.remember(key, State.SKIPPED)
        freed.skipped.append(Skipped(entry, f"needs {need!r}, which {END_STATE_PHRASES[how]}"))
        ended.append((key, State.SKIPPED))

    def _release(self, held: BlockedTask, freed: Unblocked) -> None:
        del self._blocked[held.entry.task.key]
        freed.ready.append(held.entry)


def skips(task: Task, how: State) -> bool:
    return how is not State.SUCCESS and task.on_need_failed is OnNeedFailed.SKIP


def order_of(entry: Entry) -> int:
    return entry.order


# — circles —

BREAK_CYCLE = "take one of these needs out"


def cycles(needs: Mapping[K, Collection[K]]) -> Iterator[list[K]]:
    """Circles in which tasks need each other, each from the key that comes first; at least one, if there are any.

    `needs` says by key what a task needs; what is no key of it needs nothing. The cost grows with what it says.
    """
    left = keys_on_or_behind_cycles(needs)
    place = {key: n for n, key in enumerate(needs) if key in left}
    walk_of: dict[K, K] = {}
    for start in place:
        path: list[K] = []
        key = start
        while key not in walk_of:
            walk_of[key] = start
            path.append(key)
            key = next(need for need in needs[key] if need in left)
        if walk_of[key] == start:
            cycle = path[path.index(key) :]
            first = cycle.index(min(cycle, key=place.__getitem__))
            yield cycle[first:] + cycle[:first]


def keys_on_or_behind_cycles(needs: Mapping[K, Collection[K]]) -> set[K]:
    """The keys that are left when all has been taken away, again and again, that needs nothing any more."""
    dependants: dict[K, list[K]] = {}
    open_needs: dict[K, int] = {}
    for key, needed in needs.items():
        inside = [need for need in needed if need in needs]
        open_needs[key] = len(inside)
        for need in inside:
            dependants.setdefault(need, []).append(key)
    free = [key for key, number in open_needs.items() if not number]
    for key in free:  # which grows meanwhile
        del open_needs[key]
        for dependant in dependants.get(key, ()):
            open_needs[dependant] -= 1
            if not open_needs[dependant]:
                free.append(dependant)
    return set(open_needs)


def format_cycle(cycle: Sequence[TaskKey]) -> str:
    """ "a needs b needs a"; of a long one its middle is left out."""
    names = [name[:MAX_KEY_LENGTH] for name in map(str, (*cycle, cycle[0]))]
    if len(names) > MAX_PATH:
        half = MAX_PATH // 2
        names[half:-half] = [f"… {len(names) - 2 * half:,} more …"]
    return " needs ".join(names)
