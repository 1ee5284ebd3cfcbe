"""Rows of the ledger that another program or a damaged disk has changed: each affects only itself."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from celeriac.errors import InvalidConfig
from celeriac.ledger.run_store import RunStore
from celeriac.ledger.views import RunState, earlier_events, find_run, find_task, list_runs, list_tasks
from celeriac.task.state import State
from celeriac.task.task import Task
from tests.support.cli_runner import run

KEYS = ["good-1", "bad", "good-2"]


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "ledger.db"  # type: ignore[no-any-return]


@pytest.fixture
def store(path) -> Iterator[RunStore]:
    with RunStore(f"sqlite:///{path}") as store:
        store.submit("jobs", None, [Task(key=key, command=("true",)) for key in KEYS], is_given=True)
        yield store


def change(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute(statement)
        database.commit()


@pytest.mark.parametrize(
    ("column", "value"),
    [("payload", "'x'"), ("payload", "'null'"), ("payload", "'{\"command\":5}'"), ("state", "'evil'"),
     ("reason", "'evil'"), ("execution", "'x'"), ("priority", "'x'")],
)  # fmt: skip
def test_a_malformed_row_is_named_and_hides_no_other(store, path, column, value, caplog):
    change(path, f"UPDATE celeriac_task SET {column} = {value} WHERE key = 'bad'")
    view = find_run(store.database, "jobs")
    assert [task.task.key for task in list_tasks(store.database, view.id)] == ["good-1", "good-2"]
    named = "payload" if column == "priority" else column
    assert f"run {view.id}: the row of task 'bad' is malformed in column {named}: " in caplog.text
    assert len(list_runs(store.database)) == 1
    assert find_task(store.database, view, "good-1").state is State.WAITING
    with pytest.raises(InvalidConfig, match=f"task 'bad' is malformed in column {named}"):
        find_task(store.database, view, "bad")


def test_malformed_counts_are_counted_again(store, path):
    change(path, "UPDATE celeriac_run SET counts = 'x'")
    assert find_run(store.database, "jobs").counts.waiting == 3


def test_a_malformed_event_hides_no_other(store, path, caplog):
    run_id = find_run(store.database, "jobs").id
    event = '{"id":"i","attempt":1,"state":"running","when":1.0}'
    for number, text in ((1, event), (2, "x"), (3, event)):
        change(path, f"INSERT INTO celeriac_move (run, number, key, event) VALUES ({run_id}, {number}, 'k', '{text}')")
    assert len(earlier_events(store.database, run_id)) == 2
    assert len(caplog.records) == 1


def test_a_service_ends_a_task_whose_row_is_malformed_and_the_run_can_end(store, path):
    change(path, "UPDATE celeriac_task SET payload = 'x' WHERE key = 'bad'")
    owned = store.owned_runs()
    (taken,) = owned.take(from_dead=False)
    loaded = []
    while not taken.is_loaded:
        loaded += owned.load(taken)
    assert sorted(each.task.key.key for each in loaded) == ["good-1", "good-2"]
    assert taken.unfinished == 2
    change(path, "UPDATE celeriac_task SET state = 'success' WHERE key != 'bad'")
    owned.end_run(taken)
    view = find_run(store.database, "jobs")
    assert (view.state, view.counts.failed, view.counts.succeeded) == (RunState.ENDED, 1, 2)


def test_the_commands_show_the_other_tasks(store, path, tmp_path):
    change(path, "UPDATE celeriac_task SET payload = 'x' WHERE key = 'bad'")
    url = f"sqlite:///{path}"
    for command in (("runs",), ("show", "jobs"), ("show", "jobs", "--json"), ("explain", "good-1", "--run", "jobs")):
        ended = run(*command, "--ledger", url, cwd=tmp_path)
        assert "Traceback" not in ended.err
        assert ended.status == 0, ended.err
