"""Limits of concurrency keys and rates from the command line, for runs in this process."""

from __future__ import annotations

import json

import pytest

from tests.support.cli_runner import run


def write_jobs(folder, *jobs):
    (folder / "jobs.jsonl").write_text("".join(json.dumps(job) + "\n" for job in jobs))
    return "jobs.jsonl"


def held(lines):
    """Return the largest number of commands that ran at once."""
    running = most = 0
    for line in lines:
        running += 1 if line == "+" else -1
        most = max(most, running)
    return most


def test_no_more_commands_of_a_key_run_at_once_than_its_limit(tmp_path):
    command = "echo + >> log; sleep 0.05; echo - >> log"
    file = write_jobs(tmp_path, *({"command": command, "concurrency_key": "db"} for _ in range(8)))
    options = ("-j8", "--concurrency-limit", "db=2", "--ledger", "none")
    assert run("run", file, *options, cwd=tmp_path).status == 0
    lines = (tmp_path / "log").read_text().split()
    assert (len(lines), held(lines)) == (16, 2)


def test_a_dry_run_shows_the_key_and_a_resumed_run_remembers_the_limits(tmp_path):
    jobs = [{"command": "false", "key": "a", "concurrency_key": "db"}, {"command": "true", "key": "b", "queue": "net"}]
    file = write_jobs(tmp_path, *jobs)
    options = ("--concurrency-limit", "*=1", "--queue-rate", "net=1/s")
    ledger = ("--ledger", "ledger.db")
    assert "false  (concurrency key db)\n" in run("run", file, *options, "--dry-run", cwd=tmp_path).out
    assert run("run", file, *options, *ledger, cwd=tmp_path).status == 1
    again = run("run", file, "--resume-failed", *ledger, cwd=tmp_path)
    assert again.status == 1
    assert "goes on as it began, with --concurrency-limit '*=1' --queue-rate net=1/s" in again.err
    assert '"concurrency_key":"db"' in run("show", "jobs", "--json", *ledger, cwd=tmp_path).out


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ([], "jobs.jsonl:1: concurrency_key: task '1' has the key 'db', which has no limit; give one, such as"),
        (
            ["--concurrency-limit=db"],
            "celeriac: --concurrency-limit: 'db' is not a limit; write KEY=N, for example db=3",
        ),
        (["--concurrency-limit=db=0"], "celeriac: --concurrency-limit: 'db=0' is not a limit; write KEY=N"),
        (
            ["--concurrency-rate=db=10"],
            "celeriac: --concurrency-rate: 'db=10' is not a limit; write KEY=N/s, N/m or N/h",
        ),
        (["--queue-rate=q=10/d"], "celeriac: --queue-rate: 'q=10/d' is not a limit; write QUEUE=N/s, N/m or N/h"),
    ],
)
def test_wrong_limits_are_refused_before_anything_runs(tmp_path, options, error):
    file = write_jobs(tmp_path, {"command": "touch ran", "concurrency_key": "db"})
    refused = run("run", file, *options, "--ledger", "none", cwd=tmp_path)
    assert (refused.status, refused.err.startswith(error)) == (2, True), refused.err
    assert not (tmp_path / "ran").exists()
