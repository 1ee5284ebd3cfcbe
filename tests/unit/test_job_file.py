"""Job files in each format: the tasks of good files, and the problem of each bad line."""

from __future__ import annotations

import csv
import gc
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import fields, replace

from celeriac.errors import InvalidConfig, InvalidInput
from celeriac.runs.job_file import FIELDS, FORMATS, MAX_LINE, BadJobs, Problem, read_jobs, stream_jobs
from celeriac.runs.job_file.json_lines import Fields
from celeriac.task.tags import EXAMPLE, RULE
from celeriac.task.task import MAX_WAIT, OnNeedFailed, OnWorkerLost, Secret, Task


def read(text: str | bytes, format: str = "jsonl", name: str = "jobs") -> list[Task | Problem]:
    data = text.encode() if isinstance(text, str) else text
    return list(stream_jobs(io.BytesIO(data), name, format))


def tasks(text: str | bytes, format: str = "jsonl") -> list[Task]:
    found = read(text, format)
    assert [str(item) for item in found if isinstance(item, Problem)] == []
    return [item for item in found if isinstance(item, Task)]


def messages(text: str | bytes, format: str = "jsonl") -> list[str]:
    return [str(item) for item in read(text, format) if isinstance(item, Problem)]


def without_id(task: Task) -> Task:
    return replace(task, id="same")


def same(one: Task, other: Task) -> bool:
    kinds = [{name: type(value) for name, value in task.env.items()} for task in (one, other)]
    return without_id(one) == without_id(other) and kinds[0] == kinds[1]


EVERY_FIELD = {
    "key": "a",
    "command": ["gzip", "-k", "x"],
    "priority": -3,
    "queue": "gpu",
    "slots": 2,
    "cpus": 1.5,
    "memory": "2G",
    "gpus": 1,
    "env": {"LANG": "C", "TOKEN": {"secret": "hunter2"}},
    "cwd": "/tmp",
    "timeout": 30,
    "grace": 0.5,
    "retries": 4,
    "retry_delay": 2,
    "on_worker_lost": "fail",
    "max_lost": 7,
    "needs": ["fetch", "unpack"],
    "on_need_failed": "run",
    "tags": ["big", "größe=2"],
    "concurrency_key": "db: 1",
    "stdin": "a\nb: c\n",
    "scratch": True,
}
EVERY_FIELD_AS_TASK = Task(
    key="a",
    command=("gzip", "-k", "x"),
    priority=-3,
    queue="gpu",
    slots=2,
    cpus=1.5,
    memory=2 * 2**30,
    gpus=1,
    env={"LANG": "C", "TOKEN": Secret("hunter2")},
    cwd="/tmp",
    timeout=30,
    grace=0.5,
    retries=4,
    retry_delay=2,
    on_worker_lost=OnWorkerLost.FAIL,
    max_lost=7,
    needs=("fetch", "unpack"),
    on_need_failed=OnNeedFailed.RUN,
    tags=("big", "größe=2"),
    concurrency_key="db: 1",
    stdin="a\nb: c\n",
    scratch=True,
)
EARLIER = ("fetch", "unpack")
"""The keys that the job needs: those of the lines before it."""


# — good files —


def test_json_lines_give_every_field_of_a_task() -> None:
    lines = [*({"key": key, "command": "true"} for key in EARLIER), EVERY_FIELD]
    *_, task = tasks("\n".join(map(json.dumps, lines)))
    assert same(task, EVERY_FIELD_AS_TASK)


def test_the_fields_are_those_of_a_task_without_the_internal_ones() -> None:
    assert set(FIELDS) == {field.name for field in fields(Task)} - {"id", "attempt", "lost"}
    assert set(Fields.__annotations__) == set(FIELDS)


@pytest.mark.parametrize(("format", "separator"), [("csv", ","), ("tsv", "\t")])
def test_a_table_gives_every_field_of_a_task(format: str, separator: str) -> None:
    cells = {name: value if isinstance(value, str) else json.dumps(value) for name, value in EVERY_FIELD.items()}
    cells["command"] = "gzip -k x"
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, FIELDS, delimiter=separator)
    writer.writeheader()
    writer.writerows({"key": key, "command": "true"} for key in EARLIER)
    writer.writerow(cells)
    *_, task = tasks(text.getvalue(), format)
    assert same(task, replace(EVERY_FIELD_AS_TASK, command="gzip -k x"))


def test_an_empty_or_missing_cell_means_the_default() -> None:
    found = tasks("command,key,priority,env,timeout\ntrue,,,,\nfalse\n", "csv")
    assert [without_id(task) for task in found] == [
        Task(key="2", command="true", id="same"),
        Task(key="3", command="false", id="same"),
    ]


def test_blanks_around_numbers_and_column_names_are_ignored() -> None:
    [task] = tasks("command , priority,timeout\ntrue, +5 , 1.5\n", "csv")
    assert (task.command, task.priority, task.timeout) == ("true", 5, 1.5)


def test_each_line_of_plain_text_is_a_shell_command_unless_blank_or_a_comment() -> None:
    found = tasks("\necho 1\n   \n  # a comment\n\techo '#2'\n", "text")
    assert [(task.key, task.command) for task in found] == [("2", "echo 1"), ("5", "\techo '#2'")]


def test_blank_json_lines_are_counted_and_ignored() -> None:
    assert [task.key for task in tasks('\n{"command": "a"}\n \t\n{"command": "b"}')] == ["2", "4"]


