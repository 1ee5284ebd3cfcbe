"""The format of a job file: what its name and its first line say, and the layouts of JSON and of tables."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celeriac.cli import options
from celeriac.runs.job_file import FORMATS, MAX_LINE, Problem, stream_jobs
from celeriac.runs.job_file.formats import Doubt, Kind, field_name, layout_of, separator_of
from celeriac.task.task import Task


def read(text: str | bytes, format: str = "auto", name: str = "jobs") -> list[Task | Problem]:
    data = text.encode() if isinstance(text, str) else text
    return list(stream_jobs(io.BytesIO(data), name, format))


def commands(text: str | bytes, format: str = "auto", name: str = "jobs") -> list[object]:
    found = read(text, format, name)
    assert [str(item) for item in found if isinstance(item, Problem)] == []
    return [item.command for item in found if isinstance(item, Task)]


def messages(text: str | bytes, format: str = "auto", name: str = "jobs") -> list[str]:
    found = read(text, format, name)
    assert [item for item in found if isinstance(item, Task)] == []
    return [str(item) for item in found]


# — the format —


@pytest.mark.parametrize(
    ("name", "head", "kind"),
    [
        ("jobs", b"gzip -k a.txt\n", Kind.TEXT),
        ("-", b"make, all\n", Kind.TEXT),
        ("-", b"echo one; echo two\n", Kind.TEXT),
        ("-", b"true && command -v ls\n", Kind.TEXT),
        ("jobs.list", b"gzip -k a.txt\n", Kind.TEXT),
        ("jobs.txt", b"[ -f a ] || touch a\n", Kind.TEXT),
        ("jobs.txt", b"[[ -f a ]] || touch a\n", Kind.TEXT),
        ("jobs.sh", b"{ echo a; echo b; }\n", Kind.TEXT),
        ("jobs.txt", b"make;reboot\n", Kind.TEXT),
        ("jobs.txt", b"command\n", Kind.TEXT),
        ("-", b"[\n", Kind.JSON),
        ("-", b"  [ -f a ] || touch a\n", Kind.JSON),
        ("-", b"{ echo a; }\n", Kind.JSON),
        ("jobs", b'{"command": "a"}\n', Kind.JSON),
        ("jobs.txt", b'{"command": "a"}\n', Kind.JSON),
        ("jobs.sh", b'[{"command": "a"}]\n', Kind.JSON),
        ("jobs.txt", b"{\n", Kind.JSON),
        ("jobs.json", b"a\n", Kind.JSON),
        ("-", b"command\n", Kind.TABLE),
        ("-", b"key,command\n", Kind.TABLE),
        ("jobs.txt", b"Key\tCommand\n", Kind.TABLE),
        ("jobs", b"sample;COMMAND\n", Kind.TABLE),
        ("jobs", b"key,priority\n", Kind.TABLE),
        ("jobs", b'"key","command"\n', Kind.TABLE),
        ("jobs", b"\xef\xbb\xbfkey,command\n", Kind.TABLE),
        ("jobs", b"sep=;\n", Kind.TABLE),
        ("jobs.csv", b"echo\n", Kind.TABLE),
    ],
)
def test_the_name_or_the_first_line_sets_the_kind(name: str, head: bytes, kind: Kind) -> None:
    layout = layout_of("auto", name, head)
    assert not isinstance(layout, Doubt)
    assert layout.kind is kind


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "jobs",
            "sample,file,cmd\ns1,a.fq,touch ran\n",
            "the first line may be that of a table, but it names no field",
        ),
        (
            "jobs",
            "sample;file;cmd\ns1;a.fq;touch ran\n",
            "the first line may be that of a table, but it names no field",
        ),
        ("jobs", "sample\tcmd\ns1\ttouch ran\n", "the first line may be that of a table, but it names no field"),
        ("jobs", '"a","touch ran"\n', "the first line may be that of a table, but it names no field"),
        ("jobs", "---\n- command: touch ran\n", "it looks like YAML"),
        ("jobs", "- command: touch ran\n", "it looks like YAML"),
        ("jobs", "jobs:\n  - touch ran\n", "it looks like YAML"),
        ("jobs", "<?xml version='1.0'?>\n", "it looks like XML or HTML"),
        ("jobs.sh", "#!/bin/sh\ncd build\nrm -rf *\n", "it is a script, and its lines are no jobs"),
        ("jobs", "#!/usr/bin/env python3\nprint(1)\n", "it is a script, and its lines are no jobs"),
        ("jobs.yaml", "touch ran\n", ".yaml is not a format of jobs"),
        ("jobs.py", "touch ran\n", ".py is not a format of jobs"),
        ("jobs.gz", "touch ran\n", ".gz is not a format of jobs"),
        ("jobs", b"\xff\xfet\0o\0u\0c\0h\0", "it is UTF-16"),
        ("jobs.csv", b"\xff\xfek\0e\0y\0", "it is UTF-16"),
        ("jobs.jsonl", b"\x1f\x8b\x08\0\n", "it is compressed by gzip"),
        ("jobs.txt", b"PK\x03\x04\x14\0\n", "it is a spreadsheet or a ZIP archive"),
        ("jobs", b"\x1f\x8b\x08\0\n", "it is compressed by gzip"),
    ],
)
def test_a_file_that_may_have_another_format_is_refused_in_one_line(name: str, text: str | bytes, message: str) -> None:
    [found] = messages(text, name=name)
    assert found.startswith(f"{name}: {message}")


def test_a_given_format_ends_every_doubt() -> None:
    assert commands("sample,file\n", "lines") == ["sample,file"]
    assert commands("[ -f a ]\n", "lines") == ["[ -f a ]"]
    assert commands("#!/bin/sh\ntrue\n", "lines") == ["true"]
    assert commands('{"command": "a"}\n', "lines") == ['{"command": "a"}']
    assert commands("touch ran\n", "text", name="jobs.yaml") == ["touch ran"]


@pytest.mark.parametrize("name", ["jobs", "jobs.txt"])
def test_an_object_of_json_among_commands_is_refused(name: str) -> None:
    [task, problem] = read('echo\n{"command": "touch ran"}\n', name=name)
    assert isinstance(task, Task)
    assert str(problem) == (
        f"{name}:2: it is an object of JSON, not a command; "
        "write only JSON, or only commands; if it is a shell command, give --format lines"
    )


def test_a_wrong_guess_is_named_with_its_remedy() -> None:
    [message] = messages("[ -f a ] || touch ran\n", name="-")
    assert message.startswith("<stdin>:1: broken JSON at column 3: ")
    assert message.endswith("if each line is a shell command, give --format lines")


def test_a_line_that_would_continue_on_the_next_one_is_refused() -> None:
    [first, second, third] = read("gzip \\\n  a.txt\necho \\\\\n")
    assert str(first) == "jobs:1: the line ends with a backslash; write each command on one line"
    assert isinstance(second, Task)
    assert isinstance(third, Task)
    assert third.command == "echo \\\\"


# — JSON —

JOBS = [{"key": "a", "command": "echo 'a]},'"}, {"command": ["echo", '"'], "env": {"A": "{"}}, {"command": "é"}]


def lines_of(values: Iterable[object]) -> str:
    return "\n".join(json.dumps(value) for value in values)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(JOBS),
        json.dumps(JOBS, ensure_ascii=False),
        json.dumps(JOBS, indent=2),
        "[\n" + ",\n".join(json.dumps(job) for job in JOBS) + "\n]\n",
        "\n".join(json.dumps(job, indent=4) for job in JOBS),
        lines_of(JOBS),
        "\ufeff" + json.dumps(JOBS, indent=1).replace("\n", "\r\n"),
        json.dumps(JOBS[:1]) + json.dumps(JOBS[1:], indent=1),
    ],
    ids=["list", "list in UTF-8", "indented list", "a job a line", "objects", "lines", "CR LF and BOM", "two lists"],
)
@pytest.mark.parametrize("name", ["jobs.json", "jobs.jsonl", "jobs", "-"])
def test_json_is_read_in_every_layout(text: str, name: str) -> None:
    found = read(text, name=name)
    assert [item.command for item in found if isinstance(item, Task)] == ["echo 'a]},'", ("echo", '"'), "é"]
    assert [item.key for item in found if isinstance(item, Task)] == ["a", "2", "3"]
    assert len(found) == 3


def test_one_object_over_several_lines_is_one_job() -> None:
    assert commands('{\n  "command": "echo $(date)"\n}\n') == ["echo $(date)"]
    assert commands('{"command": "a"\n}\n', name="jobs.json") == ["a"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[\n{"command": "a" 5}\n]', "2: broken JSON at column 17: "),
        ('[\n  {\n    "command": \n  }\n]', "4: broken JSON at column 3: expecting value"),
        ('[{"command": "a"}, {"command" "b"}]', "1: broken JSON at column 31: expecting ':' delimiter"),
        ('[\n{"command": "a"}\n', "1: the list is never closed"),
        ('[\n{"command": "a"}\n{"command": "b"}\n]', "3: a comma is missing between two jobs"),
        ('[\n{"command": "a"},\n]', "3: a job is missing beside a comma"),
        ('[{"command": "a"}, 5]', "1: a number is not a job"),
        ('["touch ran"]', "1: a string is not a job"),
        ('[\n{"command": "a", "comand": 1}\n]', "2: comand: it is not a field of a job"),
        ('[{"key": "a", "command": "a"}, {"key": "a", "command": "b"}]', '1: key: "a" is already the key of line 1'),
        (b'[\n{"command":\n"\xe9"}]', "3: the byte 0xe9 is not UTF-8"),
        ("[" * 100_000, "1: broken JSON: brackets are nested too deeply"),
        ('[{"command": "' + "a" * MAX_LINE + '"}]', f"1: the job is longer than {MAX_LINE} bytes"),
    ],
)
def test_a_problem_with_a_document_is_named_with_its_line(text: str | bytes, message: str) -> None:
    problems = [str(item) for item in read(text, name="jobs.json") if isinstance(item, Problem)]
    assert len(problems) == 1
    assert problems[0].startswith(f"jobs.json:{message}")


@pytest.mark.parametrize("text", ["[]", " [ ] ", "[\n]\n[]"])
def test_an_empty_list_has_no_command(text: str) -> None:
    assert messages(text) == ["jobs: it contains no command; write at least one command"]


def test_a_job_of_a_document_is_read_before_the_next_one_is_written() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as source, os.fdopen(writing, "wb", buffering=0) as sink:
        stream = stream_jobs(source, "-")
        sink.write(b'{\n  "command": "1"\n}\n')
        first = next(stream)
        sink.write(b'{\n  "command": "2"\n}\n')
        second = next(stream)
        sink.close()
        assert [item.command for item in (first, second) if isinstance(item, Task)] == ["1", "2"]
        assert list(stream) == []


def test_a_long_list_on_one_line_is_read() -> None:
    jobs = [{"command": f"echo {number} {'x' * 50}"} for number in range(30_000)]
    found = commands(json.dumps(jobs))
    assert len(found) == 30_000
    assert found[-1] == jobs[-1]["command"]


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0")).filter(str.strip)


@settings(deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=4), st.sampled_from([None, 0, 3]), st.booleans())
def test_commands_survive_every_layout(written: list[str], indent: int | None, ascii_only: bool) -> None:
    text = json.dumps([{"command": command} for command in written], indent=indent, ensure_ascii=ascii_only)
    assert commands(text) == written


# — tables —


@pytest.mark.parametrize("name", ["jobs.csv", "jobs.tsv", "jobs", "-"])
@pytest.mark.parametrize(
    "text",
    [
        "key,command,priority\na,echo,5\n",
        "key;command;priority\r\na;echo;5\r\n",
        "key\tcommand\tpriority\na\techo\t5\n",
        "sep=;\nkey;command;priority\na;echo;5\n",
        "\n sep=| \n".strip(" \n") + "\nkey|command|priority\na|echo|5\n",
        "Key,COMMAND,Priority\na,echo,5\n",
        ' "Key" ; "Command" ; Priority\na;echo;5\n'.replace(' "', '"').replace('" ', '"'),
    ],
)
def test_a_table_has_any_separator_and_any_capitals(text: str, name: str) -> None:
    [task] = read(text, name=name)
    assert isinstance(task, Task)
    assert (task.key, task.command, task.priority) == ("a", "echo", 5)


def test_the_lines_of_a_table_are_counted_after_its_separator() -> None:
    [task, problem] = read("\nsep=;\n\ncommand;slots\ntrue;1\ntrue;none\n", name="jobs.csv")
    assert isinstance(task, Task)
    assert task.key == "5"
    assert str(problem).startswith('jobs.csv:6: slots: "none" ')


def test_the_header_decides_between_separators() -> None:
    assert separator_of("command;key,priority;slots", ",") == ";"
    assert separator_of("command", "\t") == "\t"
    assert field_name(" Retry Delay ") == "retry_delay"
    assert field_name("Sample") == "Sample"


def test_the_command_line_has_the_same_formats() -> None:
    assert options.FORMATS == FORMATS
