"""Files of plain jobs, which are read in one go: the jobs are those that reading line by line finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celeriac.runs.job_file import BadJobs, Jobs, PlainJobs, Problem, read_jobs, read_whole

TEXT_LINES = [
    "echo a",
    "  echo b\r",
    "",
    " \t",
    "# a comment",
    "  # another",
    "echo é # ü",
    "echo a \\\\",
    "echo a \\",
    "{ echo a; }",
    '{"command": "a"}',
    "[ -f a ]",
    "\x0cecho",
    "\u2028",
    "echo \0",
    "#!/bin/sh",
    "command,key",
]
JSON_LINES = [
    '{"command": "echo a"}',
    '{"command": ["echo", "a: b"], "key": "a"}',
    '{"key": "2", "command": "b"}',
    '{"key": "é", "command": "\\u00e9 \\"x\\": y"}',
    "",
    " \r",
    '{"key": null, "command": "a"}',
    '{"key": 1, "command": "a"}',
    '{"key": "", "command": "a"}',
    '{"key": "a\\u0000", "command": "a"}',
    '{"command": "a", "command": "b"}',
    '{"command": " "}',
    '{"command": []}',
    '{"command": ["a\\u0000"]}',
    '{"command": "a", "priority": 5, "key": "p"}',
    '{"command": "a", "comand": "b"}',
    '{"command": "a", "key": "n", "needs": "p"}',
    '{"command": "\\ud800"}',
    '{"command": "a"',
    "[",
    "echo a",
]


def outcome(read: Any, *arguments: Any) -> tuple[list[dict[str, object]], set[str]] | list[Problem]:
    """Return the fields of all jobs and the keys that are numbers of lines, or the problems."""
    try:
        jobs: Jobs = read(*arguments).as_tasks()
    except BadJobs as error:
        return error.problems
    names = [name for name in jobs[0].__struct_fields__ if name != "id"]
    return [{name: getattr(task, name) for name in names} for task in jobs], set(jobs.numbered)


LONG_LINES = [
    '{"command": "echo a", "priority": 5}',
    '{"key": "a", "command": ["b"], "timeout": 5, "queue": "q", "cwd": "/x"}',
    ' {"grace": 1.5, "command": "a: b", "slots": 2, "retries": 1} \r',
    '{"command": "a", "priority": 5, "max_lost": 2, "on_worker_lost": "fail"}',
    '{"command": "a", "timeout": null, "cwd": null, "retry_delay": 0}',
    '{"command": "a", "stdin": "a: b"}',
    '{"command": "a", "stdin": {"secret": "b"}}',
    '{"command": "a", "stdin_file": "b"}',
    '{"command": "a", "artifacts": ["b"]}',
    '{"command": "a", "scratch": true}',
    '{"command": "a", "scratch": 1}',
    '{"command": "a", "cpus": 1.5, "memory": "2G", "gpus": 1}',
    '{"command": "a", "memory": 512}',
    '{"command": "a", "memory": "2 pages"}',
    '{"command": "a", "cpus": 0.0001}',
    '{"command": "a", "stdin": "b", "stdin_file": "b"}',
    "",
    '{"command": "a", "priority": 1.5}',
    '{"command": "a", "timeout": -1}',
    '{"command": "a", "slots": true}',
    '{"command": "a", "queue": ""}',
    '{"command": "a", "on_need_failed": "x"}',
    '{"command": "a", "tags": ["x: y", "z"], "queue": "q"}',
    '{"command": "a", "tags": " x , y"}',
    '{"command": "a", "concurrency_key": "db"}',
    '{"command": "a", "concurrency_key": ""}',
    '{"command": "a", "tags": ["x,y"]}',
    '{"command": "a", "priority": 5, "priority": 5}',
    '{"command": "a", "env": {"A": "1"}}',
    '{"command": "a", "cwd": "/\\u0000"}',
]
OWN_LINES = [
    '{"command": "a", "key": "k"}',
    '{"command": "b", "needs": "k"}',
    '{"command": "b", "needs": ["k"], "key": "m", "env": {}}',
    '{"command": "c", "key": "n", "needs": ["m", "k"], "on_need_failed": "run"}',
    '{"command": "d", "env": {"A": "x: y", "B": {"secret": "s"}}, "needs": []}',
    '{"command": "d", "needs": ["1", "n"]}',
    '{"command": "d", "needs": ["x"]}',
    '{"command": "d", "needs": ["k", "k"]}',
    '{"command": "d", "key": "x", "needs": ["x"]}',
    '{"command": "d", "key": "x", "needs": ["y"]}',
    '{"command": "d", "key": "y", "needs": ["x"]}',
    '{"command": "d", "needs": [""]}',
    '{"command": "d", "env": {"A": 1}}',
    '{"command": "d", "env": {"A=": "1"}}',
    '{"command": "d", "env": {"A": "1", "A": "2"}}',
    '{"command": "d", "env":',
    '{"A": "1"}}',
]
SPLIT_LINES = [
    '{"command": "a"}',
    '{"command": "a", "key": "k"}',
    '{"command": "b", "priority": 5}',
    '{"command": "a"',
    '"key": "b"}',
    '{"command": "a"}, {"command": "b"}',
    '{"command": "a}',
    '{", "key": "b"}',
    '{"command": ["a"',
    '{"command": "a"},',
    ',{"command": "a"}',
    '"b"]}',
    "}",
    "{",
]
TABLE_LINES = [
    "command,key",
    "command,priority,queue,timeout,key",
    "cmd;x",
    "echo a,a",
    "echo b,5",
    "echo c,",
    "echo d,5,q,1.5,k",
    "echo e,-5,,,",
    '"echo ""f""",5',
    "",
    " ",
    "# no comment,b",
    "echo a,b,c,d,e,f",
    ",a",
    "a\rb,c",
    'echo "x",y',
    '"echo',
    'two lines",z',
    "echo g,high,,soon,",
    "\0,x",
    "sep=,",
]
NAMES_AND_POOLS = [
    ("j.txt", TEXT_LINES),
    ("j", TEXT_LINES),
    ("j.jsonl", JSON_LINES),
    ("j.jsonl", LONG_LINES),
    ("j.jsonl", OWN_LINES),
    ("j.jsonl", SPLIT_LINES),
    ("j.csv", TABLE_LINES),
    ("j.tsv", [line.replace(",", "\t") for line in TABLE_LINES]),
    ("j", TABLE_LINES),
]