def test_a_single_need_may_be_a_plain_key() -> None:
    [_, task] = tasks('{"key": "a", "command": "true"}\n{"command": "true", "needs": "a"}')
    assert task.needs == ("a",)
    [*_, one, two] = tasks('command,key,needs\ntrue,a,\ntrue,b,a\ntrue,c," [""a"", ""b""] "\n', "csv")
    assert (one.needs, two.needs) == (("a",), ("a", "b"))


def test_the_key_of_a_line_without_one_is_its_number() -> None:
    assert tasks('{"command": "true"}\n{"command": "true", "needs": ["1"]}')[1].needs == ("1",)


def test_a_job_of_a_file_may_need_a_later_one(tmp_path: Path) -> None:
    found = read_jobs(written(tmp_path, needs("a", "b", "c"), needs("b", "c"), needs("c")))
    assert [task.needs for task in found] == [("b", "c"), ("c",), ()]


def test_null_means_no_directory_and_no_timeout() -> None:
    [task] = tasks('{"command": "a", "cwd": null, "timeout": null}')
    assert (task.cwd, task.timeout) == (None, None)


@pytest.mark.parametrize(
    ("format", "text"),
    [("jsonl", '{"command": "a"}\r\n{"command": "b"}\r\n'), ("csv", "command\r\na\r\nb\r\n"), ("text", "a\r\nb\r\n")],
)
def test_a_byte_order_mark_and_carriage_returns_are_ignored(format: str, text: str) -> None:
    assert [task.command for task in tasks(b"\xef\xbb\xbf" + text.encode(), format)] == ["a", "b"]


def test_a_row_that_spans_lines_has_the_number_of_its_first_line() -> None:
    text = 'command,priority\n"echo 1\necho 2",1\n"echo 3\necho 4",high\n'
    first, second = read(text, "csv")
    assert isinstance(first, Task)
    assert (first.key, first.command) == ("2", "echo 1\necho 2")
    assert isinstance(second, Problem)
    assert second.line == 4


def test_a_string_that_looks_like_a_member_name_is_a_string() -> None:
    [task] = tasks(json.dumps({"command": ['{"key":', '":', '\\":'], "key": 'a":'}))
    assert (task.command, task.key) == (('{"key":', '":', '\\":'), 'a":')


def test_a_secret_is_kept_in_the_task() -> None:
    [task] = tasks('{"command": "a", "env": {"A": {"secret": "hunter2"}, "B": "2"}}')
    value = task.env["A"]
    assert isinstance(value, Secret)
    assert value.reveal() == "hunter2"
    assert type(task.env["B"]) is str


