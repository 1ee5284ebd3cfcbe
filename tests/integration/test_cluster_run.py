"""`celeriac run --broker`, as a user sees it: workers that start late, and interrupts."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from tests.support.cli_runner import jobs, started, until
from tests.support.servers import RedisServer
from tests.support.workers import GATED, read_log, worker

pytestmark = pytest.mark.celery

NO_WORKER = "no live worker serves queue 'default': its tasks wait\n"


@pytest.fixture
def url(shared_redis: RedisServer) -> str:
    with Redis(port=shared_redis.port) as client:
        client.flushall()
    return shared_redis.url


def read_transitions(folder: Path) -> list[tuple[str, str]]:
    """Return key and state of each event that was written."""
    file = folder / "events"
    return [(event["key"], event["state"]) for event in map(json.loads, read_lines(file))]


def read_lines(file: Path) -> list[str]:
    text = file.read_text() if file.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()


def job(key: str, command: str = GATED, **fields: Any) -> dict[str, Any]:
    return {"key": key, "command": command, **fields}


def test_run_names_a_queue_without_workers_once_and_starts_when_a_worker_does(url, tmp_path):
    file = jobs(tmp_path, *(job(f"k{n}", f"cd {tmp_path}; echo k{n} >> log") for n in range(5)))
    with started("run", file, "--broker", url, "--json", cwd=tmp_path) as run:
        stderr = run.wait_for_stderr(NO_WORKER)
        with worker(tmp_path, (url, url), "--concurrency", "2"):
            ended = run.wait()
    assert (ended.status, ended.summary["succeeded"]) == (0, 5)
    assert sorted(read_log(tmp_path / "log")) == [f"k{n}" for n in range(5)]
    assert (stderr + ended.err).count("no live worker serves") == 1


def test_first_interrupt_ends_a_run_that_waits_for_workers(url, tmp_path):
    file = jobs(tmp_path, *(job(f"k{n}") for n in range(3)))
    with started("run", file, "--broker", url, "--json", "--events", "events", cwd=tmp_path) as run:
        run.wait_for_stderr(NO_WORKER)
        run.signal(signal.SIGINT)
        ended = run.wait()
    assert ended.status == 130
    assert (ended.summary["never_ran"], ended.summary["succeeded"], ended.summary["failed"]) == (3, 0, 0)
    with worker(tmp_path, (url, url), "--concurrency", "1"):
        file = jobs(tmp_path, job("after", "echo after >> log", cwd=str(tmp_path)), name="after.jsonl")
        with started("run", file, "--broker", url, "--json", cwd=tmp_path) as run:
            assert run.wait().status == 0
    assert read_log(tmp_path / "log") == ["after"]


def test_first_interrupt_cancels_sent_tasks_and_lets_running_tasks_finish(url, tmp_path):
    file = jobs(tmp_path, *(job(f"k{n}", cwd=str(tmp_path)) for n in range(5)))
    with (
        worker(tmp_path, (url, url), "--concurrency", "1"),
        started("run", file, "--broker", url, "--json", "--events", "events", cwd=tmp_path) as run,
    ):
        until(
            lambda: {("k0", "running"), ("k1", "queued")} <= {*read_transitions(tmp_path)},
            "one running and one queued task",
        )
        run.signal(signal.SIGINT)
        stderr = run.wait_for_stderr("end them\n")
        until(lambda: ("k1", "revoked") in read_transitions(tmp_path), "the end of the queued task")
        (tmp_path / "go").touch()
        ended = run.wait()
    assert stderr == "interrupted: starting nothing more, 1 still running; interrupt again to end them\n"
    assert ended.status == 130
    assert (ended.summary["succeeded"], ended.summary["never_ran"], ended.summary["revoked"]) == (1, 4, 0)
    assert read_log(tmp_path / "log") == ["k0"]


def test_too_many_failures_end_a_run_whose_other_tasks_wait_for_workers(url, tmp_path):
    file = jobs(tmp_path, job("gpu", queue="gpu"), job("bad", "exit 1"), job("next", "sleep 60", queue="gpu"))
    with (
        started("run", file, "--broker", url, "--json", "--fail-fast", cwd=tmp_path) as run,
        worker(tmp_path, (url, url), "--concurrency", "1"),
    ):
        ended = run.wait()
    assert ended.status == 1
    assert (ended.summary["failed"], ended.summary["never_ran"], ended.summary["stopped_early"]) == (1, 2, True)
