"""The tasks that the task reaper of Airflow's worker knows by their markers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from celeriac.airflow.task_reaper import MAX_MARKER_DELAY, SilenceMonitor, task_marker

CHILD = 7
STEP = 60.0  # seconds


@pytest.fixture
def task() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


@pytest.fixture
def marker(tmp_path: Path, task: subprocess.Popen[bytes]) -> Path:
    path = task_marker(tmp_path, CHILD, task.pid)
    path.touch()
    return path


def tasks(monitor: SilenceMonitor) -> list[tuple[int, int]]:
    return [(process.pid, child) for process, child in monitor._tasks()]


def set_clock_back(marker: Path) -> None:
    """Let the marker be of a time that differs from the start of its process as after a step of the clock."""
    when = marker.stat().st_mtime + STEP
    os.utime(marker, (when, when))


def test_a_task_is_known_by_its_marker_until_it_ends(tmp_path, task, marker):
    monitor = SilenceMonitor(os.getpid(), tmp_path, grace=1.0)
    assert tasks(monitor) == tasks(monitor) == [(task.pid, CHILD)]
    task.kill()
    task.wait()
    assert tasks(monitor) == []
    assert not marker.exists()


def test_a_task_is_known_after_the_clock_was_set(tmp_path, task, marker):
    monitor = SilenceMonitor(os.getpid(), tmp_path, grace=1.0)
    assert tasks(monitor) == [(task.pid, CHILD)]
    set_clock_back(marker)
    assert tasks(monitor) == [(task.pid, CHILD)]
    assert marker.exists()


def test_a_process_with_the_id_of_an_earlier_task_is_another(tmp_path, task, marker):
    assert STEP > MAX_MARKER_DELAY
    set_clock_back(marker)
    assert tasks(SilenceMonitor(os.getpid(), tmp_path, grace=1.0)) == []
    assert not marker.exists()
