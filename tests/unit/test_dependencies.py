"""Test `Dependencies` against a model that looks at all tasks at every step."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from celeriac.errors import InvalidTask, UnknownTask
from celeriac.executor import dependencies as module
from celeriac.executor.dependencies import Dependencies, Unblocked, cycles, format_cycle
from celeriac.executor.priority_queue import Entry
from celeriac.task.state import State
from celeriac.task.task import OnNeedFailed, Task, TaskKey

KEYS = [f"k{n}" for n in range(8)]
ENDS = [State.SUCCESS, State.SUCCESS, State.FAILED, State.REVOKED]
PHRASES = {State.FAILED: "failed", State.REVOKED: "was revoked", State.SKIPPED: "was skipped"}


def none_is_alive(key: TaskKey) -> bool:
    return False


def has_cycle(needs: dict[str, set[str]]) -> bool:
    """Return whether tasks are left when tasks without needs are removed again and again."""
    left = dict(needs)
    while free := [key for key in left if not left[key] & left.keys()]:
        for key in free:
            del left[key]
    return bool(left)


@dataclass
class ModelTask:
    task: Task
    order: int
    open: set[TaskKey] = field(default_factory=set)


class DependenciesModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.max_remembered, module.MAX_REMEMBERED = module.MAX_REMEMBERED, 5
        self.dependencies = Dependencies()
        self.alive: set[TaskKey] = set()
        """The unfinished tasks that are not blocked."""

        self.blocked: dict[TaskKey, ModelTask] = {}
        self.ended: dict[TaskKey, State] = {}
        self.arrivals = 0
        self.ready: list[ModelTask] = []
        self.skipped: list[tuple[TaskKey, str]] = []

    def teardown(self) -> None:
        module.MAX_REMEMBERED = self.max_remembered

    @rule(
        batch=st.dictionaries(
            st.sampled_from(KEYS),
            st.tuples(st.lists(st.sampled_from(KEYS), max_size=3, unique=True), st.sampled_from(["skip", "run"])),
            min_size=1,
            max_size=5,
        ),
        known_only=st.sampled_from([True, True, True, False]),
    )
    def queue(self, batch: dict[str, tuple[list[str], str]], known_only: bool) -> None:
        known = batch.keys() | self.alive | self.blocked.keys() | self.ended.keys()
        tasks = [
            Task(
                key=key,
                command="true",
                needs=[need for need in needed if need != key and (need in known or not known_only)],  # type: ignore[arg-type]
                on_need_failed=policy,  # type: ignore[arg-type]
            )
            for key, (needed, policy) in batch.items()
            if key not in self.alive and key not in self.blocked
        ]
        inside = {str(task.key): {str(need) for need in task.needs} for task in tasks}
        known = inside.keys() | self.alive | self.blocked.keys() | self.ended.keys()
        if not known.issuperset(set().union(*inside.values())) or has_cycle(inside):
            with pytest.raises(InvalidTask):
                self.dependencies.check(tasks, self.is_alive)
            return
        self.dependencies.check(tasks, self.is_alive)
        entries = [Entry(0, self.arrivals + n, n, task) for n, task in enumerate(tasks)]
        self.arrivals += len(tasks)
        self.alive |= {task.key for task in tasks if not task.needs}
        self.model_blocks([entry for entry in entries if entry.task.needs])
        self.compare(self.dependencies.block([entry for entry in entries if entry.task.needs], self.is_alive))

    def is_alive(self, key: TaskKey) -> bool:
        return key in self.alive

    def model_blocks(self, entries: list[Entry]) -> None:
        new = {entry.task.key: ModelTask(entry.task, entry.order) for entry in entries}
        self.blocked |= new
        to_skip = []
        for key, item in new.items():
            item.open = {need for need in item.task.needs if need in self.blocked or need in self.alive}
            bad = [need for need in item.task.needs if need not in item.open and self.ended[need] is not State.SUCCESS]
            if bad and item.task.on_need_failed == "skip":
                to_skip.append((key, bad[0], self.ended[bad[0]]))
        for item in [
            item for item in new.values() if not item.open and item.task.key not in {key for key, *_ in to_skip}
        ]:
            self.model_unblocks(item)
        for key, need, end_state in to_skip:
            self.model_skips(key, need, end_state)
        self.model_propagates([key for key, *_ in to_skip], State.SKIPPED)

    def model_propagates(self, keys: Iterable[TaskKey], end_state: State) -> None:
        ended = deque((key, end_state) for key in keys)
        while ended:
            need, end_state = ended.popleft()
            for item in [item for item in self.blocked.values() if need in item.open]:
                item.open.discard(need)
                if end_state is not State.SUCCESS and item.task.on_need_failed == "skip":
                    self.model_skips(item.task.key, need, end_state)
                    ended.append((item.task.key, State.SKIPPED))
                elif not item.open:
                    self.model_unblocks(item)

    def model_skips(self, key: TaskKey, need: TaskKey, end_state: State) -> None:
        del self.blocked[key]
        self.skipped.append((key, f"needs {need!r}, which {PHRASES[end_state]}"))
        self.model_remembers(key, State.SKIPPED)

    def model_unblocks(self, item: ModelTask) -> None:
        del self.blocked[item.task.key]
        self.alive.add(item.task.key)
        self.ready.append(item)

    def model_remembers(self, key: TaskKey, end_state: State) -> None:
        self.ended.pop(key, None)
        self.ended[key] = end_state
        if len(self.ended) > module.MAX_REMEMBERED:
            del self.ended[next(iter(self.ended))]

    def compare(self, unblocked: Unblocked) -> None:
        assert [entry.task for entry in unblocked.ready] == [
            item.task for item in sorted(self.ready, key=lambda item: item.order)
        ], "in order of arrival"
        assert [(each.entry.task.key, each.why) for each in unblocked.skipped] == self.skipped
        self.ready, self.skipped = [], []

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), end_state=st.sampled_from(ENDS))
    def end(self, data: st.DataObject, end_state: State) -> None:
        key = data.draw(st.sampled_from(sorted(map(str, self.alive))))
        self.alive.discard(key)
        self.has_ended(key, end_state)

    @precondition(lambda self: self.blocked)
    @rule(data=st.data(), end_state=st.sampled_from(ENDS))
    def take(self, data: st.DataObject, end_state: State) -> None:
        key = data.draw(st.sampled_from(sorted(map(str, self.blocked))))
        item = self.blocked.pop(key)
        assert self.dependencies.take(key).task == item.task
        self.has_ended(key, end_state)

    def has_ended(self, key: str, end_state: State) -> None:
        self.model_remembers(key, end_state)
        self.model_propagates([key], end_state)
        self.compare(self.dependencies.on_task_ended(key, end_state))

    @rule(key=st.sampled_from(KEYS))
    def a_task_that_is_not_blocked_is_unknown(self, key: str) -> None:
        if key not in self.blocked:
            with pytest.raises(UnknownTask):
                self.dependencies.take(key)
            with pytest.raises(UnknownTask):
                self.dependencies.reprioritise(key, 1)
        else:
            self.dependencies.reprioritise(key, 1)
            entry = self.dependencies.get(key)
            assert entry is not None
            assert (entry.rank, entry.task.priority, entry.order) == (-1, 1, self.blocked[key].order)
            self.blocked[key].task = entry.task

    @invariant()
    def it_knows_the_blocked_tasks_and_their_unmet_needs(self) -> None:
        assert len(self.dependencies) == len(self.blocked)
        assert self.dependencies.by_queue.total() == len(self.blocked)
        assert [task.key for task in self.dependencies.tasks()] == list(self.blocked)
        assert [key for key in KEYS if key in self.dependencies] == [key for key in KEYS if key in self.blocked]
        for key, item in self.blocked.items():
            assert item.open
            assert self.dependencies.unmet_needs(key) == [need for need in item.task.needs if need in item.open]


TestDependenciesModel = DependenciesModel.TestCase


# — cycles —


@given(st.dictionaries(st.sampled_from(KEYS), st.sets(st.sampled_from([*KEYS, "other"]), max_size=3)))
def test_cycles_yields_true_cycles_and_at_least_one_if_there_are_any(needs: dict[str, set[str]]) -> None:
    yielded = list(cycles(needs))
    assert bool(yielded) == has_cycle(needs)
    place = list(needs)
    for cycle in yielded:
        assert all(after in needs[key] for key, after in zip(cycle, [*cycle[1:], cycle[0]], strict=True))
        assert len(set(cycle)) == len(cycle)
        assert cycle[0] == min(cycle, key=place.index)
    assert len({key for cycle in yielded for key in cycle}) == sum(map(len, yielded))


def test_format_cycle_shortens_a_long_cycle() -> None:
    assert format_cycle(["a"]) == "a needs a"
    assert format_cycle(["a", "b", 3]) == "a needs b needs 3 needs a"
    assert format_cycle("abcdef") == "a needs b needs c needs d needs e needs f needs a"
    assert format_cycle("abcdefgh") == "a needs b needs c needs … 3 more … needs g needs h needs a"


def test_the_first_need_that_did_not_succeed_is_named() -> None:
    needs = Dependencies()
    for key, state in (("good", State.SUCCESS), ("bad", State.FAILED), ("worse", State.REVOKED)):
        needs.remember(key, state)
    task = Task(key="k", command="true", needs=("good", "bad", "worse"))
    (skipped,) = needs.block([Entry(0, 0, 0, task)], none_is_alive).skipped
    assert skipped.why == "needs 'bad', which failed"


def test_a_need_that_ended_in_an_earlier_executor_counts() -> None:
    needs = Dependencies()
    needs.load_ended({"bad": State.FAILED})
    tasks = [Task(key="k", command="true", needs=("bad",))]
    needs.check(tasks, none_is_alive)
    assert len(needs.block([Entry(0, 0, 0, tasks[0])], none_is_alive).skipped) == 1


def test_tasks_that_are_unblocked_together_are_in_order_of_arrival() -> None:
    needs = Dependencies()
    fields = ((0, "middle", "run"), (1, "root", "run"), ("middle", "root", "skip"))
    tasks = [
        Task(key=key, command="true", needs=(need,), on_need_failed=OnNeedFailed(policy))
        for key, need, policy in fields
    ]
    needs.block([Entry(0, n, n, task) for n, task in enumerate(tasks)], "root".__eq__)
    assert [entry.task.key for entry in needs.on_task_ended("root", State.FAILED).ready] == [0, 1]


# — many —

MANY = 100_000


def blocked(*tasks: tuple[TaskKey, Sequence[TaskKey]]) -> Dependencies:
    needs = Dependencies()
    entries = [
        Entry(0, n, n, Task(key=key, command="true", needs=tuple(needed))) for n, (key, needed) in enumerate(tasks)
    ]
    needs.check([entry.task for entry in entries], "first".__eq__)
    needs.block(entries, "first".__eq__)
    return needs


def test_a_long_chain_is_skipped_to_its_end() -> None:
    needs = blocked((0, ["first"]), *((n, [n - 1]) for n in range(1, MANY)))
    unblocked = needs.on_task_ended("first", State.FAILED)
    assert [skipped.entry.task.key for skipped in unblocked.skipped] == list(range(MANY))
    assert (unblocked.skipped[0].why, unblocked.skipped[1].why) == (
        "needs 'first', which failed",
        "needs 0, which was skipped",
    )
    assert (len(needs), needs.tasks_needed) == (0, 0)


def test_a_long_chain_is_unblocked_one_by_one() -> None:
    needs = blocked((0, ["first"]), *((n, [n - 1]) for n in range(1, MANY)))
    for n in range(MANY):
        assert [entry.task.key for entry in needs.on_task_ended(n - 1 if n else "first", State.SUCCESS).ready] == [n]
    assert (len(needs), needs.tasks_needed) == (0, 0)


@pytest.mark.parametrize("end_state", [State.SUCCESS, State.FAILED])
def test_wide_dependencies_are_fast(end_state: State) -> None:
    middle = list(range(MANY))
    needs = blocked(*((n, ["first"]) for n in middle), ("last", middle))
    unblocked = needs.on_task_ended("first", end_state)
    assert (len(unblocked.ready), len(unblocked.skipped)) == (
        (MANY, 0) if end_state is State.SUCCESS else (0, MANY + 1)
    )
    if end_state is State.SUCCESS:
        assert needs.unmet_needs("last") == middle
        ready = [entry.task.key for n in middle for entry in needs.on_task_ended(n, State.SUCCESS).ready]
        assert ready == ["last"]
    assert (len(needs), needs.tasks_needed) == (0, 0)


def test_taking_a_blocked_task_leaves_no_links_behind() -> None:
    needs = Dependencies()
    for n in range(1_000):
        needs.block(
            [Entry(0, n, n, Task(key=n, command="true", needs=("first", n + 1)))], only_first_and_those_above(n)
        )
        needs.take(n)
    assert (len(needs), needs.tasks_needed) == (0, 0)


def only_first_and_those_above(n: int):
    return lambda key: key == "first" or key > n


def test_a_batch_larger_than_the_remembered_ends_is_skipped_correctly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_REMEMBERED", 3)
    needs = Dependencies()
    needs.on_task_ended("bad", State.FAILED)
    tasks = [Task(key=n, command="true", needs=("bad",)) for n in range(10)]
    needs.check(tasks, none_is_alive)
    unblocked = needs.block([Entry(0, n, n, task) for n, task in enumerate(tasks)], none_is_alive)
    assert len(unblocked.skipped) == 10
    with pytest.raises(InvalidTask, match="which is unknown or ended long ago"):
        needs.check([Task(key="late", command="true", needs=("bad",))], none_is_alive)
