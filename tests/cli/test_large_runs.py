"""Runs with so many tasks that they start before the ledger has all of them."""

from __future__ import annotations

import json
import signal
import sqlite3
from collections import Counter
from collections.abc import Collection
from contextlib import closing
from pathlib import Path

import pytest

from celeriac.ledger.run_store import RunStore
from celeriac.runs.cancellation import cancel_run
from celeriac.runs.live_owner import LiveOwner
from tests.support.cli_runner import Celeriac, Ended, run, started, until
from tests.support.long import LONG

TASKS = 8_000 if LONG else 2_200
LEDGER = ("--ledger", "ledger.db")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A job file: the last line has the highest priority and waits for the file `go`; each line records its run."""
    first = {"key": "first", "command": "echo first >> ran; until [ -e go ]; do sleep 0.02; done", "priority": 1}
    lines = [{"key": f"k{number}", "command": "echo $CELERIAC_KEY >> ran"} for number in range(TASKS - 1)]
    path = tmp_path / "jobs.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in [*lines, first]))
    return path


def ran(file: Path) -> Counter[str]:
    record = file.with_name("ran")
    return Counter(record.read_text().split() if record.exists() else ())


def stored(file: Path) -> Counter[str]:
    """Return the number of tasks in the ledger by state."""
    with closing(sqlite3.connect(file.with_name("ledger.db"))) as ledger:
        return Counter(dict(ledger.execute("SELECT state, count(*) FROM celeriac_task GROUP BY state").fetchall()))


def run_row(file: Path) -> dict[str, object]:
    [row] = json.loads(run("runs", "--json", *LEDGER, cwd=file.parent).out)
    return dict(row)


def resumed(file: Path) -> Ended:
    file.with_name("go").touch()
    return run("run", file, "--resume", "--json", "-j8", *LEDGER, cwd=file.parent)


def test_a_run_that_is_killed_while_its_tasks_are_written_is_resumed_exactly(file):
    with started("run", file, "-j1", *LEDGER, cwd=file.parent) as celeriac:
        until(lambda: ran(file), "the most urgent command")
        celeriac.kill()
    number = stored(file).total()
    assert number > 0
    if number < TASKS:  # a slow machine may have stored all of them before the kill
        assert run_row(file)["tasks"] == TASKS
        refused = run("retry", "jobs", *LEDGER, cwd=file.parent)
        assert (refused.status, len(refused.err.splitlines())) == (2, 1)
        assert (
            f"tasks are not recorded: it was ended before; resume it with celeriac run --resume {file}" in refused.err
        )
    again = resumed(file)
    assert (again.status, again.summary["succeeded"]) == (0, TASKS)
    assert ran(file) - Counter({"first": 1}) == {"first": 1} | {f"k{number}": 1 for number in range(TASKS - 1)}
    assert (stored(file), run_row(file)["state"]) == ({"success": TASKS}, "ended")


def interrupted(celeriac: Celeriac, go: Path) -> Ended:
    """Interrupt a run, let its running command end, and return the end of the run."""
    celeriac.signal(signal.SIGINT)
    celeriac.wait_for_stderr("interrupted")
    go.touch()
    return celeriac.wait()


def test_an_interrupt_while_tasks_are_written_leaves_them_in_the_file(file):
    with started("run", file, "-j1", "--json", *LEDGER, cwd=file.parent) as celeriac:
        until(lambda: ran(file), "the most urgent command")
        ended = interrupted(celeriac, file.with_name("go"))
    assert (ended.status, ended.summary["succeeded"], ended.summary["never_ran"]) == (130, 1, TASKS - 1)
    states = stored(file)
    assert (states["success"], states.keys() <= {"success", "revoked"}) == (1, True)
    assert run_row(file)["tasks"] == TASKS
    if not LONG:  # the test above has a resumed run
        return
    again = resumed(file)
    assert (again.status, again.summary["succeeded"], again.summary["had_succeeded"]) == (0, TASKS - 1, 1)
    assert ran(file) == {"first": 1} | {f"k{number}": 1 for number in range(TASKS - 1)}


def test_all_lines_of_standard_input_are_recorded_before_an_interrupted_run_ends(tmp_path):
    lines = ["echo first >> ran; until [ -e go ]; do sleep 0.02; done", *["true"] * TASKS]
    path = tmp_path / "lines"
    path.write_text("".join(f"{line}\n" for line in lines))
    with (
        path.open("rb") as source,
        started("run", "-", "-j1", "--json", *LEDGER, cwd=tmp_path, stdin=source.fileno()) as celeriac,
    ):
        until(lambda: ran(path), "the first command")
        until(lambda: stored(path).total(), "the first tasks")
        ended = interrupted(celeriac, (tmp_path / "go"))
    assert ended.status == 130
    assert stored(path).total() == ended.summary["tasks"]
    assert stored(path)["revoked"] == ended.summary["never_ran"]


# — plain files: the first commands start before the others are queued —


@pytest.fixture
def plain_file(tmp_path: Path) -> Path:
    """A job file of shell commands: the first waits for the file `go`; each line records its run."""
    lines = ["echo first >> ran; until [ -e go ]; do sleep 0.02; done", *["echo $CELERIAC_KEY >> ran"] * (TASKS - 1)]
    path = tmp_path / "jobs.txt"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_a_plain_file_whose_run_is_killed_at_its_start_is_resumed_exactly(plain_file):
    with started("run", plain_file, "-j1", *LEDGER, cwd=plain_file.parent) as celeriac:
        until(lambda: ran(plain_file), "the first command")
        celeriac.kill()
    assert stored(plain_file).total() > 0
    assert run_row(plain_file)["tasks"] == TASKS
    again = resumed(plain_file)
    assert (again.status, again.summary["succeeded"]) == (0, TASKS)
    assert ran(plain_file) - Counter({"first": 1}) == {"first": 1} | {str(n): 1 for n in range(2, TASKS + 1)}
    assert (stored(plain_file), run_row(plain_file)["state"]) == ({"success": TASKS}, "ended")


@pytest.mark.parametrize("options", [LEDGER, ("--ledger", "none"), (*LEDGER, "--events", "events.jsonl")])
def test_an_interrupt_of_a_plain_file_at_its_start_counts_each_job_once(plain_file, options):
    with started("run", plain_file, "-j1", "--json", *options, cwd=plain_file.parent) as celeriac:
        until(lambda: ran(plain_file), "the first command")
        ended = interrupted(celeriac, plain_file.with_name("go"))
    summary = ended.summary
    assert (ended.status, summary["tasks"], summary["succeeded"], summary["never_ran"]) == (130, TASKS, 1, TASKS - 1)
    if "--events" in options:
        events = [json.loads(line) for line in plain_file.with_name("events.jsonl").read_text().splitlines()]
        assert Counter(event["state"] for event in events if event["state"] in ("success", "revoked")) == {
            "success": 1,
            "revoked": TASKS - 1,
        }
        assert len({event["key"] for event in events}) == TASKS
    if LONG and options == LEDGER:  # a test above has a resumed run
        again = resumed(plain_file)
        assert (again.status, again.summary["succeeded"], again.summary["had_succeeded"]) == (0, TASKS - 1, 1)


def test_the_last_job_of_a_plain_file_can_be_cancelled_at_once(plain_file):
    with started("run", plain_file, "-j1", "--json", *LEDGER, cwd=plain_file.parent) as celeriac:
        until(lambda: ran(plain_file), "the first command")
        cancelled = run("cancel", str(TASKS), "--local", cwd=plain_file.parent)
        ended = interrupted(celeriac, plain_file.with_name("go"))
    assert (cancelled.status, ended.summary["never_ran"]) == (0, TASKS - 1), cancelled.err


def test_a_cancelled_run_accounts_for_every_job_of_its_file(plain_file):
    """The request is made at once: the first command runs, and the ledger has few of the others."""

    def ask(label: str, keys: Collection[str] | None) -> None:
        LiveOwner(run="jobs", label=label, asked_by="a test").cancel(keys)

    number = 20_000
    with plain_file.open("a") as lines:
        lines.write("true\n" * (number - TASKS))
    with started("run", plain_file, "-j1", "--json", *LEDGER, cwd=plain_file.parent) as celeriac:
        until(lambda: ran(plain_file), "the first command")
        with RunStore(f"sqlite:///{plain_file.with_name('ledger.db')}") as store:
            cancelled = cancel_run(store, 1, "jobs", wait=60, ask_owner=ask)
        ended = celeriac.wait()
    assert (cancelled.revoked, cancelled.left) == (number, 0)
    assert (ended.status, ended.summary["revoked"], ended.summary["never_ran"]) == (1, 1, number - 1)
    assert stored(plain_file) == {"revoked": number}
    row = run_row(plain_file)
    assert (row["state"], row["tasks"], row["waiting"]) == ("ended", number, 0)
