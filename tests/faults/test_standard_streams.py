"""Standard streams that are closed, full or gone: a run goes on, and any other command ends with one line."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from celeriac.runs.job_file.reading import WAIT_REPORTED
from tests.support.cli_runner import END_TIMEOUT, MARK, jobs, run, started, until

FULL = "cannot be written: No space left on device"


def two_steps(folder: Path) -> tuple[Path, Path, Path]:
    """Return a job file whose first command waits for a file, that file, and the file that the command makes first."""
    ready, go = folder / "ready", folder / "go"
    first = f"touch {ready}; while [ ! -e {go} ]; do sleep 0.02; done; echo told >&2; exit 7"
    file = jobs(folder, {"command": first, "priority": 1}, {"command": f"touch {folder}/second"})
    return file, ready, go


def in_shell(redirections: str) -> tuple[str, ...]:
    """Return a command that starts another one with these redirections."""
    return ("sh", "-c", f'exec "$@" {redirections}', "sh")


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&-", "<&- >&- 2>&-"])
def test_a_run_needs_no_standard_streams(tmp_path, closed):
    file = jobs(tmp_path, {"command": "exit 3"}, {"command": f"touch {tmp_path}/second"})
    assert run("run", file, cwd=tmp_path, before=in_shell(closed)).status == 1
    assert (tmp_path / "second").exists()


def test_a_closed_stream_gives_its_number_to_no_file(tmp_path):
    file = jobs(tmp_path, {"command": "exit 3"})
    ended = run("run", file, "--events", "events", "--ledger", "ledger.db", cwd=tmp_path, before=in_shell("2>&-"))
    assert ended.status == 1
    assert "failed:" not in (tmp_path / "events").read_text()
    assert b"failed:" not in (tmp_path / "ledger.db").read_bytes()[:4096]


@pytest.mark.parametrize("args", [(), ("--quiet",), ("--json",)])
def test_a_run_goes_on_when_the_reader_of_its_messages_has_gone(tmp_path, args):
    file, ready, go = two_steps(tmp_path)
    with started("run", file, "-j1", *args, cwd=tmp_path) as celeriac:
        until(ready.exists, "the start of the first command")
        for pipe in (celeriac.process.stdout, celeriac.process.stderr):
            assert pipe is not None
            pipe.close()
        go.touch()
        assert celeriac.process.wait(END_TIMEOUT) == 1
        assert celeriac.alive() == []
    assert (tmp_path / "second").exists()


def test_an_interrupt_that_also_ends_the_reader_lets_running_commands_finish(tmp_path):
    file, ready, go = two_steps(tmp_path)
    with started("run", file, "-j1", "--events", "events", cwd=tmp_path) as celeriac:
        until(ready.exists, "the start of the first command")
        assert celeriac.process.stderr is not None
        celeriac.process.stderr.close()
        celeriac.signal(signal.SIGINT)
        go.touch()
        assert celeriac.process.wait(END_TIMEOUT) == 130
        assert celeriac.alive() == []
    assert '"exit_code":7' in (tmp_path / "events").read_text()
    assert not (tmp_path / "second").exists()


def test_a_run_goes_on_when_its_terminal_closes(tmp_path):
    file, ready, go = two_steps(tmp_path)
    pid, terminal = pty.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            os.environ[MARK] = str(tmp_path)
            os.execv(sys.executable, [sys.executable, "-m", "celeriac", "run", str(file), "-j1"])
        os._exit(99)
    until(ready.exists, "the start of the first command")
    os.close(terminal)  # the system sends SIGHUP, and every later write fails
    go.touch()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    assert (tmp_path / "second").exists()


def test_a_full_disk_costs_the_messages_of_a_run_alone(tmp_path):
    file = jobs(tmp_path, {"command": "true"})
    assert run("run", file, cwd=tmp_path, before=in_shell("2>/dev/full")).status == 0
    ended = run("run", file, "--json", "--quiet", cwd=tmp_path, before=in_shell(">/dev/full"))
    assert (ended.status, ended.err) == (1, f"celeriac: standard output {FULL}: the summary is missing\n")


@pytest.mark.parametrize("args", [("--help",), ("--version",), ("config",), ("run", "jobs.jsonl", "--dry-run")])
def test_a_listing_that_cannot_be_written_is_one_line(tmp_path, args):
    jobs(tmp_path, {"command": "true"})
    ended = run(*args, cwd=tmp_path, before=in_shell(">/dev/full"))
    assert (ended.status, ended.err) == (1, f"celeriac: standard output {FULL}\n")


def test_a_reader_that_has_read_enough_ends_a_listing_without_a_word(tmp_path):
    file = tmp_path / "jobs.txt"
    file.write_text("true\n" * 20_000)
    with started("run", file, "--dry-run", cwd=tmp_path) as celeriac:
        assert celeriac.process.stdout is not None
        assert celeriac.process.stdout.read(1) == b" "
        celeriac.process.stdout.close()
        celeriac.process.stdout = None
        _, err = celeriac.process.communicate(timeout=END_TIMEOUT)
    assert (celeriac.process.returncode, err) == (1, b"")


def test_a_slow_reader_of_a_non_blocking_pipe_gets_everything(tmp_path):
    file = tmp_path / "jobs.txt"
    file.write_text("true\n" * 20_000)
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    command = [sys.executable, "-m", "celeriac", "run", str(file), "--dry-run"]
    with subprocess.Popen(command, stdout=write_end, cwd=tmp_path) as process:
        os.close(write_end)
        with os.fdopen(read_end, "rb") as reader:
            lines = reader.read().count(b"\n")
    assert (process.returncode, lines) == (0, 20_000)


# — input —


def test_closed_standard_input_is_one_line(tmp_path):
    ended = run("run", "-", cwd=tmp_path, before=in_shell("<&-"))
    assert (ended.status, ended.err) == (2, "<stdin>: it is closed; name a file\n")


def test_standard_input_that_cannot_be_read_is_one_line(tmp_path):
    ended = run("run", "-", "--quiet", cwd=tmp_path, before=in_shell("0>/dev/null"))
    problem = "it cannot be read further: Bad file descriptor; check the disk or the program that writes it"
    assert (ended.status, ended.err.splitlines()[0]) == (2, f"<stdin>:1: {problem}")


def test_a_fifo_is_read_once(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with started("run", "fifo", "--json", cwd=tmp_path) as celeriac:
        (tmp_path / "fifo").write_text("true\n")
        ended = celeriac.wait()
    assert (ended.status, ended.summary["succeeded"]) == (0, 1)


@pytest.mark.parametrize("option", ["--resume", "--resume-failed"])
def test_a_file_that_can_be_read_only_once_cannot_be_resumed(tmp_path, option):
    os.mkfifo(tmp_path / "fifo")
    ended = run("run", "fifo", option, cwd=tmp_path)
    assert ended.status == 2
    assert ended.err.endswith("--resume needs a FILE that can be read again\n")


@pytest.mark.parametrize("args", [("run", "fifo"), ("run", "fifo", "--dry-run"), ("submit", "fifo")])
def test_an_interrupt_ends_the_wait_for_a_writer(tmp_path, args):
    os.mkfifo(tmp_path / "fifo")
    writers: list[int] = []
    with started(*args, cwd=tmp_path) as celeriac:
        until(lambda: open_writer(tmp_path / "fifo", writers), "the wait for a writer")
        celeriac.signal(signal.SIGINT)
        os.close(writers[0])
        ended = celeriac.wait()
    assert (ended.status, ended.err) == (130, "" if args[0] == "submit" else "interrupted\n")


@pytest.mark.parametrize(
    "args", [("run", "fifo"), ("run", "fifo", "--dry-run"), ("submit", "fifo", "--ledger", "l.db")]
)
def test_the_wait_for_a_writer_is_reported(tmp_path, args):
    os.mkfifo(tmp_path / "fifo")
    with started(*args, cwd=tmp_path) as celeriac:
        celeriac.wait_for_stderr("waiting for a program that writes to fifo\n")
        (tmp_path / "fifo").write_text("true\n")
        assert celeriac.wait().status == 0


def test_a_quiet_run_waits_for_a_writer_without_a_word(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    writers: list[int] = []
    with started("run", "fifo", "--quiet", cwd=tmp_path) as celeriac:
        until(lambda: open_writer(tmp_path / "fifo", writers), "the wait for a writer")
        assert celeriac.process.stderr is not None
        assert select.select([celeriac.process.stderr], [], [], 2 * WAIT_REPORTED)[0] == []
        os.write(writers[0], b"true\n")
        os.close(writers[0])
        ended = celeriac.wait()
    assert (ended.status, ended.err) == (0, "")


@pytest.mark.parametrize(
    "args", [("logs", "jobs", "1", "--follow"), ("logs", "jobs", "1", "-f", "--err"), ("show", "--follow")]
)
def test_a_command_that_follows_a_run_ends_with_its_reader(tmp_path, args):
    file, ready, go = two_steps(tmp_path)
    with started("run", file, "-j1", "--ledger", "ledger.db", cwd=tmp_path) as runner:
        until(ready.exists, "the start of the first command")
        with started(*args, "--ledger", "ledger.db", cwd=tmp_path) as celeriac:
            for pipe in (celeriac.process.stdout, celeriac.process.stderr):
                assert pipe is not None
                pipe.close()
            assert celeriac.process.wait(END_TIMEOUT) == 1
        assert runner.process.poll() is None
        go.touch()
        assert runner.wait().status == 1


def open_writer(fifo: Path, writers: list[int]) -> bool:
    """Open the FIFO if a reader waits for that. Return whether one does."""
    with contextlib.suppress(OSError):
        writers.append(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
    return bool(writers)
