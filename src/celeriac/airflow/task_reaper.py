"""A small process beside a worker: ends what the worker's children run once the worker has fallen silent.

worker: its lease is good ─► a moment, written to a pipe ─► guardian ─► silent for too long: TERM, then KILL

A worker that is frozen, or cut off from the store of claims, cannot see to that itself; and its children have no thread
that could. Who is silent for 10 s is taken for dead, so what it runs must have ended by then.

More is not needed. A try that runs elsewhere by then is one that Airflow has counted anew: its API server refuses the
old one's next heartbeat, its XComs and its end, and the old supervisor kills its task for that. This here is for what
the task does meanwhile.
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
TICK = 0.5  # seconds between two looks
MOMENT = struct.Struct("=d")  # seconds of the monotonic clock, which all processes of a machine share
MOST = 512 * MOMENT.size  # bytes read at once


class TaskReaper:
    """The worker's side: starts with the first word, and again should it have been killed."""

    def __init__(self, children: Path) -> None:
        """`children` is the folder where they leave notes: see `watched`."""
        self._children = children
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = False

    def heartbeat(self) -> None:
        """What runs may go on for a while. Does not wait."""
        with self._lock:
            if self._ended:
                return
            if self._process is None or self._process.poll() is not None:
                self._restart()
                self._process = self._begun()
            assert self._process.stdin is not None  # noqa: S101 - as begun
            with suppress(BlockingIOError, BrokenPipeError):  # frozen and with enough to read, or killed this moment
                os.write(self._process.stdin.fileno(), MOMENT.pack(time.monotonic()))

    def end(self) -> None:
        with self._lock:
            self._ended = True
            self._restart()

    def _begun(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "celeriac.airflow.task_reaper", str(os.getpid()), str(self._children)],
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C at the terminal is for the worker to act on
        )
        assert process.stdin is not None  # noqa: S101 - for the type checker
        os.set_blocking(process.stdin.fileno(), False)
        return process

    def _restart(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()


# — the process —


class Watch:
    def __init__(self, worker: int, children: Path) -> None:
        self._worker, self._children = worker, children
        self._told_to_end: dict[psutil.Process, float] = {}
        self._lease = LeasePolicy(oversleep_limit=OVERSLEEP_LIMIT)

    def run(self) -> None:
        """As long as the worker lives. What it ran when it died ends by itself."""
        while os.getppid() == self._worker:
            readable, _, _ = select.select([sys.stdin], [], [], TICK)
            if readable and not (moments := os.read(sys.stdin.fileno(), MOST)):
                return
            now = time.monotonic()
            if readable:
                (sent_at,) = MOMENT.unpack(moments[-MOMENT.size :])
                self._lease.record_heartbeat(sent_at, now)
            grace = self._lease.grace(now)
            if grace is None:
                self._told_to_end.clear()
            else:
                self._end_what_runs(grace)

    def _end_what_runs(self, grace: float) -> None:
        for child in self._at_work():
            silenced(self._children, child.pid).touch()
            with suppress(psutil.NoSuchProcess):
                below = child.children(recursive=True)
                for process in below or [child]:  # a callback may run in the child itself
                    with suppress(psutil.NoSuchProcess):
                        self._end(process, grace if below else inf)

    def _end(self, process: psutil.Process, grace: float) -> None:
        now = time.monotonic()
        told = self._told_to_end.setdefault(process, now)
        if now - told >= grace:
            process.kill()
        elif told == now:
            process.terminate()

    def _at_work(self) -> Iterator[psutil.Process]:
        """A process that has ended may have left its number to another one."""
        for file in self._children.glob(watched(self._children, "*").name):
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(int(file.name.rpartition("-")[2]))
                if process.ppid() == self._worker:
                    yield process


def watched(children: Path, child: int | str) -> Path:
    """The note of a child that runs something."""
    return children / f"watched-{child}"


def silenced(children: Path, child: int) -> Path:
    """The note for a child whose task was ended by the guardian."""
    return children / f"silenced-{child}"


if __name__ == "__main__":
    Watch(int(sys.argv[1]), Path(sys.argv[2])).run()
