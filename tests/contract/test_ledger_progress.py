"""The progress that a ledger reports while many tasks are read from it or written to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from celeriac.cli.ledger_options import show_progress
from celeriac.executor.interfaces import LedgerBatch, QueuedTask
from celeriac.ledger import progress
from celeriac.ledger.progress import READING, WRITING
from celeriac.ledger.retry import RetryFilter
from celeriac.ledger.run_store import RunStore
from celeriac.runs.job_file import Jobs
from celeriac.task.task import Task
from celeriac.testing import ManualClock

NUMBER = 5
TASKS = [Task(key=str(number), command="true") for number in range(1, NUMBER + 1)]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunStore]:
    monkeypatch.setattr(progress, "STEP", 2)
    with RunStore(f"sqlite:///{tmp_path / 'ledger.db'}") as store:
        yield store


def run_with_tasks(store: RunStore) -> int:
    run = store.create_run("run", total=NUMBER)
    with store.open_run(run, "run", keeps_events=False) as ledger:
        queued = [QueuedTask(task, 0.0, place) for place, task in enumerate(TASKS)]
        ledger.write(LedgerBatch(queued, {}, [], 0, 0))
    return run


def unfinished(store: RunStore, run: int) -> None:
    with store.open_run(run, "run", keeps_events=False) as ledger:
        list(ledger.unfinished())


@pytest.mark.parametrize(
    "read",
    [
        lambda store, run: store.plan_resume(run, Jobs(TASKS).indexed(), failed=False, outlives=False),
        lambda store, run: store.keep_recorded_keys(run, TASKS, {"1"}),
        unfinished,
    ],
)
def test_reading_for_a_resume_reports_the_rows(store, read: Callable[[RunStore, int], Any]):
    run = run_with_tasks(store)
    reported: list[tuple[str, int | None]] = []
    store.database.on_progress = lambda what, number: reported.append((what, number))
    read(store, run)
    assert [each for each in reported if each[0] == READING] == [(READING, 2), (READING, 4), (READING, None)]


def test_reading_for_a_retry_reports_the_rows(store):
    run = run_with_tasks(store)
    store.plan_resume(run, Jobs().indexed(), failed=False, outlives=False)  # the file lost its tasks: they are revoked
    reported: list[tuple[str, int | None]] = []
    store.database.on_progress = lambda what, number: reported.append((what, number))
    assert len(store.plan_retry(run, RetryFilter()).tasks) == NUMBER
    store.plan_resume_of_unchanged(run, failed=True)
    assert reported == [(READING, 2), (READING, 4), (READING, None)] * 2


def test_submitting_reports_the_rows(store, monkeypatch):
    monkeypatch.setattr("celeriac.ledger.submit.BATCH_SIZE", 2)
    reported: list[tuple[str, int | None]] = []
    store.database.on_progress = lambda what, number: reported.append((what, number))
    store.submit("jobs", None, TASKS, is_given=True)
    assert reported == [(WRITING, 2), (WRITING, 4), (WRITING, NUMBER), (WRITING, None)]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_shows_the_rows_after_half_a_second(store, monkeypatch, capsys, is_terminal):
    clock = ManualClock(0.0)
    monkeypatch.setattr("celeriac.cli.status_line.time.monotonic", clock)
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal)
    show_progress(store)
    show = store.database.on_progress
    assert show is not None
    show(READING, 2_000)
    clock.advance(0.6)
    show(READING, 120_000)
    show(READING, None)
    shown = "\r\x1b[2Kreading the ledger: 120,000 tasks\r\x1b[2K"
    assert capsys.readouterr().err == (shown if is_terminal else "")
