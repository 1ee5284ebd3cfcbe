"""Runs that share one ledger in a file, and runs whose ledger cannot be written."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.support.cli_runner import Ended, run, started, until
from tests.support.long import LONG

UNTIL_GO = "until [ -e go ]; do sleep 0.02; done"
RUNS_AT_ONCE = 16 if LONG else 5


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose runs use the default ledger, in a new state folder."""
    monkeypatch.delenv("CELERIAC_LEDGER")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path


def ledger_of(home: Path) -> Path:
    return home / "state" / "celeriac" / "ledger.db"


def write_jobs(home: Path, *commands: str) -> Path:
    path = home / "jobs.txt"
    path.write_text("".join(f"{command}\n" for command in commands))
    return path


@contextmanager
def locked(path: Path) -> Iterator[sqlite3.Connection]:
    """Hold the lock of a ledger, as a process that writes for long."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield other


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a file system of this size."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("a small file system cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path) -> None:
    """Fill the disk of a folder to the last byte."""
    with (folder / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 4096)


def warnings_of(ended: Ended) -> list[str]:
    """Return the lines of standard error without the summary."""
    return [line for line in ended.err.splitlines() if line.startswith(("celeriac:", "the ledger"))]


# — many processes —


def test_runs_that_start_at_once_share_a_new_default_ledger(home):
    file = write_jobs(home, *["true"] * 20)
    with ExitStack() as stack:
        runs = [stack.enter_context(started("run", file, "--json", cwd=home)) for _ in range(RUNS_AT_ONCE)]
        ends = [celeriac.wait() for celeriac in runs]
    assert [(ended.status, warnings_of(ended)) for ended in ends] == [(0, [])] * RUNS_AT_ONCE
    assert len({ended.summary["run"] for ended in ends}) == RUNS_AT_ONCE
    with closing(sqlite3.connect(ledger_of(home))) as ledger:
        states = Counter(ledger.execute("SELECT state FROM celeriac_task").fetchall())
        unended = ledger.execute("SELECT name FROM celeriac_run WHERE ended IS NULL").fetchall()
    assert (states, unended) == ({("success",): 20 * RUNS_AT_ONCE}, [])


def test_a_run_waits_for_a_process_that_writes_and_says_so_once(home):
    file = write_jobs(home, "touch ran")
    assert run("run", file, cwd=home).status == 0
    (home / "ran").unlink()
    with ExitStack() as stack:
        with locked(ledger_of(home)):
            celeriac = stack.enter_context(started("run", file, cwd=home))
            line = celeriac.wait_for_stderr("waiting for it\n")
            assert (
                line
                == f"celeriac: the ledger sqlite:///{ledger_of(home)} is locked by another process: waiting for it\n"
            )
            assert not (home / "ran").exists()
        ended = celeriac.wait()
    assert (ended.status, warnings_of(ended)) == (0, [])
    assert (home / "ran").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_that_waits_for_the_ledger(home, number, monkeypatch):
    file = write_jobs(home, "true")
    assert run("run", file, cwd=home).status == 0
    (home / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(home / "tmp"))
    with locked(ledger_of(home)), started("run", file, cwd=home) as celeriac:
        process = psutil.Process(celeriac.process.pid)
        until(lambda: str(ledger_of(home)) in [file.path for file in process.open_files()], "the ledger is open")
        celeriac.signal(number)
        ended = celeriac.wait()
    assert (ended.status, warnings_of(ended), "interrupted" in ended.err) == (130, [], True)
    assert list((home / "tmp").iterdir()) == []


def test_one_term_ends_a_run_whose_ledger_cannot_be_written(home):
    file = write_jobs(home, f"touch begun; {UNTIL_GO}", "true")
    with started("run", file, "-j1", cwd=home) as celeriac:
        until((home / "begun").exists, "the command")
        with locked(ledger_of(home)):
            celeriac.signal(signal.SIGTERM)
            celeriac.wait_for_stderr("interrupted")
            (home / "go").touch()
            ended = celeriac.wait()
    assert ended.status == 130
    assert "it does not hold the last results of the run; --resume completes it" in ended.err
    (home / "begun").unlink()
    again = run("run", file, "--resume", "--json", cwd=home)
    assert (again.status, again.summary["succeeded"] + again.summary["had_succeeded"]) == (0, 2)
    assert not (home / "begun").exists()  # the journal has its end


# — a ledger that cannot be written —


def test_a_run_goes_on_without_a_default_ledger_that_cannot_be_written(home):
    ledger_of(home).parent.parent.mkdir()
    ledger_of(home).parent.write_text("a file in place of the folder")
    file = write_jobs(home, "true")
    ended = run("run", file, cwd=home)
    (line,) = warnings_of(ended)
    assert (ended.status, line.endswith(": this run is not recorded")) == (0, True)
    refused = run("run", file, "--resume", cwd=home)
    assert (refused.status, len(refused.err.splitlines())) == (2, 1)


def test_a_run_with_a_full_home_is_not_recorded(home):
    file = write_jobs(home, "true", "true")
    with small_disk(home / "state", "64k") as disk:
        fill(disk)
        ended = run("run", file, "--json", cwd=home)
    assert (ended.status, ended.summary["succeeded"]) == (0, 2)
    (line,) = warnings_of(ended)
    assert line.endswith(": this run is not recorded")


def test_a_run_goes_on_when_the_disk_of_the_default_ledger_gets_full(home):
    commands = [f"touch begun; {UNTIL_GO}", *(f": {'x' * 2000} {number}" for number in range(400))]
    file = write_jobs(home, *commands)
    with small_disk(home / "state", "3m") as disk, started("run", file, "-j2", "--json", cwd=home) as celeriac:
        until((home / "begun").exists, "the first command")
        fill(disk)
        (home / "go").touch()
        ended = celeriac.wait()
    assert (ended.status, ended.summary["succeeded"]) == (0, 401)
    assert ended.err.count("the run goes on without it") == 1


def test_a_given_ledger_on_a_full_disk_pauses_the_run_until_one_term_ends_it(home):
    commands = [f"touch begun; {UNTIL_GO}", *(f": {'x' * 2000} {number}" for number in range(400))]
    file = write_jobs(home, *commands)
    with small_disk(home / "disk", "3m") as disk, ExitStack() as stack:
        celeriac = stack.enter_context(started("run", file, "-j1", "--ledger", disk / "ledger.db", "--json", cwd=home))
        until((home / "begun").exists, "the first command")
        fill(disk)
        (home / "go").touch()
        celeriac.wait_for_stderr("nothing is started until it can be written: ")
        celeriac.signal(signal.SIGTERM)
        ended = celeriac.wait()
    assert (ended.status, ended.summary["succeeded"] + ended.summary["never_ran"]) == (130, 401)