@pytest.mark.parametrize(("name", "pool"), NAMES_AND_POOLS)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_jobs_and_the_problems_are_those_of_reading_line_by_line(tmp_path, name, pool, data):
    good = st.sampled_from(pool[: len(pool) // 3])
    lines = data.draw(st.lists(st.one_of(good, good, good, st.sampled_from(pool)), max_size=6))
    text = data.draw(st.sampled_from(["", "\ufeff"])) + "\n".join(lines) + data.draw(st.sampled_from(["", "\n"]))
    path = tmp_path / name
    path.write_bytes(text.encode() + data.draw(st.sampled_from([b"", b"", b"\xff"])))
    defaults = data.draw(st.sampled_from([{}, {"timeout": 5.0, "queue": "q"}, {"priority": 3}, {"retries": -1}]))
    assert outcome(read_whole, path, "auto", defaults) == outcome(read_jobs, path, "auto", defaults)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("j.txt", "a\n#\n b\n"),
        ("j.jsonl", '{"command": "a"}\n{"command": ["b"], "key": "k"}\n'),
        ("j.jsonl", '{"command": "a", "priority": 2}\n\n{"command": ["b: b"], "key": "k", "retries": 1}'),
        ("j.csv", "\ufeffpriority,command,key\n2,a\n\n,b,k\n"),
        ("j", "sep=;\n\nkey;Command;Retry Delay\r\n;a\r\n3;b;1.5\r\n"),
    ],
)
def test_plain_jobs_are_built_when_they_are_taken(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    numbers: list[int] = []
    jobs = read_whole(path, "auto", {"timeout": 5.0}, numbers.append)
    assert isinstance(jobs, PlainJobs)
    assert (numbers, len(jobs), [task.timeout for task in jobs.samples()]) == ([2], 2, [5.0])
    [source], commands = jobs.sources(), dict(jobs.commands())
    [(place, first)] = source.take(1)
    assert (place, first.command, first.timeout, len(source)) == (0, commands[first.key], 5.0, 1)
    [other] = source.keys()
    assert [(place, task.key) for place, task in source.take_named([str(other), "none"])] == [(1, other)]
    assert (len(source), source.take(5), list(source.keys())) == (0, [], [])


def test_the_command_of_a_number_of_a_line_is_found(tmp_path):
    path = tmp_path / "j.jsonl"
    path.write_text(
        '{"command": "a"}\n\n{"command": "b", "key": "7"}\n{"command": "c"}\n{"command": "d", "key": "1-2"}\n'
    )
    jobs = read_whole(path)
    assert isinstance(jobs, PlainJobs)
    found = {key: jobs.command_of(key) for key in ("1", "2", "3", "4", "5", "7", "1-2", "x")}
    assert found == {"1": "a", "2": None, "3": None, "4": "c", "5": None, "7": "b", "1-2": "d", "x": None}


@pytest.mark.parametrize(
    ("first", "second", "is_plain"),
    [
        ({}, {"needs": ["b"]}, True),
        ({}, {"env": {"A": "1"}}, True),
        ({"needs": "2"}, {}, False),
        ({}, {"needs": ["b"], "priority": 1}, False),
        ({}, {"needs": ["b"], "queue": "q"}, False),
    ],
)
def test_jobs_become_tasks_at_once_if_needs_do_not_fit_the_order(tmp_path: Path, first, second, is_plain: bool):
    path = tmp_path / "j.jsonl"
    lines = [{"key": "b", "command": "b", **first}, {"command": "c", **second}]
    path.write_text("\n".join(map(json.dumps, lines)))
    jobs = read_whole(path)
    assert (isinstance(jobs, PlainJobs), isinstance(jobs, Jobs)) == (is_plain, not is_plain)
    assert [task.needs for task in jobs.as_tasks()] == [task.needs for task in read_jobs(path)]