# — the format —


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("jobs.jsonl", '{"command": "echo"}'),
        ("jobs.ndjson", '{"command": "echo"}'),
        ("jobs.json-lines", '{"command": "echo"}'),
        ("JOBS.JSONL", '{"command": "echo"}'),
        ("jobs.csv", "priority,command\n5,echo"),
        ("jobs.tsv", "priority\tcommand\n5\techo"),
        ("jobs.txt", "echo"),
        ("jobs", "echo"),
    ],
)
def test_the_extension_sets_the_format(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert [task.command for task in read_jobs(path)] == ["echo"]


def test_a_given_format_overrides_the_extension(tmp_path: Path) -> None:
    path = tmp_path / "jobs.csv"
    path.write_text("echo a,b")
    assert [task.command for task in read_jobs(str(path), format="text")] == ["echo a,b"]


@pytest.mark.parametrize(
    ("text", "command"),
    [('\n  {"command": "a"}', "a"), ('\ufeff{"command": "a"}', "a"), ("\n# {\necho", "echo"), ("a", "a")],
)
def test_the_first_line_of_standard_input_sets_the_format(
    monkeypatch: pytest.MonkeyPatch, text: str, command: str
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert [task.command for task in read_jobs("-")] == [command]


def test_messages_name_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"command": ""}')))
    with pytest.raises(BadJobs) as caught:
        read_jobs("-")
    assert str(caught.value) == '<stdin>:1: command: it is empty; write a shell command, for example "gzip -k data.csv"'


def test_closed_standard_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(BadJobs) as caught:
        read_jobs("-")
    assert str(caught.value) == "<stdin>: it is closed; name a file"


def test_an_unknown_format_is_refused_at_once() -> None:
    with pytest.raises(InvalidConfig) as caught:
        stream_jobs(io.BytesIO(), "jobs", "xml")
    assert str(caught.value) == "format: 'xml' is not a format; write one of auto, json, jsonl, csv, tsv, lines, text"


# — bad fields —

WHOLE = "is not a whole number from"
CPUS = "is not a number of CPUs above 0, with at most three digits after the point; write for example 2 or 0.5"
MEMORY = 'is not a size of memory; write for example "2G" or "512M", or bytes'
AT_LEAST_0 = "is not a number of seconds, 0 or more; write for example 30 or 0.5"
ABOVE_0 = "is not a number of seconds above 0; write for example 30 or 0.5"
NEEDS_REMEDY = 'write a key, or a list of keys such as ["fetch", "unpack"]'
KEY_RULE = 'write 1 to 100 printable characters, such as "db"'
ENV_REMEDY = 'write names and values: {"LANG": "C"}'


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ('"priority": "high"', f'priority: "high" {WHOLE} -2147483647 to 2147483647; write for example 5'),
        ('"priority": true', f"priority: true {WHOLE} -2147483647 to 2147483647; write for example 5"),
        ('"priority": null', f"priority: null {WHOLE} -2147483647 to 2147483647; write for example 5"),
        ('"priority": 1.0', f"priority: 1.0 {WHOLE} -2147483647 to 2147483647; write for example 5"),
        ('"priority": {"a": 1}', f"priority: an object {WHOLE} -2147483647 to 2147483647; write for example 5"),
        ('"priority": 2147483648', f"priority: 2147483648 {WHOLE} -2147483647 to 2147483647; write for example 5"),
        ('"slots": 0', f"slots: 0 {WHOLE} 1 to 2147483647; write for example 1"),
        ('"slots": true', f"slots: true {WHOLE} 1 to 2147483647; write for example 1"),
        ('"cpus": 0', f"cpus: 0 {CPUS}"),
        ('"cpus": 0.0005', f"cpus: 0.0005 {CPUS}"),
        ('"cpus": "2"', f'cpus: "2" {CPUS}'),
        ('"cpus": NaN', f"cpus: NaN {CPUS}"),
        ('"memory": 0', f"memory: 0 {MEMORY}"),
        ('"memory": 1.5', f"memory: 1.5 {MEMORY}"),
        ('"memory": true', f"memory: true {MEMORY}"),
        ('"memory": "2 pages"', f'memory: "2 pages" {MEMORY}'),
        ('"memory": "-2G"', f'memory: "-2G" {MEMORY}'),
        ('"gpus": -1', f"gpus: -1 {WHOLE} 0 to 2147483647; write for example 1"),
        ('"gpus": 0.5', f"gpus: 0.5 {WHOLE} 0 to 2147483647; write for example 1"),
        ('"retries": -1', f"retries: -1 {WHOLE} 0 to 2147483647; write for example 1"),
        ('"timeout": 0', f"timeout: 0 {ABOVE_0}"),
        ('"timeout": -1', f"timeout: -1 {ABOVE_0}"),
        ('"timeout": NaN', f"timeout: NaN {ABOVE_0}"),
        ('"timeout": Infinity', f"timeout: Infinity {ABOVE_0}"),
        ('"timeout": 1e400', f"timeout: Infinity {ABOVE_0}"),
        ('"timeout": 1e9', f"timeout: 1000000000.0 {ABOVE_0}"),
        (f'"timeout": {"9" * 5000}', f"timeout: Infinity {ABOVE_0}"),
        ('"timeout": "30"', f'timeout: "30" {ABOVE_0}'),
        ('"grace": -0.5', f"grace: -0.5 {AT_LEAST_0}"),
        ('"grace": null', f"grace: null {AT_LEAST_0}"),
        ('"retry_delay": -1', f"retry_delay: -1 {AT_LEAST_0}"),
        ('"retry_delay": false', f"retry_delay: false {AT_LEAST_0}"),
        ('"queue": ""', 'queue: "" is not a name; write a string such as "default"'),
        ('"queue": 5', 'queue: 5 is not a name; write a string such as "default"'),
        ('"queue": "a\\u0000"', 'queue: "a\\u0000" is not a name; write a string such as "default"'),
        ('"cwd": []', 'cwd: a list is not a name; write a directory such as "/tmp"'),
        ('"key": 12', 'key: 12 is not a string; put it in quotes: "12"'),
        ('"key": null', 'key: null is not a string; write a string such as "resize-12"'),
        ('"key": ["a"]', 'key: a list is not a string; write a string such as "resize-12"'),
        ('"key": ""', 'key: "" is not a name; write a string such as "resize-12"'),
        ('"env": ["A=hunter2"]', f"env: a list is not a table; {ENV_REMEDY}"),
        ('"env": "A=hunter2"', f"env: a string is not a table; {ENV_REMEDY}"),
        ('"env": null', f"env: null is not a table; {ENV_REMEDY}"),
        ('"env": {"A=hunter2": ""}', 'env: "A=..." is not a variable name; write for example {"LANG": "C"}'),
        ('"env": {"": "a"}', 'env: "" is not a variable name; write for example {"LANG": "C"}'),
        (
            '"env": {"A": 1}',
            'env: the value of "A" is not a string; write "..." or {"secret": "..."}, for a number too: {"A": "1"}',
        ),
        ('"env": {"A": "1", "A": "2"}', 'env: "A" is given twice; keep one of them'),
        (
            '"env": {"A": {"secret": "hunter2\\u0000"}}',
            'env: the value of "A" contains a NUL character; remove it: no program can receive one',
        ),
        ('"needs": 5', f"needs: 5 is not a list of keys; {NEEDS_REMEDY}"),
        ('"needs": null', f"needs: null is not a list of keys; {NEEDS_REMEDY}"),
        ('"needs": {"a": "b"}', f"needs: an object is not a list of keys; {NEEDS_REMEDY}"),
        ('"needs": ""', 'needs: "" is not a name; write a string such as "resize-12"'),
        ('"needs": ["a", 12]', 'needs: 12 is not a string; put it in quotes: "12"'),
        ('"needs": [["a"]]', 'needs: a list is not a string; write a string such as "resize-12"'),
        ('"needs": ["a\\u0000"]', 'needs: "a\\u0000" is not a name; write a string such as "resize-12"'),
        ('"needs": ["a", "b", "a"]', 'needs: "a" is listed twice; keep one of them'),
        ('"needs": "1"', "needs: the task needs itself; remove its own key"),
        ('"key": "k", "needs": ["k"]', "needs: the task needs itself; remove its own key"),
        ('"on_need_failed": "stop"', 'on_need_failed: "stop" is not a policy; write "skip" or "run"'),
        ('"on_need_failed": null', 'on_need_failed: null is not a policy; write "skip" or "run"'),
        ('"concurrency_key": 5', f"concurrency_key: 5 is not a key; {KEY_RULE}"),
        ('"concurrency_key": "*"', f'concurrency_key: "*" is not a key; {KEY_RULE}'),
        ('"tags": 5', f"tags: 5 is not a list of tags; {EXAMPLE}"),
        ('"tags": null', f"tags: null is not a list of tags; {EXAMPLE}"),
        ('"tags": "a,,b"', f'tags: "" is not a tag; {RULE}'),
        ('"tags": ["a,b"]', f'tags: "a,b" is not a tag; {RULE}'),
        ('"priorty": 5', 'priorty: it is not a field of a job; did you mean "priority"?'),
        ('"Timeout": 5', 'Timeout: it is not a field of a job; did you mean "timeout"?'),
        (
            '"colour": 5',
            f"colour: it is not a field of a job; the fields are {', '.join(FIELDS)}",
        ),
        ('"priority": 1, "priority": 2', "priority: it is given twice; keep one of them"),
    ],
)
def test_a_bad_field_is_reported(members: str, message: str) -> None:
    assert messages(f'{{"command": "a", {members}}}') == [f"jobs:1: {message}"]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ("", 'it is missing; write what to run, for example "gzip -k data.csv"'),
        ('"command": ""', 'it is empty; write a shell command, for example "gzip -k data.csv"'),
        ('"command": "  "', 'it is empty; write a shell command, for example "gzip -k data.csv"'),
        ('"command": []', 'it is empty; name a program, for example ["gzip", "-k", "data.csv"]'),
        ('"command": [""]', 'it is empty; name a program, for example ["gzip", "-k", "data.csv"]'),
        ('"command": 5', '5 is not a command; write a string, or a list of strings such as ["ls", "-l"]'),
        (
            '"command": {"secret": "x"}',
            'an object is not a command; write a string, or a list of strings such as ["ls", "-l"]',
        ),
        ('"command": ["sleep", 5]', 'the argument 5 is not a string; put it in quotes: "5"'),
        ('"command": "a\\u0000"', "it contains a NUL character; remove it: no program can receive one"),
    ],
)
def test_a_bad_command_is_reported(members: str, message: str) -> None:
    assert messages(f"{{{members}}}") == [f"jobs:1: command: {message}"]


