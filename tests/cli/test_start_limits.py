"""`--max-load`, `--min-free-memory` and `--delay` of runs on this machine."""

from __future__ import annotations

import json

import pytest

from tests.cli.test_pause import runtime
from tests.support.cli_runner import jobs, run, started

pytestmark = pytest.mark.celery

__all__ = ["runtime"]  # a fixture

LEDGER = "--ledger=ledger.db"
JOBS = [{"key": key, "command": "echo $CELERIAC_KEY >> log"} for key in "abc"]


def test_a_run_that_waits_for_memory_is_killed_and_goes_on(tmp_path, runtime):
    file, never = jobs(tmp_path, *JOBS), ("--min-free-memory", "900T", "--delay", "0.01")
    with started("run", file, *never, LEDGER, cwd=tmp_path, env=runtime) as celeriac:
        assert "is below 900 TiB" in celeriac.wait_for_stderr("nothing runs, and nothing starts: free memory")
        explained = run("explain", "a", cwd=tmp_path, env=runtime)
        celeriac.kill()
    assert "; free memory " in explained.out
    assert not (tmp_path / "log").exists()
    ended = run("run", file, "--resume", "--min-free-memory", "1K", "--max-load", "90000%", LEDGER, cwd=tmp_path)
    assert ended.status == 0
    assert "goes on as it began, with --delay 0.01" in ended.err
    assert sorted((tmp_path / "log").read_text().split()) == ["a", "b", "c"]


def test_starts_are_a_delay_apart(tmp_path):
    ended = run("run", "-", "-j9", "--delay", "0.3", "--json", cwd=tmp_path, stdin=b"date +%s.%N >> log\n" * 4)
    assert ended.summary["succeeded"] == 4
    times = sorted(map(float, (tmp_path / "log").read_text().split()))
    assert times[-1] - times[0] > 0.3 * 2  # a machine that is busy may let the first one begin late


def test_limits_are_shown_by_a_dry_run(tmp_path):
    limits = ("--max-load", "50%", "--min-free-memory", "1.5G", "--delay", "2")
    ended = run("run", jobs(tmp_path, *JOBS), "--dry-run", *limits, cwd=tmp_path)
    line = "nothing starts while the load is above 50%, or while less than 1.5 GiB of memory is free, or for 2 s after"
    assert (ended.status, line in ended.err) == (0, True)


def test_limits_are_settings(tmp_path):
    (tmp_path / "celeriac.toml").write_text('max_load = "75%"\nmin_free_memory = "2G"\ndelay = 0.5\n')
    shown = json.loads(run("config", "--json", cwd=tmp_path).out)
    values = {name: shown[name]["value"] for name in ("max_load", "min_free_memory", "delay")}
    assert values == {"max_load": "75%", "min_free_memory": 2**31, "delay": 0.5}


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--max-load", "x"], "--max-load: 'x' is neither a load nor a per cent of the processors; give"),
        (["--min-free-memory", "-1"], "--min-free-memory: '-1' is not a size of memory; write"),
        (["--max-load", "9", "--pool", "prefork"], "--max-load: processes of a pool cannot share it out, or wait for"),
    ],
)
def test_a_bad_limit_of_a_worker_is_bad_input(tmp_path, options, problem):
    ended = run("worker", "--broker", "redis://127.0.0.1:1/0", *options, cwd=tmp_path)
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert ended.err.startswith(f"celeriac: {problem}")
