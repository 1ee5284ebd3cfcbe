"""A small process beside a worker: it ends the workloads of the worker's children when the worker is silent.

worker: its lease is good ─► the time, written to a pipe ─► task reaper ─► no time for too long: TERM, then KILL

A worker that is frozen, or cut off from the claims store, cannot do this, and its children have no thread for it.
Others declare a worker dead after 10 s of silence, so its workloads must have ended by then.

Airflow itself handles a second try that starts meanwhile: its API server rejects the next heartbeat, the XComs and the
end of the old try, and the old supervisor then kills its task. The reaper ends the task before that.

It also ends tasks whose supervisor is dead, with the whole worker or alone: the kernel sends them TERM, and the part of
Airflow in a task calls `on_kill` and goes on. Nothing else would end it, and its next try would run beside it.
"""

from __future__ import annotations

import os
import select
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from math import inf
from pathlib import Path

import psutil

from celeriac.worker.supervisor.lease_policy import LeasePolicy

OVERSLEEP_LIMIT = 2.0  # seconds: see `LeasePolicy`
POLL_INTERVAL = 0.5  # seconds
HEARTBEAT = struct.Struct("=d")  # seconds of the monotonic clock, which all processes of a machine share
MAX_READ = 512 * HEARTBEAT.size  # bytes
MAX_MARKER_DELAY = 5.0  # seconds from the start of a task's process to its marker: its id may be another's by now


class TaskReaper:
    """The worker's side. A heartbeat starts the process again if it was killed."""

    def __init__(self, markers: Path, grace: float) -> None:
        """`markers` is the folder of the children's markers: see `watched_marker`.

        `grace` is the time, in seconds, that a task has for its `on_kill` once its supervisor is dead.
        """
        self._markers, self._grace = markers, grace
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._has_ended = False

    def start(self) -> None:
        """Start the process: from now on no task outlives its supervisor."""
        with self._lock:
            self._process = self._start()

    def heartbeat(self) -> None:
        """Let workloads go on for `SILENCE_LIMIT` more seconds. Does not block."""
        with self._lock:
            if self._has_ended:
                return
            if self._process is None or self._process.poll() is not None:
                self._kill()
                self._process = self._start()
            assert self._process.stdin is not None  # noqa: S101 - `_start` has opened it
            # The process may be frozen, with a full pipe, or killed.
            with suppress(BlockingIOError, BrokenPipeError):
                os.write(self._process.stdin.fileno(), HEARTBEAT.pack(time.monotonic()))

    def end(self) -> None:
        with self._lock:
            self._has_ended = True
            self._kill()

    def _start(self) -> subprocess.Popen[bytes]:
        arguments = [str(os.getpid()), str(self._markers), str(self._grace)]
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "celeriac.airflow.task_reaper", *arguments],
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in the terminal must reach the worker alone
        )
        assert process.stdin is not None  # noqa: S101 - for the type checker
        os.set_blocking(process.stdin.fileno(), False)
        return process

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()


# — the process —


class SilenceMonitor:
    def __init__(self, worker: int, markers: Path, grace: float) -> None:
        self._worker, self._markers, self._grace = worker, markers, grace
        self._orphans: dict[psutil.Process, float] = {}
        """Tasks whose supervisor is dead, and when that was seen."""

        self._seen: dict[str, psutil.Process] = {}
        """The tasks by their markers. A step of the clock changes the start times that the system tells."""

        self._term_sent_at: dict[psutil.Process, float] = {}
        self._lease = LeasePolicy(oversleep_limit=OVERSLEEP_LIMIT)

    def run(self) -> None:
        """Watch the worker until it has ended. Then wait until its tasks have ended, or were killed."""
        while os.getppid() == self._worker:
            readable, _, _ = select.select([sys.stdin], [], [], POLL_INTERVAL)
            if readable and not (data := os.read(sys.stdin.fileno(), MAX_READ)):
                break
            now = time.monotonic()
            self.end_orphans(now)
            if readable:
                (sent_at,) = HEARTBEAT.unpack(data[-HEARTBEAT.size :])
                self._lease.record_heartbeat(sent_at, now)
            grace = self._lease.grace(now)
            if grace is None:
                self._term_sent_at.clear()
            else:
                self._end_workloads(grace)

        while self.end_orphans(time.monotonic()):
            time.sleep(POLL_INTERVAL)  # these are no children of this process

    def end_orphans(self, now: float) -> bool:
        """Kill the tasks whose supervisor has been dead for the grace. Return whether any of them still runs."""
        orphans = {task for task, child in self._tasks() if not self._is_child(child)}
        self._orphans = {task: self._orphans.get(task, now) for task in orphans}
        for task, since in self._orphans.items():
            if now - since >= self._grace:
                with suppress(psutil.Error):
                    for process in [*task.children(recursive=True), task]:
                        with suppress(psutil.Error):
                            process.kill()
        return bool(orphans)

    def _tasks(self) -> Iterator[tuple[psutil.Process, int]]:
        """Yield the tasks that run, and the process ids of their supervisors. Remove the markers of the others."""
        for marker in self._markers.glob(task_marker(self._markers, "*", "*").name):
            _, child, task = marker.name.split("-")
            with suppress(psutil.NoSuchProcess, FileNotFoundError):
                process = self._seen.get(marker.name) or psutil.Process(int(task))
                if self._is_of(marker, process) and process.status() != psutil.STATUS_ZOMBIE:
                    self._seen[marker.name] = process
                    yield process, int(child)
                    continue
            self._seen.pop(marker.name, None)
            marker.unlink(missing_ok=True)

    def _is_of(self, marker: Path, process: psutil.Process) -> bool:
        """Return whether this process has made the marker, and still runs."""
        if marker.name in self._seen:
            return process.is_running()
        return bool(abs(process.create_time() - marker.stat().st_mtime) < MAX_MARKER_DELAY)

    def _is_child(self, pid: int) -> bool:
        """Return whether this is a living child of the living worker."""
        if os.getppid() != self._worker:
            return False
        try:
            process = psutil.Process(pid)
            return bool(process.ppid() == self._worker and process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    def _end_workloads(self, grace: float) -> None:
        for child in self._watched_children():
            reaped_marker(self._markers, child.pid).touch()
            with suppress(psutil.NoSuchProcess):
                descendants = child.children(recursive=True)
                for process in descendants or [child]:  # a callback may run in the child itself
                    with suppress(psutil.NoSuchProcess):
                        self._end(process, grace if descendants else inf)

    def _end(self, process: psutil.Process, grace: float) -> None:
        now = time.monotonic()
        term_sent_at = self._term_sent_at.setdefault(process, now)
        if now - term_sent_at >= grace:
            process.kill()
        elif term_sent_at == now:
            process.terminate()

    def _watched_children(self) -> Iterator[psutil.Process]:
        """Yield the children with a workload. Skip processes that reuse the id of a child that has ended."""
        for marker in self._markers.glob(watched_marker(self._markers, "*").name):
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(int(marker.name.rpartition("-")[2]))
                if process.ppid() == self._worker:
                    yield process


def watched_marker(markers: Path, child: int | str) -> Path:
    """Return the marker of a child that runs a workload."""
    return markers / f"watched-{child}"


def task_marker(markers: Path, child: int | str, task: int | str) -> Path:
    """Return the marker of a task's process, with its supervisor's process id. The task makes it when it begins."""
    return markers / f"task-{child}-{task}"


def reaped_marker(markers: Path, child: int) -> Path:
    """Return the marker of a child whose workload the task reaper has ended."""
    return markers / f"reaped-{child}"


if __name__ == "__main__":
    SilenceMonitor(int(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])).run()