@pytest.mark.parametrize(
    "member",
    [
        '"env": {"A": {"secret": "hunter2"}, "B": 1}',
        '"env": {"A": {"secret": ["hunter2"]}}',
        '"env": {"A": {"secret": "hunter2", "x": 1}}',
        '"env": {"A": {"sercet": "hunter2"}}',
        '"env": {"A": {"secret": "hunter2", "secret": 5}}',
        '"env": [{"secret": "hunter2"}]',
        '"env": {"A": {"secret": "hunter2"}, "A": {"secret": "hunter2"}}',
        '"env": {"A": {"secret": "hunter2"}}, "priority": "x"',
        '"env": {"A": {"secret": "hunter2"}',
        '"timeout": {"secret": "hunter2"}',
        '"key": {"secret": "hunter2"}',
        '"command": ["a", {"secret": "hunter2"}], "x": 1',
        '"nev": {"A": {"secret": "hunter2"}}',
    ],
)
def test_no_message_shows_a_secret(member: str) -> None:
    found = messages(f'{{"command": "a", {member}}}')
    assert found
    assert "hunter2" not in "".join(found)


def test_all_problems_of_a_line_are_reported() -> None:
    text = '{"priority": "high", "comand": "a", "retries": -1, "env": {"A": 5}}'
    found = read(text)
    assert [item.field for item in found if isinstance(item, Problem)] == [
        "priority",
        "comand",
        "retries",
        "env",
        "command",
    ]


def test_all_problems_of_a_file_are_reported_in_the_order_of_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_text('{"command": "a"}\n{"command": 1}\n{\n{"command": "b", "slots": 0, "x": 1}\n')
    with pytest.raises(BadJobs) as caught:
        read_jobs(path)
    assert [(problem.line, problem.field) for problem in caught.value.problems] == [
        (2, "command"),
        (3, None),
        (4, "slots"),
        (4, "x"),
    ]
    assert str(caught.value).splitlines() == [str(problem) for problem in caught.value.problems]
    assert str(caught.value).startswith(f"{path}:2: command: 1 is not a command; ")
    assert isinstance(caught.value, InvalidInput)


def problems_of(path: Path) -> list[str]:
    with pytest.raises(BadJobs) as raised:
        read_jobs(path)
    return [str(problem).removeprefix(f"{path}:") for problem in raised.value.problems]


def needs(key: str, *needed: str) -> str:
    return json.dumps({"key": key, "command": "true", "needs": needed})


def written(folder: Path, *lines: str) -> Path:
    path = folder / "jobs.jsonl"
    path.write_text("\n".join(lines))
    return path


