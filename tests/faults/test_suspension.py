"""Ctrl-Z stops a run with its commands and the clocks of their timeouts; `fg` lets all of them go on."""

from __future__ import annotations

import contextlib
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.support.cli_runner import jobs, started, until
from tests.support.shell import CTRL_C, CTRL_Z, Shell

pytestmark = pytest.mark.celery

COUNTS = "while [ ! -e go ]; do echo >> {0}; sleep 0.02; done"
"""A command that adds lines to a file until `go` exists."""


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def wait_for_growth(*paths: Path) -> None:
    sizes = {path: size_of(path) for path in paths}
    until(lambda: all(size_of(path) > size for path, size in sizes.items()), "that the commands write")


def wait_for_standstill(*paths: Path) -> None:
    """Wait until no file grows while half a second passes."""

    def stands_still() -> bool:
        sizes = [size_of(path) for path in paths]
        time.sleep(0.5)
        return sizes == [size_of(path) for path in paths]

    until(stands_still, "that the commands stop")


def test_ctrl_z_stops_the_commands_and_their_timeouts_and_fg_goes_on(tmp_path):
    jobs(
        tmp_path,
        {"key": "one", "command": COUNTS.format("one"), "timeout": 20},
        {"key": "piped", "command": f"({COUNTS.format('two')}) | cat"},
        {"key": "late", "command": "touch late", "priority": -1},
    )
    files = tmp_path / "one", tmp_path / "two"
    with Shell(tmp_path) as shell:
        shell.type("celeriac run --ledger none -j2 jobs.jsonl\n")
        wait_for_growth(*files)
        shell.type(CTRL_Z)
        shown = shell.wait_for("Stopped", after=shell.wait_for("suspended, with 2 running commands; fg or bg goes on"))
        wait_for_standstill(*files)
        shell.type("fg\n")
        wait_for_growth(*files)
        shell.type(CTRL_Z)  # once more, and then in the background
        shown = shell.wait_for("Stopped", after=shown)
        shell.type("bg\n")
        wait_for_growth(*files)
        assert not (tmp_path / "late").exists()
        (tmp_path / "go").touch()
        shell.wait_for("3 tasks: 3 succeeded, 0 failed", after=shown)


def test_ctrl_c_after_ctrl_z_and_fg_ends_the_run(tmp_path):
    jobs(tmp_path, {"command": COUNTS.format("one")})
    with Shell(tmp_path) as shell:
        shell.type("celeriac run --ledger none jobs.jsonl\n")
        wait_for_growth(tmp_path / "one")
        shell.type(CTRL_Z)
        shown = shell.wait_for("Stopped")
        shell.type("fg\n")
        wait_for_growth(tmp_path / "one")
        shell.type(CTRL_C)
        shown = shell.wait_for("interrupted: starting nothing more", after=shown)
        shell.type(CTRL_C)
        shell.wait_for("1 ended by interrupt", after=shown)


def processes_in(folder: Path, shell: Shell) -> list[psutil.Process]:
    """Return the processes with this working folder, besides the shell."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if Path(process.cwd()) == folder and process.pid != shell.process.pid:
                found.append(process)
    return found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_is_killed_while_it_is_stopped_leaves_no_process_alive(tmp_path, number):
    jobs(tmp_path, {"key": "one", "command": COUNTS.format("one")}, {"key": "two", "command": "touch two"})
    with Shell(tmp_path) as shell:
        shell.type("celeriac run --ledger=ledger.db -j1 jobs.jsonl\n")
        wait_for_growth(tmp_path / "one")
        shell.type(CTRL_Z)
        shell.wait_for("Stopped")
        wait_for_standstill(tmp_path / "one")
        (run,) = [process for process in processes_in(tmp_path, shell) if "jobs.jsonl" in process.cmdline()]
        assert run.status() == psutil.STATUS_STOPPED
        if number == signal.SIGTERM:  # it ends the run when that goes on, as Ctrl-C does
            run.terminate()
            run.send_signal(signal.SIGCONT)
            shell.wait_for("interrupted: starting nothing more")
            run.terminate()
        else:
            run.kill()
        until(lambda: not processes_in(tmp_path, shell), "the end of all processes")
        assert not (tmp_path / "two").exists()


def test_a_group_that_no_shell_can_continue_goes_on_by_itself(tmp_path):
    file = jobs(tmp_path, {"command": COUNTS.format("one")})
    with started("run", file, "--ledger=none", cwd=tmp_path) as celeriac:
        wait_for_growth(tmp_path / "one")
        celeriac.signal(signal.SIGTSTP)  # the kernel does not stop a process of an orphaned group
        wait_for_growth(tmp_path / "one")
        (tmp_path / "go").touch()
        assert celeriac.wait().status == 0
