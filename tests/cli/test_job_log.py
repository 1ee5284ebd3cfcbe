"""`--joblog`: the lines of GNU parallel, as each task ends."""

from __future__ import annotations

import re
import subprocess

import pytest

from celeriac.cli.job_log import HEADER
from tests.support.cli_runner import jobs, run, run_in_process, small_files, started, until
from tests.support.servers import program

TIMES = re.compile(rb"\t\d{10}\.\d{3}\t {0,9}\d+\.\d{3}\t")
COMMANDS = ("echo a; echo b >&2", "exit 3", "kill -9 $$", "printf 'a\\tb\\n' | cat")


def rows(path):
    """Return the cells of each line, without the header."""
    first, *lines = path.read_bytes().splitlines(keepends=True)
    assert first == HEADER
    return [line.rstrip(b"\n").split(b"\t", 8) for line in lines]


def test_the_lines_are_those_of_gnu_parallel(tmp_path):
    (tmp_path / "jobs.txt").write_text("".join(f"{command}\n" for command in COMMANDS))
    with (tmp_path / "jobs.txt").open("rb") as given:
        parallel = (program("parallel"), "-j1", "--joblog", "theirs")
        subprocess.run(parallel, stdin=given, cwd=tmp_path, capture_output=True)
    assert run("run", "jobs.txt", "-j1", "-q", "--joblog", "ours", cwd=tmp_path).status == 1
    ours, theirs = ((tmp_path / name).read_bytes() for name in ("ours", "theirs"))
    assert len(TIMES.findall(ours)) == len(COMMANDS)
    assert TIMES.sub(b"\tTIMES\t", ours) == TIMES.sub(b"\tTIMES\t", theirs)


def test_each_task_has_one_line_in_the_end(tmp_path):
    file = jobs(
        tmp_path,
        {"key": "timeout", "command": "exec sleep 60", "timeout": 0.2},
        {"key": "list", "command": ["nosuch", "a b"]},
        {"key": "again", "command": "exit 5", "retries": 1, "retry_delay": 0},
        {"key": "skipped", "command": "true", "needs": ["list"]},
        {"key": "lines", "command": "true\ntrue"},
    )
    assert run("run", file, "-q", "--joblog", "log", cwd=tmp_path).status == 1
    ended = {cells[8]: (cells[0], cells[1], cells[6], cells[7]) for cells in rows(tmp_path / "log")}
    assert ended == {
        b"exec sleep 60": (b"1", b":", b"-1", b"15"),
        b"nosuch 'a b'": (b"2", b":", b"127", b"0"),
        b"exit 5": (b"3", b":", b"5", b"0"),
        b"true\0true": (b"5", b":", b"0", b"0"),
    }


def test_a_line_comes_as_each_task_ends_and_a_resumed_run_adds_its_own(tmp_path):
    (tmp_path / "jobs.txt").write_text("true\ntest -e go || exec sleep 60\n")
    options = ("jobs.txt", "-j1", "--ledger", "ledger.db", "--joblog", "log", "-q")
    with started("run", *options, cwd=tmp_path) as celeriac:
        until(lambda: (tmp_path / "log").exists() and len(rows(tmp_path / "log")) == 1, "the first line", timeout=60)
        celeriac.kill()
    (tmp_path / "go").touch()
    assert run("run", *options, "--resume", cwd=tmp_path).status == 0
    assert [cells[8] for cells in rows(tmp_path / "log")][-1].startswith(b"test -e go")
    numbers = [cells[0] for cells in rows(tmp_path / "log")]
    assert len(set(numbers)) == len(numbers) >= 2
    assert run("run", *options, cwd=tmp_path).status == 0
    assert len(rows(tmp_path / "log")) == 2  # a new run begins a new log


@pytest.mark.parametrize("options", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("nosuch/log", "nosuch/log: its folder does not exist; make it, or name another file"),
        ("jobs.txt", "jobs.txt exists and is no log of jobs; remove it, or name another file"),
        (".", ".: Is a directory; name a file that can be written"),
    ],
)
def test_a_wrong_path_is_one_line_and_nothing_runs(tmp_path, options, path, problem):
    (tmp_path / "jobs.txt").write_text("touch ran\n")
    arguments = ("run", "jobs.txt", "--ledger", "ledger.db", "--joblog", path, *options)
    ended = run_in_process(*arguments, cwd=tmp_path)
    assert (ended.status, ended.err) == (2, f"celeriac: --joblog: {problem}\n")
    assert (tmp_path / "jobs.txt").read_text() == "touch ran\n"
    assert not (tmp_path / "ledger.db").exists()
    assert not (tmp_path / "ran").exists()


def test_a_full_disk_is_told_once_and_the_run_goes_on(tmp_path):
    (tmp_path / "jobs.txt").write_text("true aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\n" * 5)
    options = ("jobs.txt", "-j1", "--ledger", "none", "--joblog", "log", "--json")
    ended = run("run", *options, cwd=tmp_path, before=small_files(200))
    assert (ended.status, ended.summary["succeeded"]) == (1, 5)
    assert ended.err.count("--joblog: log: File too large; later tasks are not logged") == 1


def test_the_ledger_has_the_log_of_any_run(tmp_path):
    ledger = ("--ledger", "ledger.db")
    file = jobs(
        tmp_path,
        {"key": "a", "command": "echo a"},
        {"key": "b", "command": "exit 3", "retries": 1, "retry_delay": 0},
        {"key": "c", "command": "kill -9 $$"},
        {"key": "d", "command": "true", "needs": "c"},
    )
    assert run("submit", file, *ledger, cwd=tmp_path).status == 0
    assert run_in_process("show", "jobs", *ledger, "--joblog", "log", cwd=tmp_path).status == 0
    assert rows(tmp_path / "log") == []
    assert run("run", file, *ledger, "-q", "--name", "own", "-j1", "--joblog", "live", cwd=tmp_path).status == 1
    assert run_in_process("show", "own", *ledger, "--joblog", "log", cwd=tmp_path).out == ""
    assert rows(tmp_path / "log") == rows(tmp_path / "live")
    assert run_in_process("show", "own", *ledger, "--where", "exit_code=3", "--joblog", "log", cwd=tmp_path).status == 0
    assert [(row[0], row[6]) for row in rows(tmp_path / "log")] == [(b"2", b"3")]
    for wrong, problem in (("jobs.jsonl", "exists and is no log of jobs"), ("no/log", "its folder does not exist")):
        refused = run_in_process("show", "own", *ledger, "--joblog", wrong, cwd=tmp_path)
        assert (refused.status, refused.err.count("\n"), problem in refused.err) == (2, 1, True)