def test_an_unknown_need_in_a_file_is_reported_with_its_line(tmp_path: Path) -> None:
    path = written(tmp_path, needs("a", "b"), needs("b", "x", "y"), "[]x", needs("c", "z"))
    assert problems_of(path) == [f"3: broken JSON at column 3: extra data; {OBJECT_REMEDY}"]
    path = written(tmp_path, needs("a", "b"), needs("b", "x", "y"), '{"key": "c", "comand": "true", "needs": "z"}')
    assert problems_of(path) == [
        '2: needs: "x" is not the key of any line; name the key of a job in this file',
        '2: needs: "y" is not the key of any line; name the key of a job in this file',
        '3: comand: it is not a field of a job; did you mean "command"?',
        '3: command: it is missing; write what to run, for example "gzip -k data.csv"',
        '3: needs: "z" is not the key of any line; name the key of a job in this file',
    ]


def test_a_line_of_a_stream_may_only_need_earlier_lines() -> None:
    assert messages("\n".join([needs("a", "b"), needs("b"), needs("c", "b", "x")])) == [
        'jobs:1: needs: "b" is not the key of an earlier line; move the job with that key before this one',
        'jobs:3: needs: "x" is not the key of an earlier line; move the job with that key before this one',
    ]


def test_a_cycle_of_needs_is_reported_with_all_its_tasks(tmp_path: Path) -> None:
    lines = [needs("z", "c"), needs("b", "c"), needs("c", "a"), needs("a", "d", "b"), needs("d"), needs("e", "a")]
    lines += [needs("f", "g"), needs("g", "f")]
    first = "tasks need each other in a cycle"
    assert problems_of(written(tmp_path, *lines)) == [
        f"2: needs: {first}: b needs c needs a needs b; remove one of these needs",
        f"7: needs: {first}: f needs g needs f; remove one of these needs",
    ]


def test_a_long_cycle_is_reported_in_part_and_a_long_chain_is_accepted(tmp_path: Path) -> None:
    lines = [needs(f"t{n}", f"t{n + 1}") for n in range(20_000)]
    (problem,) = problems_of(written(tmp_path, *lines, needs("t20000", "t0")))
    cycle = "t0 needs t1 needs t2 needs … 19,996 more … needs t19999 needs t20000 needs t0"
    assert problem == f"1: needs: tasks need each other in a cycle: {cycle}; remove one of these needs"
    assert len(read_jobs(written(tmp_path, *lines, needs("t20000")))) == 20_001


def test_broken_json_in_a_table_is_reported() -> None:
    assert messages('command,needs\ntrue,"[""a"""\n', "csv") == [
        'jobs:2: needs: broken JSON at column 5: expecting \',\' delimiter; write for example ["fetch", "unpack"]'
    ]


def test_a_message_is_one_line_even_with_line_breaks_in_names() -> None:
    [problem] = read('{"command": "a", "x\\ny\\u001b": 1}', name="a\nb.jsonl")
    assert str(problem).startswith(r"a\nb.jsonl:1: x\ny\x1b: it is not a field of a job; ")


def test_a_long_value_is_shown_in_part() -> None:
    [message] = messages(json.dumps({"command": "a", "priority": "x" * 1000}))
    assert message.startswith(f'jobs:1: priority: "{"x" * 56}... is not a whole number')


# — keys —

KEY_REMEDY = "give each job its own key"


def test_a_duplicate_key_is_reported_with_both_lines() -> None:
    text = '{"key": "a", "command": "x"}\n{"key": "b", "command": "x"}\n{"key": "a", "command": "y"}'
    assert messages(text) == [f'jobs:3: key: "a" is already the key of line 1; {KEY_REMEDY}']


def test_a_key_may_not_be_the_number_of_a_line_without_a_key() -> None:
    text = '{"command": "x"}\n{"key": "1", "command": "x"}'
    assert messages(text) == [f'jobs:2: key: "1" is already the key of line 1; {KEY_REMEDY}']


def test_a_line_without_a_key_is_refused_if_its_number_is_a_key() -> None:
    text = '{"key": "2", "command": "x"}\n{"command": "x"}'
    message = f'jobs:2: key: the line has no key, and its number, "2", is already the key of line 1; {KEY_REMEDY}'
    assert messages(text) == [message]


def test_a_bad_line_takes_its_key() -> None:
    text = '{"key": "a", "command": ""}\n{"key": "a", "command": "y"}'
    assert messages(text)[1] == f'jobs:2: key: "a" is already the key of line 1; {KEY_REMEDY}'


def test_a_duplicate_key_is_reported_beside_other_problems() -> None:
    text = "key,command,slots\na,true,1\na,true,0\n"
    assert [item.field for item in read(text, "csv") if isinstance(item, Problem)] == ["slots", "key"]


# — bad lines —

OBJECT_REMEDY = 'write one object a line, for example {"command": "gzip -k data.csv"}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"command": "a" "b"}', "broken JSON at column 17: expecting ',' delimiter"),
        ('{"é": "a" "b"}', "broken JSON at column 11: expecting ',' delimiter"),
        ('{"command": "a', "broken JSON at column 13: unterminated string"),
        ('{"command": "a"} {}', "broken JSON at column 18: extra data"),
        (r'{"command": "\ud800"}', r"broken JSON: a \u escape is half of a pair"),
        ('{"command": ' + "[" * 20_000 + "]" * 20_000 + "}", "broken JSON: brackets are nested too deeply"),
        ('"echo"', "a string is not a job"),
        ("5", "a number is not a job"),
        ("null", "null is not a job"),
        ("true", "true is not a job"),
    ],
)
def test_a_line_that_is_not_an_object_is_reported(text: str, message: str) -> None:
    assert messages(text) == [f"jobs:1: {message}; {OBJECT_REMEDY}"]


