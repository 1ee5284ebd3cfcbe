"""`Needs` against a model that looks at everything it holds, at every step."""

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
from celeriac.task.task import Task, TaskKey

KEYS = [f"k{n}" for n in range(8)]
ENDS = [State.SUCCESS, State.SUCCESS, State.FAILED, State.REVOKED]
WORDS = {State.FAILED: "failed", State.REVOKED: "was revoked", State.SKIPPED: "was skipped"}


def nobody(key: TaskKey) -> bool:
    return False


def has_circle(needs: dict[str, set[str]]) -> bool:
    """Taking away again and again what needs nothing any more."""
    left = dict(needs)
    while free := [key for key in left if not left[key] & left.keys()]:
        for key in free:
            del left[key]
    return bool(left)


@dataclass
class Waiting:
    task: Task
    order: int
    open: set[TaskKey] = field(default_factory=set)


class LooksAtAll(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.most, module.MAX_REMEMBERED = module.MAX_REMEMBERED, 5
        self.needs = Dependencies()
        self.alive: set[TaskKey] = set()
        """Those that wait for nobody, and have not ended."""

        self.held: dict[TaskKey, Waiting] = {}
        self.ended: dict[TaskKey, State] = {}
        self.arrivals = 0
        self.ready: list[Waiting] = []
        self.skipped: list[tuple[TaskKey, str]] = []

    def teardown(self) -> None:
        module.MAX_REMEMBERED = self.most

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
        known = batch.keys() | self.alive | self.held.keys() | self.ended.keys()
        tasks = [
            Task(
                key=key,
                command="true",
                needs=[need for need in wanted if need != key and (need in known or not known_only)],  # type: ignore[arg-type]
                on_need_failed=policy,  # type: ignore[arg-type]
            )
            for key, (wanted, policy) in batch.items()
            if key not in self.alive and key not in self.held
        ]
        inside = {str(task.key): {str(need) for need in task.needs} for task in tasks}
        known = inside.keys() | self.alive | self.held.keys() | self.ended.keys()
        if not known.issuperset(set().union(*inside.values())) or has_circle(inside):
            with pytest.raises(InvalidTask):
                self.needs.check(tasks, self.is_alive)
            return
        self.needs.check(tasks, self.is_alive)
        entries = [Entry(0, self.arrivals + n, n, task) for n, task in enumerate(tasks)]
        self.arrivals += len(tasks)
        self.alive |= {task.key for task in tasks if not task.needs}
        self.model_holds([entry for entry in entries if entry.task.needs])
        self.compare(self.needs.block([entry for entry in entries if entry.task.needs], self.is_alive))

    def is_alive(self, key: TaskKey) -> bool:
        return key in self.alive

    def model_holds(self, entries: list[Entry]) -> None:
        new = {entry.task.key: Waiting(entry.task, entry.order) for entry in entries}
        self.held |= new
        doomed = []
        for key, it in new.items():
            it.open = {need for need in it.task.needs if need in self.held or need in self.alive}
            bad = [need for need in it.task.needs if need not in it.open and self.ended[need] is not State.SUCCESS]
            if bad and it.task.on_need_failed == "skip":
                doomed.append((key, bad[0], self.ended[bad[0]]))
        for it in [it for it in new.values() if not it.open and it.task.key not in {key for key, *_ in doomed}]:
            self.model_frees(it)
        for key, need, how in doomed:
            self.model_skips(key, need, how)
        self.model_goes_on([key for key, *_ in doomed], State.SKIPPED)

    def model_goes_on(self, keys: Iterable[TaskKey], how: State) -> None:
        line = deque((key, how) for key in keys)
        while line:
            need, how = line.popleft()
            for it in [it for it in self.held.values() if need in it.open]:
                it.open.discard(need)
                if how is not State.SUCCESS and it.task.on_need_failed == "skip":
                    self.model_skips(it.task.key, need, how)
                    line.append((it.task.key, State.SKIPPED))
                elif not it.open:
                    self.model_frees(it)

    def model_skips(self, key: TaskKey, need: TaskKey, how: State) -> None:
        del self.held[key]
        self.skipped.append((key, f"needs {need!r}, which {WORDS[how]}"))
        self.model_remembers(key, State.SKIPPED)

    def model_frees(self, it: Waiting) -> None:
        del self.held[it.task.key]
        self.alive.add(it.task.key)
        self.ready.append(it)

    def model_remembers(self, key: TaskKey, how: State) -> None:
        self.ended.pop(key, None)
        self.ended[key] = how
        if len(self.ended) > module.MAX_REMEMBERED:
            del self.ended[next(iter(self.ended))]

    def compare(self, freed: Unblocked) -> None:
        assert [entry.task for entry in freed.ready] == [
            it.task for it in sorted(self.ready, key=lambda it: it.order)
        ], "in order of arrival"
        assert [(each.entry.task.key, each.why) for each in freed.skipped] == self.skipped
        self.ready, self.skipped = [], []

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), how=st.sampled_from(ENDS))
    def end(self, data: st.DataObject, how: State) -> None:
        key = data.draw(st.sampled_from(sorted(map(str, self.alive))))
        self.alive.discard(key)
        self.has_ended(key, how)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), how=st.sampled_from(ENDS))
    def take(self, data: st.DataObject, how: State) -> None:
        key = data.draw(st.sampled_from(sorted(map(str, self.held))))
        it = self.held.pop(key)
        assert self.needs.take(key).task == it.task
        self.has_ended(key, how)

    def has_ended(self, key: str, how: State) -> None:
        self.model_remembers(key, how)
        self.model_goes_on([key], how)
        self.compare(self.needs.on_task_ended(key, how))

    @rule(key=st.sampled_from(KEYS))
    def what_is_not_held_is_unknown(self, key: str) -> None:
        if key not in self.held:
            with pytest.raises(UnknownTask):
                self.needs.take(key)
            with pytest.raises(UnknownTask):
                self.needs.reprioritise(key, 1)
        else:
            self.needs.reprioritise(key, 1)
            entry = self.needs.get(key)
            assert entry is not None
            assert (entry.rank, entry.task.priority, entry.order) == (-1, 1, self.held[key].order)
            self.held[key].task = entry.task

    @invariant()
    def it_holds_what_waits_and_for_what(self) -> None:
        assert len(self.needs) == len(self.held)
        assert [task.key for task in self.needs.tasks()] == list(self.held)
        assert [key for key in KEYS if key in self.needs] == [key for key in KEYS if key in self.held]
        for key, it in self.held.items():
            assert it.open
            assert self.needs.unmet_needs(key) == [need for need in it.task.needs if need in it.open]


