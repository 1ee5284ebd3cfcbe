"""The `memory` of a job: a command that uses more is ended, with the reason `memory`."""

from __future__ import annotations

import json
import sys

import pytest

from tests.support.cli_runner import jobs, run, started, until

pytestmark = pytest.mark.celery

LEDGER = "--ledger=ledger.db"
EATS = "import signal, sys, time; eaten = bytearray({mib} << 20); {then}; time.sleep(60)"


def eat(mib: int, then: str = "pass") -> str:
    """Return a shell command that uses so much memory for a minute."""
    return f'{sys.executable} -c "{EATS.format(mib=mib, then=then)}"'


def test_a_job_that_uses_too_much_memory_fails(tmp_path):
    file = jobs(
        tmp_path,
        {"key": "one", "command": eat(150), "memory": "100M", "retries": 1, "retry_delay": 0.01},
        {"key": "together", "command": f"{eat(45)} & {eat(45)} & {eat(45)} & wait", "memory": "100M"},
        {"key": "daemon", "command": f"setsid {eat(150)} & wait", "memory": "100M"},
        {"key": "little", "command": eat(20, "sys.exit()"), "memory": "100M"},
    )
    ended = run("run", file, "-j4", "--json", LEDGER, "--memory", "4G", cwd=tmp_path)
    assert (ended.status, ended.summary["succeeded"], ended.summary["retried"]) == (1, 1, 1)
    failures = {failure["key"]: (failure["reason"], failure["attempt"]) for failure in ended.summary["failures"]}
    assert failures == {"one": ("memory", 2), "together": ("memory", 1), "daemon": ("memory", 1)}
    assert "failed: one: it used 1" in ended.err
    assert " MiB of memory, and may use 100 MiB" in ended.err
    shown = run("show", "--where", "reason=memory", "--json", LEDGER, cwd=tmp_path).out
    peaks = {task["key"]: task["peak_memory"] for task in map(json.loads, shown.splitlines())}
    assert (set(peaks), min(peaks.values()) > 100 << 20) == (set(failures), True)


def test_the_reason_survives_a_killed_executor(tmp_path):
    then = "signal.signal(signal.SIGTERM, lambda *_: open('term', 'w'))"
    file = jobs(tmp_path, {"key": "a", "command": eat(60, then), "memory": "50M", "grace": 2})
    with started("run", file, LEDGER, cwd=tmp_path) as celeriac:
        until((tmp_path / "term").exists, "the first signal")
        celeriac.kill()
        celeriac.wait_until_nothing_is_alive()
    ended = run("run", file, "--resume", "--json", LEDGER, cwd=tmp_path)
    (failure,) = ended.summary["failures"]
    assert (failure["reason"], failure["attempt"]) == ("memory", 1)


def test_no_process_survives_a_killed_supervisor(tmp_path):
    file = jobs(
        tmp_path,
        {
            "key": "a",
            "command": f"{eat(45, 'open(chr(97), chr(119))')} & wait",
            "memory": "50M",
            "on_worker_lost": "fail",
        },
    )
    with started("run", file, "--json", LEDGER, cwd=tmp_path) as celeriac:
        until((tmp_path / "a").exists, "the start of the job")
        for supervisor in celeriac.supervisors():
            supervisor.kill()
        (failure,) = celeriac.wait().summary["failures"]
        assert failure["reason"] == "lost"
        celeriac.wait_until_nothing_is_alive()


@pytest.mark.parametrize("memory", ["x", "0", "-1", "1.5X"])
def test_a_size_that_is_none_is_bad_input(tmp_path, memory):
    ended = run("run", jobs(tmp_path, {"command": "touch ran", "memory": memory}), LEDGER, cwd=tmp_path)
    assert (ended.status, ended.err.count("\n"), (tmp_path / "ran").exists()) == (2, 1, False)
    assert "is not a size of memory" in ended.err