@pytest.mark.parametrize(
    ("format", "before", "line"), [("jsonl", 0, 1), ("text", 0, 1), ("csv", len("command\n"), 2), ("tsv", 0, 1)]
)
def test_bytes_that_are_not_utf_8_are_reported_with_their_place(format: str, before: int, line: int) -> None:
    found = messages(b"command\n"[:before] + b'{"command": "caf\xe9"}\n', format)
    assert found[0] == f"jobs:{line}: byte 17 of the line, 0xe9, is not UTF-8; save the file as UTF-8"


@pytest.mark.parametrize(("format", "before", "line"), [("jsonl", b"", 1), ("text", b"", 1), ("csv", b"command\n", 2)])
def test_a_nul_is_reported_with_its_place(format: str, before: bytes, line: int) -> None:
    assert messages(before + b"ab\0c\n", format) == [
        f"jobs:{line}: byte 3 of the line is a NUL; remove it: no command can contain one"
    ]


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_a_line_may_be_as_long_as_the_limit(end: bytes) -> None:
    [task] = tasks(b"a" * MAX_LINE + end, "text")
    assert task.command == "a" * MAX_LINE


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
@pytest.mark.parametrize("over", [1, 2, 200_000])
def test_a_line_over_the_limit_is_skipped_and_reported_with_its_length(bom: bytes, end: bytes, over: int) -> None:
    data = bom + b"a" * (MAX_LINE + over) + end + (b"echo" if end else b"")
    length, *rest = read(data, "text")
    assert str(length) == (
        f"jobs:1: the line is {MAX_LINE + over} bytes long, more than {MAX_LINE}; "
        "put the data in a file and name it in the command"
    )
    assert [(task.key, task.command) for task in rest if isinstance(task, Task)] == ([("2", "echo")] if end else [])


def test_a_line_of_ten_gigabytes_is_never_held_in_memory() -> None:
    class Endless:
        def __init__(self) -> None:
            self.left = 10 * 1024**3
            self.asked: list[int] = []
            self.chunk = b""

        def readline(self, limit: int = -1, /) -> bytes:
            self.asked.append(limit)
            size = min(limit, self.left)
            self.left -= size
            if len(self.chunk) != size:
                self.chunk = b"a" * size
            return self.chunk

    file = Endless()
    [problem] = stream_jobs(file, "jobs", "jsonl")
    assert str(problem).startswith("jobs:1: the line is 10737418240 bytes long, more than 1048576; ")
    assert min(file.asked) > 0
    assert max(file.asked) < MAX_LINE + 10


def test_a_read_error_is_reported_with_its_line() -> None:
    class Failing(io.BytesIO):
        def readline(self, limit: int | None = -1, /) -> bytes:
            line = super().readline(limit)
            if not line:
                raise OSError(5, "Input/output error")
            return line

    task, problem = stream_jobs(Failing(b"echo\n"), "jobs", "text")
    assert isinstance(task, Task)
    assert str(problem) == (
        "jobs:2: it cannot be read further: Input/output error; check the disk or the program that writes it"
    )


# — bad tables —

NOT_READ = "the rest was not read: it is unclear where the next row begins"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "gzip x,5\n",
            [
                (
                    '1: no column has the name "command"; write into such a column what to run for each row, '
                    "with a header such as key,command,priority; if each line is a shell command, give --format lines"
                )
            ],
        ),
        (
            "key,priority\na,5\n",
            ["1: command: the header has no such column; add it, for example key,command,priority"],
        ),
        ("command,priorty\na,5\n", ['1: priorty: it is not a field of a job; did you mean "priority"?']),
        ("command,key,key\na,b,c\n", ["1: key: it is the name of two columns; keep one of them"]),
        ("command,\na,b\n", ["1: column 2 has no name; name it, or remove it"]),
        (
            'key,command\na, "echo b, c"\n',
            [
                (
                    "2: the row has 3 cells and the header 2; "
                    "a quote must be the first character of its cell: remove the space before it"
                )
            ],
        ),
        ("name,command\na,b\n", ['1: name: it is not a field of a job; did you mean "key"?']),
        ("command\na,b\n", ["2: the row has 2 cells and the header 1; quote a cell that contains the separator"]),
        (
            "command,priority\n,5\n",
            ['2: command: it is missing; write what to run, for example "gzip -k data.csv"'],
        ),
        ("command,slots\na,\u0665\n", [f'2: slots: "\u0665" {WHOLE} 1 to 2147483647; write for example 1']),
        ("command,slots\na,1_0\n", [f'2: slots: "1_0" {WHOLE} 1 to 2147483647; write for example 1']),
        ("command,slots\na,-1\n", [f"2: slots: -1 {WHOLE} 1 to 2147483647; write for example 1"]),
        ("command,timeout\na,nan\n", [f'2: timeout: "nan" {ABOVE_0}']),
        ("command,timeout\na,inf\n", [f'2: timeout: "inf" {ABOVE_0}']),
        ("command,timeout\na,0\n", [f"2: timeout: 0 {ABOVE_0}"]),
        (
            'command,env\na,"{""A"": hunter2}"\n',
            ['2: env: broken JSON at column 7: expecting value; write for example {"LANG": "C"}'],
        ),
        ("command,env\na,5\n", [f"2: env: a number is not a table; {ENV_REMEDY}"]),
        (
            'command\na\n"b\nc\n',
            [f'3: a quote is opened and never closed; close it, and write a " inside quotes as ""; {NOT_READ}'],
        ),
        (
            'command\n"a"b\nc\n',
            [f'2: a closing quote is followed by more text; write a " inside quotes as ""; {NOT_READ}'],
        ),
        (
            "command\na\rb\nc\n",
            [f"2: a cell without quotes contains a carriage return; end lines with LF or CR LF; {NOT_READ}"],
        ),
        (
            f"command\n{'x' * 200_000}\nc\n",
            [f"2: a cell is too long, or a quote is never closed; keep a cell below 131072 characters; {NOT_READ}"],
        ),
    ],
)
def test_a_bad_table_is_reported(text: str, expected: list[str]) -> None:
    assert messages(text, "csv") == [f"jobs:{message}" for message in expected]