TestLooksAtAll = LooksAtAll.TestCase


# — circles —


@given(st.dictionaries(st.sampled_from(KEYS), st.sets(st.sampled_from([*KEYS, "other"]), max_size=3)))
def test_every_circle_that_is_named_is_one_and_one_is_named_if_there_are_any(needs: dict[str, set[str]]) -> None:
    found = list(cycles(needs))
    assert bool(found) == has_circle(needs)
    place = list(needs)
    for cycle in found:
        assert all(after in needs[key] for key, after in zip(cycle, [*cycle[1:], cycle[0]], strict=True))
        assert len(set(cycle)) == len(cycle)
        assert cycle[0] == min(cycle, key=place.index)
    assert len({key for cycle in found for key in cycle}) == sum(map(len, found))


def test_a_circle_is_told_as_a_way_round_and_a_long_one_in_part() -> None:
    assert format_cycle(["a"]) == "a needs a"
    assert format_cycle(["a", "b", 3]) == "a needs b needs 3 needs a"
    assert format_cycle("abcdef") == "a needs b needs c needs d needs e needs f needs a"
    assert format_cycle("abcdefgh") == "a needs b needs c needs … 3 more … needs g needs h needs a"


# — many —

MANY = 100_000


def held(*tasks: tuple[TaskKey, Sequence[TaskKey]]) -> Dependencies:
    needs = Dependencies()
    entries = [
        Entry(0, n, n, Task(key=key, command="true", needs=tuple(needed))) for n, (key, needed) in enumerate(tasks)
    ]
    needs.check([entry.task for entry in entries], "first".__eq__)
    needs.block(entries, "first".__eq__)
    return needs


def test_a_long_chain_is_skipped_to_its_end() -> None:
    needs = held((0, ["first"]), *((n, [n - 1]) for n in range(1, MANY)))
    freed = needs.on_task_ended("first", State.FAILED)
    assert [skipped.entry.task.key for skipped in freed.skipped] == list(range(MANY))
    assert (freed.skipped[0].why, freed.skipped[1].why) == (
        "needs 'first', which failed",
        "needs 0, which was skipped",
    )
    assert (len(needs), needs._dependants) == (0, {})


def test_a_long_chain_goes_link_by_link() -> None:
    needs = held((0, ["first"]), *((n, [n - 1]) for n in range(1, MANY)))
    for n in range(MANY):
        assert [entry.task.key for entry in needs.on_task_ended(n - 1 if n else "first", State.SUCCESS).ready] == [n]
    assert (len(needs), needs._dependants) == (0, {})


@pytest.mark.parametrize("how", [State.SUCCESS, State.FAILED])
def test_what_many_need_and_what_needs_many_cost_what_they_change(how: State) -> None:
    middle = list(range(MANY))
    needs = held(*((n, ["first"]) for n in middle), ("last", middle))
    freed = needs.on_task_ended("first", how)
    assert (len(freed.ready), len(freed.skipped)) == ((MANY, 0) if how is State.SUCCESS else (0, MANY + 1))
    if how is State.SUCCESS:
        assert needs.unmet_needs("last") == middle
        ready = [entry.task.key for n in middle for entry in needs.on_task_ended(n, State.SUCCESS).ready]
        assert ready == ["last"]
    assert (len(needs), needs._dependants) == (0, {})


def test_who_is_taken_out_again_and_again_leaves_nothing_behind() -> None:
    needs = Dependencies()
    for n in range(1_000):
        needs.block([Entry(0, n, n, Task(key=n, command="true", needs=("first", n + 1)))], nobody_but_those_above(n))
        needs.take(n)
    assert (len(needs), needs._dependants) == (0, {})


def nobody_but_those_above(n: int):
    return lambda key: key == "first" or key > n


def test_how_many_more_ended_than_are_remembered_spoils_no_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_REMEMBERED", 3)
    needs = Dependencies()
    needs.on_task_ended("bad", State.FAILED)
    tasks = [Task(key=n, command="true", needs=("bad",)) for n in range(10)]
    needs.check(tasks, nobody)
    freed = needs.block([Entry(0, n, n, task) for n, task in enumerate(tasks)], nobody)
    assert len(freed.skipped) == 10
    with pytest.raises(InvalidTask, match="which is unknown or ended long ago"):
        needs.check([Task(key="late", command="true", needs=("bad",))], nobody)
