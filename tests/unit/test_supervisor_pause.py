"""A supervisor stops the processes of its commands and the clocks of their timeouts, and lets both go on."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from celeriac.worker.supervisor.messages import CommandRequest, OutputRequest, StopReason
from celeriac.worker.supervisor.timers import Timers
from celeriac.worker.supervisor_client import CommandChannel, SupervisorProcess
from tests.support.cli_runner import until
from tests.support.servers import lives

PAUSE_LENGTH = 1.0  # seconds
LEFT_GROUP = """
import os, sys, time
if os.fork():
    if sys.argv[1] == "waits":
        os.wait()
    os._exit(0)
os.setsid()
with open("pid", "w") as file:
    file.write(str(os.getpid()))
time.sleep(60)
"""
OUTPUT = OutputRequest(stdout=None, stderr=None, cap=0, keep_empty=False)


@pytest.fixture
def supervisor() -> Iterator[SupervisorProcess]:
    with closing(SupervisorProcess()) as process:
        yield process


@pytest.fixture
def channel(supervisor: SupervisorProcess) -> Iterator[CommandChannel]:
    with closing(supervisor.open_channel()) as channel:
        yield channel


def request(script: str, **fields: Any) -> CommandRequest:
    values: dict[str, Any] = {
        "id": "an id",
        "cwd": None,
        "env": {},
        "secrets": [],
        "timeout": None,
        "grace": 1.0,
        "start_by": None,
    }
    return CommandRequest(**{**values, "argv": ["/bin/sh", "-c", script], "output": OUTPUT, **fields})


def start(channel: CommandChannel, supervisor: SupervisorProcess, script: str, **fields: Any) -> psutil.Process:
    """Start a command, and return its process."""
    channel.start(request(script, **fields))
    supervisor_process = psutil.Process(supervisor.pid)
    until(lambda: len(supervisor_process.children()) == 1, "the command")
    return supervisor_process.children()[0]


def is_stopped(process: psutil.Process) -> bool:
    """Return whether a process and its living children are stopped. A stopped shell reaps no child that ended."""
    return all(each.status() == psutil.STATUS_STOPPED for each in [process, *filter(lives, process.children())])


def waits_for(path: Path) -> str:
    return f"until [ -e {path} ]; do sleep 0.02; done"


def test_no_time_passes_for_paused_timers(monkeypatch):
    now = 10.0
    called: list[float] = []
    monkeypatch.setattr(time, "monotonic", lambda: now)
    timers = Timers()
    for when in (11.0, 12.0):
        timers.add(when, partial(called.append, when))
    timers.pause()
    now = 15.0
    timers.add(15.5, lambda: called.append(15.5))
    assert timers.next_at is None
    assert list(timers.take_due(now)) == []
    assert timers.resume() == 5.0
    assert timers.next_at == 15.5  # half a second after the pause, as when it was added
    for callback in timers.take_due(16.0):
        callback()
    assert called == [15.5, 11.0]
    assert timers.next_at == 17.0


def test_a_pause_uses_up_no_timeout_and_is_no_part_of_the_duration(supervisor, channel, tmp_path):
    process = start(channel, supervisor, waits_for(tmp_path / "go"), timeout=20.0)
    began = time.monotonic()
    supervisor.pause()
    until(lambda: is_stopped(process), "that the command stops")
    time.sleep(PAUSE_LENGTH)
    supervisor.resume()
    (tmp_path / "go").touch()
    report = channel.report()
    assert (report.status, report.stopped) == (0, None)
    assert report.duration < time.monotonic() - began


def test_a_timeout_counts_on_after_a_pause(supervisor, channel):
    process = start(channel, supervisor, "exec sleep 60", timeout=1.0)
    supervisor.pause()
    until(lambda: is_stopped(process), "that the command stops")
    time.sleep(2 * PAUSE_LENGTH)
    assert is_stopped(process)
    supervisor.resume()
    assert channel.report().stopped is StopReason.TIMEOUT


def test_a_command_that_comes_during_a_pause_starts_afterwards(supervisor, channel, tmp_path):
    supervisor.pause()
    channel.start(request(f"touch {tmp_path}/ran"))
    time.sleep(PAUSE_LENGTH)
    assert not (tmp_path / "ran").exists()
    supervisor.resume()
    assert channel.report().status == 0
    assert (tmp_path / "ran").exists()


def test_a_second_pause_and_a_second_end_of_it_change_nothing(supervisor, channel, tmp_path):
    process = start(channel, supervisor, waits_for(tmp_path / "go"))
    for _ in range(2):
        supervisor.pause()
    until(lambda: is_stopped(process), "that the command stops")
    for _ in range(2):
        supervisor.resume()
    (tmp_path / "go").touch()
    assert channel.report().status == 0


@pytest.mark.parametrize("parent", ["waits", "ends"])
def test_a_process_that_left_the_group_stops_with_its_command(supervisor, channel, tmp_path, parent):
    (tmp_path / "child.py").write_text(LEFT_GROUP)
    script = f"cd {tmp_path}; {sys.executable} child.py {parent} & {waits_for(tmp_path / 'go')}"
    channel.start(request(script))
    until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), "the process")
    process = psutil.Process(int((tmp_path / "pid").read_text()))
    supervisor.pause()
    until(lambda: is_stopped(process), "that the process stops")
    supervisor.resume()
    until(lambda: not is_stopped(process), "that the process goes on")
    (tmp_path / "go").touch()
    assert channel.report().status == 0


def test_the_end_of_the_worker_ends_commands_that_are_stopped(supervisor, channel):
    process = start(channel, supervisor, "exec sleep 60")
    supervisor.pause()
    until(lambda: is_stopped(process), "that the command stops")
    supervisor.close()
    assert not process.is_running()


def test_a_supervisor_with_heartbeats_does_not_pause(supervisor, channel, tmp_path):
    process = start(channel, supervisor, waits_for(tmp_path / "go"))
    supervisor.heartbeat(time.monotonic())
    supervisor.pause()
    (tmp_path / "go").touch()
    assert channel.report().status == 0
    assert not process.is_running()
