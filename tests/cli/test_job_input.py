"""Jobs that read their standard input from a text or a file."""

from __future__ import annotations

import json
import os

import pytest

from celeriac.task.task import MAX_STDIN, Secret, Task
from tests.support.cli_runner import jobs, run, run_in_process, started, until
from tests.support.workers import worker

FILE = "in.txt"
LEDGER = ("--ledger", "ledger.db")


@pytest.fixture(params=["redis", pytest.param("rabbit", marks=pytest.mark.slow)])
def urls(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Return the URLs of a broker and a result backend."""
    if request.param == "redis":
        url = request.getfixturevalue("shared_redis").url
        return url, url
    return request.getfixturevalue("rabbit").url, request.getfixturevalue("postgres").url


def test_commands_read_a_text_or_a_file(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / FILE).write_bytes(b"\0binary\xff")
    file = jobs(
        tmp_path,
        {"key": "text", "command": "cat > text", "stdin": "ä: b\nno line end"},
        {"key": "file", "command": ["sh", "-c", "cat > got"], "cwd": "sub", "stdin_file": FILE},
        {"key": "none", "command": "cat > none"},
        {"key": "empty", "command": "cat > empty", "stdin": ""},
    )
    ended = run("run", file, *LEDGER, "--json", cwd=tmp_path)
    assert (ended.status, ended.summary["succeeded"]) == (0, 4)
    assert (tmp_path / "text").read_text() == "ä: b\nno line end"
    assert (tmp_path / "sub" / "got").read_bytes() == b"\0binary\xff"
    assert (tmp_path / "none").read_bytes() == (tmp_path / "empty").read_bytes() == b""


def test_a_table_names_files_and_texts(tmp_path):
    (tmp_path / FILE).write_text("from the file")
    (tmp_path / "jobs.csv").write_text("key,command,stdin_file,stdin\na,cat > a,in.txt,\nb,cat > b,,from the cell\n")
    assert run("run", "-q", "jobs.csv", cwd=tmp_path).status == 0
    assert (tmp_path / "a").read_text() == "from the file"
    assert (tmp_path / "b").read_text() == "from the cell"


def test_a_command_may_leave_its_input_unread_or_close_it(tmp_path):
    text = "x" * 500_000
    file = jobs(
        tmp_path,
        {"command": "true", "stdin": text},
        {"command": "exec <&-; sleep 0.1", "stdin": text},
        {"command": "head -c 3 > head", "stdin": text},
        {"command": "cat | wc -c > count; cat >> count", "stdin": text},
    )
    assert run("run", "-q", file, cwd=tmp_path).status == 0
    assert (tmp_path / "head").read_text() == "xxx"
    assert (tmp_path / "count").read_text().strip() == "500000"


@pytest.mark.parametrize(
    ("fields", "detail"),
    [
        ({"stdin_file": "missing"}, "stdin_file 'missing' does not exist"),
        ({"stdin_file": "fifo"}, "stdin_file 'fifo' is not a regular file"),
        ({"stdin_file": "."}, "stdin_file '.' is not a regular file"),
        ({"stdin_file": FILE, "cwd": "none"}, "cwd 'none' does not exist"),
        ({"stdin_file": "a\nb"}, "stdin_file 'a\\nb' does not exist"),
    ],
)
def test_an_attempt_whose_file_cannot_be_read_fails_with_the_reason(tmp_path, fields, detail):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / FILE).touch()
    file = jobs(tmp_path, {"key": "a", "command": "touch ran", "retries": 1, "retry_delay": 0, **fields})
    ended = run("run", file, "--json", "--events", "events", cwd=tmp_path)
    assert (ended.status, ended.summary["failed"], ended.summary["retried"]) == (1, 1, 1)
    last = json.loads((tmp_path / "events").read_text().splitlines()[-1])
    assert (last["reason"], last["detail"]) == ("not_started", detail)
    assert not (tmp_path / "ran").exists()


BAD = [
    ('"stdin": 5', 'stdin: 5 is not a text; write a string such as "a\\nb\\n"'),
    ('"stdin": {"secret": 5}', 'stdin: an object is not a text; write "..." or {"secret": "..."}'),
    ('"stdin": "a\\u0000"', "stdin: it is not Unicode without NUL; write it to a file, and name that in stdin_file"),
    ('"stdin_file": ""', 'stdin_file: "" is not a file name; write a name such as "in.txt"'),
    ('"stdin_file": "a", "stdin": ""', "stdin_file: the job has stdin, too; keep one of them"),
]


@pytest.mark.parametrize("command", ["run", "submit"])
@pytest.mark.parametrize(("fields", "line"), BAD)
def test_bad_input_is_refused_before_anything_runs(tmp_path, command, fields, line):
    file = jobs(tmp_path, {"command": "touch ran"}, f'{{"command": "touch ran", {fields}}}')
    ended = run_in_process(command, file, *LEDGER, cwd=tmp_path)
    assert (ended.status, ended.err.splitlines()[0]) == (2, f"{file}:2: {line}")
    assert not list(tmp_path.glob("ran")) + list(tmp_path.glob("ledger.db"))


def test_a_text_has_a_limit():
    assert Task(key="a", command="cat", stdin="ä" * (MAX_STDIN // 2)).stdin
    with pytest.raises(ValueError, match=r"stdin: it is longer than 1,048,576 bytes; write it to a file"):
        Task(key="a", command="cat", stdin="ä" * (MAX_STDIN // 2) + "b")


def test_a_secret_input_is_read_and_never_shown(tmp_path):
    secret = Secret("hunter2!\n")
    file = jobs(tmp_path, {"key": "a", "command": "tee got >&2; exit 3", "stdin": {"secret": secret.reveal()}})
    assert "hunter2!" not in run("run", file, "--dry-run", "--json", cwd=tmp_path).out
    ended = run("run", file, *LEDGER, "--events", "events", cwd=tmp_path)
    shown = run("show", "--json", *LEDGER, cwd=tmp_path)
    assert (tmp_path / "got").read_text() == secret.reveal()
    assert json.loads(shown.out)["stdin"] == "******"
    texts = (ended.out, ended.err, (tmp_path / "events").read_text(), shown.out)
    assert not [text for text in texts if "hunter2!" in text]


def test_a_dry_run_names_the_input(tmp_path):
    file = jobs(tmp_path, {"command": "cat", "stdin_file": "a b"}, {"command": "cat", "stdin": "abc"})
    lines = run("run", file, "--dry-run", cwd=tmp_path).out.splitlines()
    assert [line.split("cat")[1] for line in lines] == ["  < 'a b'", "  (stdin of 3 bytes)"]
    listed = [json.loads(line) for line in run("run", file, "--dry-run", "--json", cwd=tmp_path).out.splitlines()]
    assert [(each.get("stdin_file"), each.get("stdin")) for each in listed] == [("a b", None), (None, "abc")]


def test_a_killed_run_is_resumed_with_the_same_input_and_runs_a_changed_one_again(tmp_path):
    command = "cat >> log; test -e go || exec sleep 60"
    file = jobs(tmp_path, {"command": command, "stdin": "one\n"}, {"command": "cat >> log", "stdin": "two\n"})
    with started("run", file, *LEDGER, "-j1", cwd=tmp_path) as celeriac:
        until(lambda: (tmp_path / "log").exists() and (tmp_path / "log").read_text(), "the start of the first job")
        celeriac.kill()
    (tmp_path / "go").touch()
    (tmp_path / "log").unlink()
    assert run("run", "--resume", file, *LEDGER, cwd=tmp_path).status == 0
    assert (tmp_path / "log").read_text() == "one\ntwo\n"
    jobs(tmp_path, {"command": command, "stdin": "one\n"}, {"command": "cat >> log", "stdin": "three\n"})
    assert run("run", "--resume", file, *LEDGER, cwd=tmp_path).status == 0
    assert (tmp_path / "log").read_text() == "one\ntwo\nthree\n"


@pytest.mark.celery
def test_the_next_worker_gives_a_lost_job_the_same_input(urls, tmp_path):
    (tmp_path / FILE).write_text("from a file\n")
    command = "cat >> log; test -e go || exec sleep 60"
    file = jobs(
        tmp_path,
        {"command": command, "stdin": "a: text\n", "cwd": str(tmp_path)},
        {"command": command, "stdin_file": FILE, "cwd": str(tmp_path)},
    )

    def logged() -> list[str]:
        return sorted((tmp_path / "log").read_text().splitlines()) if (tmp_path / "log").exists() else []

    with started("run", file, "--broker", urls[0], "--backend", urls[1], "--json", cwd=tmp_path) as celeriac:
        with worker(tmp_path, urls, "--concurrency", "2") as first:
            until(lambda: logged() == ["a: text", "from a file"], "the start of both jobs")
            first.kill()
        (tmp_path / "go").touch()
        with worker(tmp_path, urls, "--concurrency", "2"):
            assert celeriac.wait().summary["succeeded"] == 2
    assert logged() == ["a: text", "a: text", "from a file", "from a file"]
