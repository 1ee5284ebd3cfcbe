"""The keys of jobs without keys of their own, after their file has changed."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from celeriac.ledger.codec import digest_of
from celeriac.ledger.line_identity import keep_keys
from celeriac.task.task import Task


def lines(*commands: str) -> list[Task]:
    return [Task(key=str(number), command=command) for number, command in enumerate(commands, 1)]


def rows_of(tasks: list[Task]) -> list[tuple[str, int]]:
    return [(str(task.key), digest_of(task)) for task in tasks]


def keys(tasks: list[Task], earlier: list[Task]) -> list[object]:
    return [task.key for task in keep_keys(tasks, {task.key for task in tasks}, rows_of(earlier))]


def test_a_moved_line_keeps_its_key() -> None:
    assert keys(lines("new", "a", "b"), lines("a", "b")) == ["1-2", "1", "2"]
    assert keys(lines("b", "a"), lines("a", "b")) == ["2", "1"]


def test_equal_lines_keep_their_order() -> None:
    assert keys(lines("new", "a", "a", "a"), lines("a", "b", "a")) == ["1-2", "1", "3", "4"]
    twelve = lines(*"aaaaaaaaaaaa")
    assert keys(twelve, twelve) == [str(number) for number in range(1, 13)]


def test_a_changed_line_has_the_key_of_its_number() -> None:
    assert keys(lines("a", "changed", "c"), lines("a", "b", "c")) == ["1", "2", "3"]


def test_a_second_number_is_free_in_the_file_and_in_the_ledger() -> None:
    earlier = [*lines("a", "b"), Task(key="1-2", command="c")]
    assert keys(lines("new", "a"), earlier) == ["1-3", "1"]


def test_given_keys_stay_and_needs_follow() -> None:
    tasks = [Task(key="1", command="named"), Task(key="2", command="a"), Task(key="x", command="b", needs=("2", "1"))]
    kept = keep_keys(tasks, {"2"}, [*rows_of(lines("b", "c", "a")), ("x", 5), ("9" * 5000, digest_of(tasks[1]))])
    assert [(task.key, task.needs) for task in kept] == [("1", ()), ("3", ()), ("x", ("3", "1"))]


COMMANDS = st.lists(st.sampled_from("abcd"), max_size=8)


@given(COMMANDS, COMMANDS, COMMANDS)
def test_each_line_of_the_ledger_is_found_again_once(first: list[str], second: list[str], third: list[str]) -> None:
    ledger = {str(task.key): task for task in lines(*first)}
    for commands in (second, third, third):
        tasks = lines(*commands)
        kept = keep_keys(tasks, {task.key for task in tasks}, rows_of([*ledger.values()]))
        assert [task.command for task in kept] == commands
        assert len({task.key for task in kept}) == len(kept)
        found = [task for task in kept if str(task.key) in ledger and ledger[str(task.key)].command == task.command]
        same = Counter(commands) & Counter(str(task.command) for task in ledger.values())
        assert Counter(task.command for task in found) == same
        ledger |= {str(task.key): task for task in kept}
