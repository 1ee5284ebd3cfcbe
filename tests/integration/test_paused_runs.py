"""Pauses of submitted runs, in real services on SQLite and on PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.support.cli_runner import run, until
from tests.support.service_host import (
    all_succeeded,
    job,
    postgres_ledger,
    running_service,
    starts,
    submit,
    wait_until_ended,
)
from tests.support.workers import worker

WAITS = "while [ ! -e go ]; do sleep 0.02; done"


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger(request, tmp_path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/ledger.db"
        return
    url = request.getfixturevalue("redis").url
    with worker(tmp_path, (url, url), "--concurrency", "4", "--queues", "default,other,gpu"):
        yield postgres_ledger(request.getfixturevalue("postgres"), f"ledger_{uuid4().hex}")


@pytest.fixture
def place(ledger, request) -> tuple[str, ...]:
    """Return the options with which a service runs the tasks: two at once."""
    if ledger.startswith("sqlite"):
        return ("-j2",)
    return ("-j2", "--broker", request.getfixturevalue("redis").url)


def change(folder: Path, command: str, ledger: str, *words: str, status: int = 0) -> str:
    ended = run(command, *words, "--ledger", ledger, cwd=folder)
    assert ended.status == status, ended
    return ended.out or ended.err


def shown(folder: Path, ledger: str, name: str) -> str | None:
    listed = json.loads(run("runs", "--ledger", ledger, "--json", cwd=folder).out)
    (row,) = [row for row in listed if row["run"] == name]
    return None if row["paused"] is None else str(row["paused"])


def test_a_paused_run_waits_in_each_service_and_others_go_on(tmp_path, ledger, place):
    paused = submit(tmp_path, ledger, job("p1", "true"), job("p2", "true", queue="other"), name="paused")
    assert "run 'paused': paused, 2 tasks waiting, 0 in flight" in change(tmp_path, "pause", ledger, paused)
    assert "already paused" in change(tmp_path, "pause", ledger, paused, status=1)
    assert (shown(tmp_path, ledger, paused) or "").startswith("paused by celeriac pause (")
    with running_service(tmp_path, "one", ledger, *place) as one:
        other = submit(tmp_path, ledger, job("o", "true"), name="others")
        wait_until_ended(ledger, other)
        one.celeriac.kill()
    with running_service(tmp_path, "two", ledger, *place):
        last = submit(tmp_path, ledger, job("l", "true"), name="last")
        wait_until_ended(ledger, last)
        assert starts(tmp_path) == [("o", 1), ("l", 1)]
        assert "run 'paused': resumed" in change(tmp_path, "resume", ledger, paused)
        wait_until_ended(ledger, paused)
    assert all_succeeded(ledger, paused, 2)
    assert shown(tmp_path, ledger, paused) is None
    assert "has ended" in change(tmp_path, "pause", ledger, paused, status=2)


def test_a_live_run_or_a_queue_of_it_is_paused_and_resumed(tmp_path, ledger, place):
    jobs = [job(f"n{number}", WAITS, priority=-number) for number in range(3)]
    with running_service(tmp_path, "one", ledger, *place) as one:
        name = submit(tmp_path, ledger, *jobs, job("g", "true", queue="gpu", priority=-9))
        until(lambda: len(starts(tmp_path)) == 2, "two tasks")
        change(tmp_path, "pause", ledger, name)
        change(tmp_path, "pause", ledger, name, "--queue", "gpu")
        until(lambda: one.log_lines("pauses changed"), "that the service has read it")
        (tmp_path / "go").touch()
        until(lambda: all_ended(tmp_path, ledger, name, 2), "the end of the running tasks")
        assert len(starts(tmp_path)) == 2
        left = change(tmp_path, "resume", ledger, name)
        assert "; still paused: queue 'gpu', until resume --queue" in left
        until(lambda: all_ended(tmp_path, ledger, name, 3), "the end of the rest")
        assert ("g", 1) not in starts(tmp_path)
        assert shown(tmp_path, ledger, name) == "queue 'gpu' paused"
        change(tmp_path, "resume", ledger, name, "--queue", "gpu")
        wait_until_ended(ledger, name)
    assert all_succeeded(ledger, name, 4)


def test_a_paused_run_can_be_cancelled(tmp_path, ledger, place):
    name = submit(tmp_path, ledger, job("a", "true"), job("b", "true"))
    change(tmp_path, "pause", ledger, name)
    with running_service(tmp_path, "one", ledger, *place) as one:
        one.wait_for_log("run taken")
        cancelled = run("cancel", "--run", name, "--wait", "30", "--ledger", ledger, cwd=tmp_path)
        assert cancelled.status == 0, cancelled
    assert starts(tmp_path) == []


def all_ended(folder: Path, ledger: str, name: str, number: int) -> bool:
    listed = json.loads(run("runs", "--ledger", ledger, "--json", cwd=folder).out)
    return any(row["run"] == name and row["succeeded"] >= number for row in listed)
