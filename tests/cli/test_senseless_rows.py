"""Rows of a ledger that make no sense: the commands that read it show what they can, or say one line."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.cli_runner import jobs, run, run_in_process

READING = (
    *(("runs",), ("runs", "--json"), ("show", "r"), ("show", "r", "--json"), ("logs", "r", "a"), ("status",)),
    *(("explain", "--run", "r", "b"), ("prune", "--older-than", "1"), ("cancel", "--run", "submitted", "a")),
)
BYTES, HUGE = b"\xff\xfe", 1e300


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ledger")
    retried = {"key": "b", "command": "false", "retries": 1, "retry_delay": 0}
    file = jobs(folder, {"key": "a", "command": "echo a"}, retried, name="r.jsonl")
    assert run("run", file, "--ledger", "ledger.db", cwd=folder).status == 1
    assert run_in_process("submit", file, "--ledger", "ledger.db", "--name", "submitted", cwd=folder).status == 0
    return folder / "ledger.db"


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        *(("celeriac_run", column, value) for column in ("created", "ended") for value in ("text", HUGE, BYTES, -1)),
        *(("celeriac_run", column, BYTES) for column in ("source", "output", "content", "counts")),
        *(("celeriac_task", column, value) for column in ("arrived", "moved") for value in ("text", HUGE, 2**62)),
        *(("celeriac_task", column, BYTES) for column in ("detail", "state", "reason", "execution", "payload")),
        *(("celeriac_ledger", "version", value) for value in ("text", float("inf"), -1, 0)),
    ],
)
def test_a_senseless_value_causes_no_traceback(ledger, tmp_path, table, column, value):
    copy = tmp_path / "ledger.db"
    for args in READING:
        shutil.copy(ledger, copy)
        with closing(sqlite3.connect(copy)) as database:
            database.execute(f"UPDATE {table} SET {column} = ?", (value,))
            database.commit()
        ended = run_in_process(*args, "--ledger", copy, cwd=tmp_path)  # raises what the command raises
        assert ended.status in (0, 1, 2)
        assert ended.status == 0 or ended.err


@pytest.mark.parametrize(("table", "column"), [("celeriac_run", "number"), ("celeriac_task", "place")])
def test_a_run_does_not_go_on_without_a_number_that_it_needs(ledger, tmp_path, table, column):
    copy = tmp_path / "ledger.db"
    shutil.copy(ledger, copy)
    with closing(sqlite3.connect(copy)) as database:
        database.execute(f"UPDATE {table} SET {column} = 'text'")
        database.commit()
    ended = run_in_process("retry", "r", "--ledger", copy, cwd=tmp_path)
    assert (ended.status, ended.err.splitlines()[-1][:9]) == (2, "celeriac:")
    assert f"is damaged: {column} of a run is 'text'" in ended.err
