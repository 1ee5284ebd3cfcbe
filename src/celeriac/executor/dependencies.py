"""Block tasks until the tasks that they need have ended.

block ─► blocked, until the last of its needs has ended ─► Unblocked.ready, in order of arrival
                      └► a need did not succeed         ─► Unblocked.skipped, and so are its dependants in turn

The cost of each step grows with the number of tasks that it changes. The final states of the last 100,000 ended tasks
are kept, so that a task may be queued after the tasks that it needs have ended.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TypeVar

from msgspec import Struct, field
from msgspec.structs import replace

from celeriac.errors import InvalidTask, UnknownTask
from celeriac.executor.priority_queue import Entry
from celeriac.task.state import State
from celeriac.task.task import OnNeedFailed, Task, TaskKey

K = TypeVar("K", bound=TaskKey)

MAX_REMEMBERED = 100_000  # ended tasks whose final states are kept
MAX_PATH = 7  # keys of a cycle in a message; the middle of a longer cycle is left out
MAX_KEY_LENGTH = 60  # characters

END_STATE_PHRASES = {State.FAILED: "failed", State.REVOKED: "was revoked", State.SKIPPED: "was skipped"}


class BlockedTask(Struct, eq=False, gc=False):
    """A task that needs unfinished tasks."""

    entry: Entry
    open_needs: int = 0
    """The number of its needs that have not ended."""


class Skipped(Struct, frozen=True):
    """A task that never runs, because a task that it needs did not succeed."""

    entry: Entry
    why: str


class Unblocked(Struct, frozen=True):
    """The tasks that are no longer blocked: some may run, some are skipped."""

    ready: list[Entry] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


NOTHING_UNBLOCKED = Unblocked()


class Dependencies:
    """The blocked tasks, and the final states of ended tasks."""

    def __init__(self) -> None:
        self._blocked: dict[TaskKey, BlockedTask] = {}
        self.by_queue: Counter[str] = Counter()
        """The number of blocked tasks, by queue."""

        self._dependants: dict[TaskKey, dict[TaskKey, None]] = {}
        """For each needed task, the keys of the blocked tasks that need it. A task without dependants has no entry."""

        self._end_states: OrderedDict[TaskKey, State] = OrderedDict()
        """The final states of the ended tasks, the latest last."""

        self.keeps_all = False
        """Whether all final states are kept, because tasks that were accepted may need them when they are queued."""

    def __len__(self) -> int:
        return len(self._blocked)

    def __contains__(self, key: TaskKey) -> bool:
        return key in self._blocked

    @property
    def tasks_needed(self) -> int:
        """The number of unfinished tasks that blocked tasks need."""
        return len(self._dependants)

    def get(self, key: TaskKey) -> Entry | None:
        """Return the entry of a blocked task."""
        blocked = self._blocked.get(key)
        return None if blocked is None else blocked.entry

    def tasks(self) -> Iterator[Task]:
        """Yield every blocked task, in order of arrival."""
        return (blocked.entry.task for blocked in self._blocked.values())

    def unmet_needs(self, key: TaskKey) -> list[TaskKey]:
        """Return the unfinished tasks that a blocked task needs."""
        return [need for need in self._blocked[key].entry.task.needs if key in self._dependants.get(need, ())]

    def check(self, tasks: Collection[Task], is_alive: Callable[[TaskKey], bool]) -> None:
        """Raise `InvalidTask` if a task needs an unknown task, or if tasks need each other in a cycle.

        The tasks will be queued together. `is_alive` returns whether the task of a key is waiting or in flight.
        """
        needs = {task.key: task.needs for task in tasks if task.needs}
        new_keys = {task.key for task in tasks} if needs else set()
        for key, needed in needs.items():
            for need in needed:
                is_known = need in new_keys or is_alive(need) or need in self._blocked
                if not (is_known or need in self._end_states):  # last: another thread may end the task meanwhile
                    problem = f"task {key!r} needs {need!r}, which is unknown or ended long ago"
                    raise InvalidTask("needs", problem, f"queue {need!r} first, or both together with queue_tasks")
        for cycle in cycles(needs):
            raise InvalidTask("needs", f"tasks need each other in a cycle: {format_cycle(cycle)}", BREAK_CYCLE)

    def block(self, entries: Collection[Entry], is_alive: Callable[[TaskKey], bool]) -> Unblocked:
        """Block tasks. Unblock at once each task whose needs have all ended.

        An unknown need is assumed to have succeeded.
        """
        for entry in entries:
            self._blocked[entry.task.key] = BlockedTask(entry)
            self.by_queue[entry.task.queue] += 1
        unblocked, ended = Unblocked(), deque[tuple[TaskKey, State]]()
        to_skip = [
            (entry, need, self._end_states[need])  # read now: skipping many tasks may remove it from `_end_states`
            for entry in entries
            if (need := self._link(entry.task, is_alive)) is not None
        ]
        for entry, need, end_state in to_skip:
            self._skip(entry, need, end_state, unblocked, ended)
        for entry in entries:
            blocked = self._blocked.get(entry.task.key)
            if blocked is not None and not blocked.open_needs:
                self._release(blocked, unblocked)
        return self._propagate(ended, unblocked)

    def on_task_ended(self, key: TaskKey, state: State) -> Unblocked:
        """Take note of the end of a task. Return the tasks that it unblocks."""
        self.remember(key, state)
        return self._propagate(deque([(key, state)]), Unblocked()) if key in self._dependants else NOTHING_UNBLOCKED

    def remember(self, key: TaskKey, state: State) -> None:
        """Keep the final state of a task. This does not unblock the tasks that need it."""
        self._end_states[key] = state
        self._end_states.move_to_end(key)
        if len(self._end_states) > MAX_REMEMBERED and not self.keeps_all:
            self._end_states.popitem(last=False)

    def load_ended(self, ended: Mapping[TaskKey, State]) -> None:
        """Keep the final states of an earlier executor's tasks, without a limit."""
        self._end_states.update(ended)

    def take(self, key: TaskKey) -> Entry:
        """Remove a blocked task and return its entry. Its dependants stay blocked until `on_task_ended` is called.

        Raise `UnknownTask` if it is not blocked.
        """
        blocked = self._blocked.pop(key, None)
        if blocked is None:
            raise UnknownTask(key)
        self.by_queue[blocked.entry.task.queue] -= 1
        self._unlink(blocked.entry.task)
        return blocked.entry

    def take_all(self) -> list[Entry]:
        """Remove all blocked tasks. Return their entries in order of arrival."""
        entries = [blocked.entry for blocked in self._blocked.values()]
        self._blocked, self._dependants = {}, {}
        self.by_queue = Counter(dict.fromkeys(self.by_queue, 0))
        return entries

    def reprioritise(self, key: TaskKey, priority: int) -> Task:
        """Change the priority of a blocked task. Return the changed task. Raise `UnknownTask`."""
        blocked = self._blocked.get(key)
        if blocked is None:
            raise UnknownTask(key)
        task = replace(blocked.entry.task, priority=priority)
        blocked.entry = replace(blocked.entry, rank=-priority, task=task)
        return task

    def _link(self, task: Task, is_alive: Callable[[TaskKey], bool]) -> TaskKey | None:
        """Link a task to its unfinished needs. Return the first need that causes it to be skipped, if any."""
        blocked, failed_need = self._blocked[task.key], None
        for need in task.needs:
            if need in self._blocked or is_alive(need):
                self._dependants.setdefault(need, {})[task.key] = None
                blocked.open_needs += 1
            elif failed_need is None and skips(task, self._end_states.get(need, State.SUCCESS)):
                failed_need = need
        return failed_need

    def _unlink(self, task: Task) -> None:
        for need in task.needs:
            dependants = self._dependants.get(need)
            if dependants is not None:
                dependants.pop(task.key, None)
                if not dependants:
                    del self._dependants[need]

    def _propagate(self, ended: deque[tuple[TaskKey, State]], unblocked: Unblocked) -> Unblocked:
        """Unblock or skip the dependants of ended tasks. A skipped task has ended, too.

        The method uses a queue and no recursion, because a chain of tasks may be long.
        """
        while ended:
            need, end_state = ended.popleft()
            for key in self._dependants.pop(need, ()):
                blocked = self._blocked[key]
                blocked.open_needs -= 1
                if skips(blocked.entry.task, end_state):
                    self._skip(blocked.entry, need, end_state, unblocked, ended)
                elif not blocked.open_needs:
                    self._release(blocked, unblocked)
        unblocked.ready.sort(key=order_of)
        return unblocked

    def _skip(
        self, entry: Entry, need: TaskKey, end_state: State, unblocked: Unblocked, ended: deque[tuple[TaskKey, State]]
    ) -> None:
        key = entry.task.key
        self.take(key)
        self.remember(key, State.SKIPPED)
        unblocked.skipped.append(Skipped(entry, f"needs {need!r}, which {END_STATE_PHRASES[end_state]}"))
        ended.append((key, State.SKIPPED))

    def _release(self, blocked: BlockedTask, unblocked: Unblocked) -> None:
        del self._blocked[blocked.entry.task.key]
        self.by_queue[blocked.entry.task.queue] -= 1
        unblocked.ready.append(blocked.entry)


