"""`celeriac worker --idle-exit`: a worker that ends when it has had no task for long, and loses none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.test_cancel import url
from tests.support.cli_runner import jobs, run, started
from tests.support.servers import PostgresServer, RabbitServer
from tests.support.workers import read_log

pytestmark = pytest.mark.celery

__all__ = ["url"]  # a fixture

DELAYS = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2)  # seconds; a worker ends 1 to 2 s after its last task


def test_idle_worker_ends_as_if_drained_and_says_why(url, tmp_path):
    file = jobs(tmp_path, {"key": "a", "command": "echo a >> log; sleep 1.5", "cwd": str(tmp_path)})
    with started("worker", "--broker", url, "--idle-exit", "1", "--log-format", "json", cwd=tmp_path) as worker:
        ended = run("run", file, "--broker", url, "--json", cwd=tmp_path)
        left = worker.wait()
    assert ended.summary["succeeded"] == 1
    assert left.status == 0
    events = [json.loads(line) for line in left.err.splitlines() if line.startswith("{")]
    assert ("shutting down: idle", 1.0) in {(event["event"], event.get("seconds")) for event in events}


@pytest.mark.parametrize("value", ["0", "0.5", "-1", "soon", "nan", "inf"])
def test_wrong_time_is_one_line(value, tmp_path):
    ended = run("worker", "--broker", "redis://127.0.0.1:1/0", "--idle-exit", value, cwd=tmp_path)
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert ended.err.startswith("celeriac: --idle-exit: ")


def check_no_task_is_lost(tmp_path: Path, broker: str, backend: str) -> None:
    """Let second attempts arrive about when a worker ends, and start the next worker: each attempt runs once."""
    servers = ("--broker", broker, "--backend", backend)
    worker = ("worker", *servers, "--idle-exit", "1", "-c", "1", "--log-level", "error")
    fails_once = "echo $CELERIAC_KEY >> log; [ -e done-$CELERIAC_KEY ] || { touch done-$CELERIAC_KEY; exit 1; }"
    lines = [
        {"key": f"k{n}", "command": fails_once, "cwd": str(tmp_path), "retries": 1, "retry_delay": delay}
        for n, delay in enumerate(DELAYS)
    ]
    with started("run", jobs(tmp_path, *lines), *servers, "--json", cwd=tmp_path) as executor:
        while executor.process.poll() is None:
            assert run(*worker, cwd=tmp_path).status == 0
        summary = executor.wait().summary
    assert (summary["succeeded"], summary["failed"]) == (len(DELAYS), 0)
    assert sorted(read_log(tmp_path / "log")) == sorted(2 * [f"k{n}" for n in range(len(DELAYS))])


def test_no_task_is_lost_on_redis(url, tmp_path):
    check_no_task_is_lost(tmp_path, url, url)


def test_no_task_is_lost_on_rabbitmq(rabbit: RabbitServer, postgres: PostgresServer, tmp_path):
    check_no_task_is_lost(tmp_path, rabbit.url, postgres.url)
