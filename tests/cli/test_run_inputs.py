"""The inputs that a run remembers: its folder, the format and the defaults of its file, and the lines of plain text."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from celeriac.ledger.inputs import RunInputs
from celeriac.runs.inputs import inputs_of
from celeriac.runs.options import JobRunOptions
from tests.support.cli_runner import Ended, run, started, until

FAILS_AT_FIRST = "pwd >> {log}; test -e {go}"


class Site:
    """A folder with a job file, another folder, a ledger and a log."""

    def __init__(self, root: Path) -> None:
        self.home, self.other, self.log = root / "home", root / "other", root / "log"
        self.ledger, self.file = root / "ledger.db", root / "home/jobs.txt"
        self.home.mkdir()
        self.other.mkdir()

    def run(self, *arguments: str, folder: Path | None = None) -> Ended:
        return run(*arguments, "--ledger", str(self.ledger), "--json", cwd=folder or self.home)

    def write(self, *lines: str) -> None:
        self.file.write_text("".join(f"{line}\n" for line in lines))

    def ran(self) -> list[str]:
        """Return the lines of the log, and empty it."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.write_text("")
        return lines

    def forget_inputs(self) -> None:
        """Make the ledger one of an earlier version."""
        with closing(sqlite3.connect(self.ledger)) as ledger:
            ledger.execute("DROP TABLE celeriac_input")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def echo(site: Site, word: str, then: str = "true") -> str:
    return f"echo {word} >> {site.log}; {then}"


# — the working folder —


@pytest.mark.parametrize("arguments", [["retry", "jobs"], ["run", "FILE", "--resume-failed"]])
def test_a_run_goes_on_in_its_own_folder(site, arguments):
    site.write(FAILS_AT_FIRST.format(log=site.log, go="go"))
    assert site.run("run", "jobs.txt").status == 1
    (site.home / "go").touch()
    ended = site.run(*(str(site.file) if each == "FILE" else each for each in arguments), folder=site.other)
    assert (ended.status, ended.summary["succeeded"]) == (0, 1)
    assert f"celeriac: the commands run in {site.home}, where run jobs began\n" in ended.err
    assert site.ran() == [str(site.home)] * 2


def test_a_command_sees_its_folder_also_in_its_environment(site):
    site.write(f"/usr/bin/env | grep ^PWD= >> {site.log}; pwd >> {site.log}; exit 1")
    site.run("run", "jobs.txt")
    site.ran()
    site.run("retry", "jobs", folder=site.other)
    assert site.ran() == [f"PWD={site.home}", str(site.home)]


@pytest.mark.parametrize("arguments", [["retry", "jobs"], ["run", "FILE", "--resume-failed"]])
def test_a_run_whose_folder_is_gone_does_not_run_elsewhere(site, tmp_path, arguments):
    site.file = tmp_path / "jobs.txt"
    site.write(FAILS_AT_FIRST.format(log=site.log, go="go"))
    site.run("run", str(site.file))
    site.ran()
    site.home.rmdir()
    ended = site.run(*(str(site.file) if each == "FILE" else each for each in arguments), folder=site.other)
    message = f"run 'jobs': its commands run in {site.home}, which is no folder that can be entered"
    remedy = "make it again, or run the file anew without --resume"
    assert (ended.status, ended.err) == (2, f"celeriac: {message}; {remedy}\n")
    assert site.ran() == []


def test_a_run_of_an_earlier_version_goes_on_in_the_folder_of_its_caller(site):
    site.write(FAILS_AT_FIRST.format(log=site.log, go="go"))
    site.run("run", "jobs.txt")
    site.forget_inputs()
    site.ran()
    (site.other / "go").touch()
    assert site.run("retry", "jobs", folder=site.other).status == 0
    assert site.ran() == [str(site.other)]


# — the format and the defaults —


def test_a_resumed_run_reads_its_file_as_before(site):
    site.file = site.home / "jobs.csv"
    site.write(echo(site, "a", "exit 1"))
    arguments = ("--format", "lines", "--retries", "1", "--retry-delay", "0.01")
    assert site.run("run", "jobs.csv", *arguments).status == 1
    assert site.ran() == ["a", "a"]
    site.write("# changed", echo(site, "a", "exit 1"))
    ended = site.run("run", "jobs.csv", "--resume-failed")
    assert (ended.status, ended.summary["tasks"]) == (1, 1)
    assert site.ran() == ["a", "a"]
    site.run("run", "jobs.csv", "--resume-failed", "--retries", "0")
    assert site.ran() == ["a"]
    site.run("run", "jobs.csv", "--resume-failed")
    assert site.ran() == ["a"]


# — parallelism, limits of queues and output —