def test_a_bad_header_yields_no_tasks() -> None:
    assert [type(item) for item in read("command,priorty\na,5\n", "csv")] == [Problem]


def test_rows_are_checked_under_a_header_with_an_unknown_column() -> None:
    assert [item.field for item in read("command,x,slots\na,5,0\n", "csv") if isinstance(item, Problem)] == [
        "x",
        "slots",
    ]


def test_the_middle_of_a_broken_cell_never_runs() -> None:
    text = 'command\n"one\n' + "x" * (MAX_LINE + 1) + "\nrm -rf precious\n"
    found = read(text, "csv")
    assert [item.line for item in found if isinstance(item, Problem)] == [3]
    assert str(found[0]).endswith(NOT_READ)
    assert [item for item in found if isinstance(item, Task)] == []


def test_a_row_that_never_ends_is_not_kept_in_memory() -> None:
    cells = ('"' + "x" * 1000 + '\n",') * 2000
    [problem] = read("command\n" + cells, "csv")
    assert str(problem) == (
        f"jobs:2: the row is longer than {MAX_LINE} bytes, or a quote is never closed; "
        f'write a " inside quotes as ""; {NOT_READ}'
    )


def test_a_row_with_a_bad_byte_is_reported_and_the_next_one_runs() -> None:
    bad, good = read(b'command\n"a\n\xe9"\nb\n', "csv")
    assert str(bad) == "jobs:3: byte 1 of the line, 0xe9, is not UTF-8; save the file as UTF-8"
    assert isinstance(good, Task)
    assert good.command == "b"


# — bad files —


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("data", [b"", b"\n\r\n\n", b"\xef\xbb\xbf"])
def test_a_file_of_empty_lines_is_refused(format: str, data: bytes) -> None:
    assert messages(data, format) == ["jobs: it contains no command; write at least one command"]


@pytest.mark.parametrize(
    ("format", "text"), [("text", "# only\n \n# comments\n"), ("jsonl", " \n\t\n"), ("csv", "command,key\n")]
)
def test_a_file_without_commands_is_refused(format: str, text: str) -> None:
    assert messages(text, format) == ["jobs: it contains no command; write at least one command"]


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadJobs) as caught:
        read_jobs(tmp_path / "none.jsonl")
    assert str(caught.value) == f"{tmp_path}/none.jsonl: there is no such file; check its name and directory"


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadJobs) as caught:
        read_jobs(tmp_path)
    assert str(caught.value) == f"{tmp_path}: it is a directory; name a file in it"


def test_a_file_without_read_permission_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(BadJobs) as caught:
        read_jobs("secret.jsonl")
    assert str(caught.value) == ("secret.jsonl: it cannot be read: permission denied; ask its owner for permission")


def test_an_impossible_file_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(BadJobs) as caught:
        read_jobs(path / "jobs")
    assert str(caught.value) == f"{path}/jobs: it cannot be opened: Not a directory; check its name"
    with pytest.raises(BadJobs, match="embedded null"):
        read_jobs("a\0b")


def test_garbage_collection_is_as_before_reading(tmp_path: Path) -> None:
    path = tmp_path / "jobs"
    assert gc.isenabled()
    path.write_text("echo")
    read_jobs(path)
    assert gc.isenabled()
    path.write_text("")
    with pytest.raises(BadJobs):
        read_jobs(path)
    assert gc.isenabled()


# — a file that is still being written —


@pytest.mark.parametrize("buffering", [-1, 0])
@pytest.mark.parametrize(
    ("format", "first", "second"),
    [
        ("auto", b'{"command": "1"}\n{"comm', b'and": "2"}\n'),
        ("auto", b"1\n", b"2\n"),
        ("text", b"1\n", b"2\n"),
        ("csv", b"command\n1\n", b'"2"\n'),
        ("tsv", b"command\n1\n2", b"\n"),
    ],
)
def test_a_job_is_read_before_the_next_one_is_written(format: str, first: bytes, second: bytes, buffering: int) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", buffering=buffering) as source, os.fdopen(writing, "wb", buffering=0) as sink:
        stream = stream_jobs(source, "-", format)
        sink.write(first)
        task = next(stream)
        assert isinstance(task, Task)
        assert task.command == "1"
        sink.write(second)
        task = next(stream)
        assert isinstance(task, Task)
        assert task.command == "2"
        sink.close()
        assert list(stream) == []
        assert not source.closed