def skips(task: Task, end_state: State) -> bool:
    """Return whether a task is skipped if a task that it needs ends in this state."""
    return end_state is not State.SUCCESS and task.on_need_failed is OnNeedFailed.SKIP


def order_of(entry: Entry) -> int:
    """Return the sort key for the order of arrival."""
    return entry.order


# — cycles —

BREAK_CYCLE = "remove one of these needs"


def cycles(needs: Mapping[K, Collection[K]]) -> Iterator[list[K]]:
    """Yield cycles of tasks that need each other: at least one cycle if there are any.

    `needs` maps each key to the keys that it needs. A needed key that is not in `needs` has no needs. Each cycle begins
    with its first key in the order of `needs`. The cost grows with the number of needs.
    """
    candidates = keys_on_or_behind_cycles(needs)
    position = {key: n for n, key in enumerate(needs) if key in candidates}
    reached_from: dict[K, K] = {}
    for start in position:
        path: list[K] = []
        key = start
        while key not in reached_from:
            reached_from[key] = start
            path.append(key)
            key = next(need for need in needs[key] if need in candidates)
        if reached_from[key] == start:
            cycle = path[path.index(key) :]
            first_index = cycle.index(min(cycle, key=position.__getitem__))
            yield cycle[first_index:] + cycle[:first_index]


def keys_on_or_behind_cycles(needs: Mapping[K, Collection[K]]) -> set[K]:
    """Return the keys that remain after tasks without needs are removed, repeatedly, until every task has one."""
    dependants: dict[K, list[K]] = {}
    open_needs: dict[K, int] = {}
    for key, needed in needs.items():
        known_needs = [need for need in needed if need in needs]
        open_needs[key] = len(known_needs)
        for need in known_needs:
            dependants.setdefault(need, []).append(key)
    removable = [key for key, count in open_needs.items() if not count]
    for key in removable:  # the loop appends to `removable`
        del open_needs[key]
        for dependant in dependants.get(key, ()):
            open_needs[dependant] -= 1
            if not open_needs[dependant]:
                removable.append(dependant)
    return set(open_needs)


def format_cycle(cycle: Sequence[TaskKey]) -> str:
    """Return a cycle as text: "a needs b needs a". The middle of a long cycle is left out."""
    names = [name[:MAX_KEY_LENGTH] for name in map(str, (*cycle, cycle[0]))]
    if len(names) > MAX_PATH:
        half = MAX_PATH // 2
        names[half:-half] = [f"… {len(names) - 2 * half:,} more …"]
    return " needs ".join(names)