@pytest.mark.parametrize("arguments", [["retry", "jobs"], ["run", "FILE", "--resume-failed"]])
def test_a_run_goes_on_with_the_options_of_its_start(site, tmp_path, arguments):
    site.file = site.home / "jobs.jsonl"
    site.write(*(f'{{"key": "{key}", "queue": "gpu", "command": "{alone(site)}; test -e go"}}' for key in "abc"))
    limits = [
        "--cpus",
        "2",
        "--memory",
        "1G",
        "--gpus",
        "0",
        "--max-load",
        "90000%",
        "--min-free-memory",
        "1M",
        "--delay",
        "0.01",
    ]
    assert site.run("run", "jobs.jsonl", "-j", "3", "--queue-limit", "gpu=1", *limits, "--output", "out").status == 1
    assert (site.home / "out/a.err").exists()
    (site.home / "go").touch()
    words = [str(site.file) if each == "FILE" else each for each in arguments]
    ended = site.run(*words, folder=site.other)
    assert (ended.status, ended.summary["succeeded"]) == (0, 3)
    course = f"-j 3 {' '.join(limits)} --queue-limit gpu=1 --output {site.home / 'out'}"
    line = f"celeriac: run jobs goes on as it began, with {course}\n"
    assert line in ended.err
    assert site.ran() == []
    assert sorted(path.name for path in (site.home / "out").glob("*.out")) == ["a.out", "b.out", "c.out"]
    assert not (site.other / "out").exists()


def test_options_that_are_given_replace_those_of_the_start(site):
    site.write(f"{alone(site)}; test -e go", f"{alone(site)}; test -e go")
    site.run("run", "jobs.txt", "-j", "1", "--output", "out")
    ended = site.run("run", "jobs.txt", "--resume-failed", "-j", "2", "--output", "other")
    assert "goes on as it began" not in ended.err
    (site.home / "go").touch()
    ended = site.run("retry", "jobs")
    assert f"with -j 2 --output {site.home / 'other'}\n" in ended.err


def alone(site: Site) -> str:
    """Return a command that writes to the log if another one runs at the same time."""
    folder = site.home / "one"
    return f"mkdir {folder} || echo two >> {site.log}; sleep 0.05; rmdir {folder}"


# — the lines of plain text —


@pytest.mark.parametrize("is_older", [False, True])
def test_a_comment_at_the_top_runs_nothing_again(site, is_older):
    lines = [echo(site, "a"), echo(site, "b", "exit 1"), echo(site, "a")]
    site.write(*lines)
    assert site.run("run", "jobs.txt").status == 1
    assert sorted(site.ran()) == ["a", "a", "b"]
    if is_older:
        site.forget_inputs()
    site.write("# a comment", "", *lines)
    ended = site.run("run", "jobs.txt", "--resume")
    assert (ended.status, ended.summary["had_succeeded"], ended.summary["had_failed"]) == (1, 2, 1)
    assert site.ran() == []
    site.run("run", "jobs.txt", "--resume-failed")
    assert site.ran() == ["b"]


def test_only_new_and_changed_lines_of_a_file_run(site):
    site.write(*(echo(site, word) for word in "abc"))
    site.run("run", "jobs.txt")
    site.ran()
    site.write(*(echo(site, word) for word in ("new", "c", "a", "a", "changed")))
    ended = site.run("run", "jobs.txt", "--resume")
    assert (ended.status, ended.summary["had_succeeded"]) == (0, 2)
    assert sorted(site.ran()) == ["a", "changed", "new"]
    assert site.run("run", "jobs.txt", "--resume").summary["had_succeeded"] == 5
    assert site.ran() == []


def test_jobs_without_keys_are_known_by_their_content_in_every_format(site):
    site.file = site.home / "jobs.jsonl"
    first, second = f'{{"command": "{echo(site, "a")}"}}', f'{{"command": "{echo(site, "b")}", "needs": "1"}}'
    site.write(first, second)
    assert site.run("run", "jobs.jsonl").status == 0
    site.ran()
    third = f'{{"command": "{echo(site, "c")}", "needs": "3"}}'
    site.write("", third, first, second.replace('"1"', '"3"'))
    ended = site.run("run", "jobs.jsonl", "--resume")
    assert (ended.status, ended.summary["had_succeeded"]) == (0, 2)
    assert site.ran() == ["c"]


def test_a_line_of_a_resumed_run_is_named_with_its_command(site):
    site.write("test -e begun || { touch begun; sleep 60; }", "test -e nothing")
    with started("run", "jobs.txt", "-j1", "--ledger", str(site.ledger), cwd=site.home) as celeriac:
        until((site.home / "begun").exists, "the start of the first line")
        celeriac.kill()
    ended = run("run", "jobs.txt", "--resume", "--ledger", str(site.ledger), cwd=site.home)
    assert "failed: 2 (test -e nothing): exit code 1" in ended.err


def test_the_parallelism_of_workers_elsewhere_is_not_remembered() -> None:
    options = JobRunOptions(
        settings={"parallelism": 500, "broker": "redis://"},
        config=None,
        local=False,
        queue_limits=["gpu=1"],
        keep_going=True,
        max_failures=None,
        output=None,
        output_limit=None,
        file="jobs.txt",
        command=None,
        format="auto",
        defaults={},
        name=None,
        resume=False,
        resume_failed=False,
    )
    inputs = RunInputs(**inputs_of(options, "/home", outlives=True))
    assert (inputs.parallelism, inputs.queue_limits) == (None, ("gpu=1",))