def test_a_problem_is_reported_before_the_next_line_is_written() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as source, os.fdopen(writing, "wb", buffering=0) as sink:
        stream = stream_jobs(source, "-", "jsonl")
        sink.write(b"{}\n")
        assert str(next(stream)).startswith("<stdin>:1: command: it is missing; ")


def test_a_named_pipe_is_read_like_a_file(tmp_path: Path) -> None:
    path = tmp_path / "jobs.csv"
    os.mkfifo(path)
    holder = os.open(path, os.O_RDWR)  # so that neither end blocks the other
    try:
        os.write(holder, b"command\necho\n")
        with path.open("rb") as source:
            stream = stream_jobs(source, str(path))
            task = next(stream)
            assert isinstance(task, Task)
            assert task.command == "echo"
    finally:
        os.close(holder)


# — random input —

PIECES = [b'"', b"'", b",", b"\t", b"\n", b"\r", b"{", b"}", b"[", b"]", b":", b"\\", b"\\u", b"\0", b"\xef\xbb\xbf"]
PIECES += [
    b'{"command": "a"}\n',
    b'{"command": ',
    b'"key": ',
    b'"env": {"A": {"secret": "x"}}',
    b"command,key\n",
    b"env",
]
PIECES += [b"1e400", b"-1", b"NaN", b"true", b"null", b"d800", b"#", b" "]
GARBAGE = st.one_of(
    st.binary(), st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=3)), max_size=30).map(b"".join)
)


@settings(deadline=None)
@given(
    GARBAGE, st.sampled_from(FORMATS), st.sampled_from(["-", "jobs.csv", "jobs.jsonl", "jobs.json", "jobs.txt", "jobs"])
)
def test_any_bytes_yield_tasks_or_problems(data: bytes, format: str, name: str) -> None:
    found = read(data, format, name)
    assert found
    assert {type(item) for item in found} <= {Task, Problem}
    for problem in found:
        if isinstance(problem, Problem):
            assert len(str(problem).splitlines()) == 1
    keys = [item.key for item in found if isinstance(item, Task)]
    assert len(keys) == len(set(keys))


WORDS = st.one_of(
    st.text(st.characters(exclude_characters="\0", codec="utf-8")), st.sampled_from(['":', '"', "\\", "a\r\nb", "{"])
)
NAMES = WORDS.filter(bool)
TAGS = st.text(st.characters(categories=["L", "N", "P", "S"], exclude_characters=","), min_size=1, max_size=9)
SECONDS = st.one_of(st.integers(0, 10**8), st.floats(0, MAX_WAIT))
VARIABLES = st.dictionaries(NAMES.filter(lambda name: "=" not in name), st.one_of(WORDS, WORDS.map(Secret)), max_size=3)
SHELL_COMMANDS = WORDS.filter(str.strip)
COMMANDS = st.one_of(SHELL_COMMANDS, st.tuples(NAMES, WORDS), st.tuples(NAMES))


def some_tasks(commands: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Task]]:
    task = st.builds(
        Task,
        key=NAMES,
        command=commands,
        queue=NAMES,
        priority=st.integers(-(2**31) + 1, 2**31 - 1),
        slots=st.integers(1, 2**31 - 1),
        cpus=st.none() | st.integers(1, 10**9).map(lambda milli: milli / 1_000),
        memory=st.none() | st.integers(1, 2**60),
        gpus=st.integers(0, 2**31 - 1),
        env=VARIABLES,
        cwd=st.none() | NAMES,
        timeout=st.none() | SECONDS.filter(bool),
        grace=SECONDS,
        retries=st.integers(0, 2**31 - 1),
        retry_delay=SECONDS,
        on_need_failed=st.sampled_from(OnNeedFailed),
        tags=st.lists(TAGS, unique=True).map(tuple),
    )
    written = st.lists(task, min_size=1, max_size=5, unique_by=lambda task: task.key)
    return st.builds(with_needs, written, st.lists(st.sets(st.integers(0, 4)), min_size=5, max_size=5))


def with_needs(written: list[Task], places: list[set[int]]) -> list[Task]:
    return [
        replace(task, needs=tuple(written[place].key for place in sorted(wanted) if place < n))
        for n, (task, wanted) in enumerate(zip(written, places, strict=False))
    ]


def as_json(task: Task) -> dict[str, object]:
    env = {name: {"secret": value.reveal()} if isinstance(value, Secret) else value for name, value in task.env.items()}
    return {name: getattr(task, name) for name in FIELDS} | {"env": env}


@settings(deadline=None)
@given(some_tasks(COMMANDS), st.booleans())
@example([Task(key="a", command='{"x": 1}')], False)
def test_tasks_survive_json_lines(written: list[Task], ascii_only: bool) -> None:
    text = "".join(json.dumps(as_json(task), ensure_ascii=ascii_only) + "\n" for task in written)
    assert all(same(one, other) for one, other in zip(tasks(text), written, strict=True))


@settings(deadline=None)
@given(some_tasks(SHELL_COMMANDS), st.sampled_from([("csv", ","), ("tsv", "\t")]))
def test_tasks_survive_a_table(written: list[Task], form: tuple[str, str]) -> None:
    kind, separator = form
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, FIELDS, delimiter=separator, quoting=csv.QUOTE_ALL)
    writer.writeheader()
    for task in written:
        row = as_json(task)
        writer.writerow({**row, **{name: json.dumps(row[name]) for name in ("env", "needs", "tags", "artifacts")}})
    assert all(same(one, other) for one, other in zip(tasks(text.getvalue(), kind), written, strict=True))
