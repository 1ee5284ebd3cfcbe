"""A supervisor that is started early is taken by the first run that needs one, and ended if there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing

import psutil
import pytest

from celeriac.worker import supervisor_start
from celeriac.worker.supervisor_client import SupervisorProcess
from celeriac.worker.supervisor_start import discard_early, start_early
from tests.support.cli_runner import jobs, run, until


@pytest.fixture(autouse=True)
def no_process_stays():
    yield
    discard_early()


@pytest.mark.parametrize(
    ("arguments", "starts"),
    [
        (["run", "jobs.jsonl"], True),
        (["run", "-q", "--", "program", "--help"], True),
        (["run", "--help"], False),
        (["run", "--broker=redis://host/0", "jobs.jsonl"], False),
        (["run", "--dry-run", "jobs.jsonl"], False),
        (["runs"], False),
        (["--", "run"], False),
        ([], False),
    ],
)
def test_a_supervisor_starts_early_for_a_local_run(arguments, starts):
    start_early(arguments)
    assert bool(supervisor_start.early) == starts


def test_a_supervisor_that_is_not_taken_is_ended():
    start_early(["run", "jobs.jsonl"])
    (process,) = (started.process for started in supervisor_start.early)
    discard_early()
    assert process.returncode == -9
    assert not supervisor_start.early


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_supervisor_that_is_not_taken_ends_with_its_worker():
    program = "from celeriac.worker.supervisor_start import *; start_early(['run']); print(early[0].process.pid)"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    pid = int(done.stdout)
    until(lambda: not is_alive(pid), "the supervisor has ended")


def test_a_run_with_another_folder_takes_no_supervisor_that_was_started_here(tmp_path):
    start_early(["run", "jobs.jsonl"])
    (started,) = supervisor_start.early
    with closing(SupervisorProcess(folder=tmp_path)) as other:
        assert other.pid != started.process.pid
    with closing(SupervisorProcess()) as taken:
        assert taken.pid == started.process.pid
    assert not supervisor_start.early


def test_a_run_that_ends_early_leaves_no_process(tmp_path):
    for arguments in (["run"], ["run", "missing.jsonl"], ["run", "--no-such-option"], ["run", "-j0", "x"]):
        assert run(*arguments, cwd=tmp_path).status == 2


def test_commands_of_a_file_get_an_empty_input_and_keep_their_output(tmp_path):
    file = jobs(tmp_path, {"key": "a", "command": "cat; echo output; readlink /proc/self/fd/0"})
    command = [sys.executable, "-m", "celeriac", "run", str(file), "-o", "kept", "-q", "--ledger", "none"]
    done = subprocess.run(command, cwd=tmp_path, input="input\n", capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
    assert (tmp_path / "kept" / "a.out").read_text() == f"output\n{os.devnull}\n"


def test_a_command_gets_no_secret_of_the_settings(tmp_path):
    env = {**os.environ, "CELERIAC_LEDGER": "none"}
    command = [sys.executable, "-m", "celeriac", "run", "-q", "--", "env"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert "CELERIAC_LEDGER" not in done.stdout
    assert "CELERIAC_KEY=env" in done.stdout
