"""`celeriac run -- COMMAND...` passes the command's streams and its exit status through."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys

import pytest

from celeriac.cli.command_output import status_of_execution
from celeriac.task.result import Execution
from tests.support.cli_runner import run, started
from tests.support.servers import RedisServer
from tests.support.workers import worker

SIZE = 12 * 1024 * 1024  # bytes, more than a task of a file keeps


def test_large_output_passes_through_completely(tmp_path):
    data = tmp_path / "data"
    data.write_bytes(bytes(range(256)) * (SIZE // 256))
    command = [sys.executable, "-m", "celeriac", "run", "--", "cat", str(data)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, cwd=tmp_path, check=False)
    assert ended.returncode == 0
    assert hashlib.sha256(ended.stdout).digest() == hashlib.sha256(data.read_bytes()).digest()


def test_output_arrives_while_the_command_runs(tmp_path):
    script = f"echo out; echo err >&2; while [ ! -e {tmp_path}/go ]; do sleep 0.02; done"
    with started("run", "--", "sh", "-c", script, cwd=tmp_path) as celeriac:
        assert celeriac.process.stdout is not None
        assert celeriac.process.stdout.readline() == b"out\n"
        assert celeriac.wait_for_stderr("err\n") == "err\n"
        (tmp_path / "go").touch()
        ended = celeriac.wait()
    assert (ended.status, ended.out, ended.err) == (0, "", "")


def test_the_command_reads_standard_input(tmp_path):
    ended = run("run", "--", "wc", "-c", cwd=tmp_path, stdin=b"caf\xe9\n" * 50_000)
    assert (ended.status, ended.out, ended.err) == (0, "250000\n", "")


def test_nothing_is_changed_and_nothing_is_added(tmp_path):
    ended = run("run", "--", "sh", "-c", 'printf "\\033[1mx" ; printf y >&2; exit 3', cwd=tmp_path)
    assert (ended.status, ended.out, ended.err) == (3, "\033[1mx", "y")


@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 0", 0), ("exit 1", 1), ("exit 42", 42), ("exit 255", 255), ("kill -9 $$", 137), ("kill -15 $$", 143)],
)
def test_the_exit_status_is_that_of_the_command(tmp_path, script, status):
    assert run("run", "--", "sh", "-c", script, cwd=tmp_path).status == status


def test_the_exit_status_is_that_of_the_last_attempt(tmp_path):
    script = "test -e tried && exit 5; touch tried; exit 4"
    ended = run("run", "--retries", "1", "--retry-delay", "0", "--", "sh", "-c", script, cwd=tmp_path)
    assert (ended.status, ended.err) == (5, "")


@pytest.mark.parametrize("option", [("--json",), ("--output", "out"), ("--quiet",)])
def test_other_options_keep_the_exit_status(tmp_path, option):
    assert run("run", *option, "--", "sh", "-c", "exit 9", cwd=tmp_path).status == 9


def test_with_json_the_output_is_kept_and_input_is_passed(tmp_path):
    ended = run("run", "--json", "--output", "out", "--", "tr", "a", "b", cwd=tmp_path, stdin=b"aaa")
    assert (ended.status, json.loads(ended.out)["succeeded"]) == (0, 1)
    assert (tmp_path / "out" / "tr a b.out").read_text() == "bbb"


def test_a_command_that_cannot_start_has_the_status_of_a_shell(tmp_path):
    (tmp_path / "plain").touch()
    for program, status in (("no-such-program", 127), ("./plain", 126)):
        ended = run("run", "--", program, cwd=tmp_path)
        assert (ended.status, ended.err.count("\n")) == (status, 1)
        assert ended.err.startswith(f"failed: {program}: cannot start '{program}': ")


def test_a_timeout_is_reported_on_one_line(tmp_path):
    ended = run("run", "--timeout", "0.2", "--", "sleep", "60", cwd=tmp_path)
    assert ended.status == 128 + signal.SIGTERM
    assert ended.err.startswith("failed: sleep 60: it ran longer than 0.2 s, after ")


def test_a_reader_that_ends_early_ends_the_command_as_in_a_shell(tmp_path):
    with started("run", "--", "yes", cwd=tmp_path) as celeriac:
        assert celeriac.process.stdout is not None
        assert celeriac.process.stdout.readline() == b"y\n"
        celeriac.process.stdout.close()
        assert celeriac.process.wait(60) == 128 + signal.SIGPIPE
        celeriac.wait_until_nothing_is_alive()


def test_real_time_signals_have_a_status():
    assert status_of_execution(Execution(host="h", signal="signal 35")) == 163


def test_on_a_cluster_the_last_lines_and_the_exit_status_come_back(tmp_path, shared_redis: RedisServer):
    with worker(tmp_path, (shared_redis.url, shared_redis.url)):
        ended = run("run", "--broker", shared_redis.url, "--", "sh", "-c", "echo out; exit 6", cwd=tmp_path)
    assert (ended.status, ended.out) == (6, "out\n")
