"""One command, from its request to its report."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

from celeriac.worker.supervisor.capture import Capture

INFINITY = float("inf")
UNWATCHED = 0.01  # seconds: a pipe holds what a short command says, and need not be watched for it
LINGER = 0.5  # seconds that processes left in the group may take to end by themselves
UNKILLABLE = 5.0  # seconds after KILL until a process stuck in the kernel is left to it
START_RETRY = 0.1  # seconds between two tries when the system has no process or memory to give
START_PATIENCE = 10.0  # seconds of such tries
OUT_OF_SOMETHING = {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
TASK_ID_VARIABLE = "CELERIAC_TASK_ID"
WORKER_GONE = "worker gone"


class Loop(Protocol):
    """What a command needs of the supervisor around it."""

    null: int
    leaders: dict[int, Command]
    closing: set[Command]

    @property
    def going(self) -> bool: ...
    def reap(self) -> None: ...
    def watch(self, descriptor: int, callback: Callable[[], None]) -> None: ...
    def unwatch(self, descriptor: int) -> None: ...
    def call_at(self, when: float, callback: Callable[[], None]) -> None: ...
    def signal_orphans(self, task_id: str, number: int) -> None: ...


class Command:
    """One command, from request to report."""

    def __init__(self, supervisor: Loop, reply: Callable[[dict[str, Any]], None], request: dict[str, Any]) -> None:
        self.supervisor, self._reply = supervisor, reply
        self.id: str = request["id"]
        self.grace: float = request["grace"]
        self.timeout: float | None = request["timeout"]
        self._start_by: float = INFINITY if request["start_by"] is None else request["start_by"]
        """On the monotonic clock, which is one for all processes of a machine."""

        self._argv: list[str] = request["argv"]
        self._cwd: str | None = request["cwd"]
        self._env: dict[str, str] = {**request["env"], TASK_ID_VARIABLE: self.id}
        output = request["output"]
        self.stdout = Capture(output["stdout"], output["cap"], output["keep_empty"])
        self.stderr = Capture(output["stderr"], output["cap"], output["keep_empty"])
        self.pid: int | None = None
        self.status: int | None = None
        self.peak_memory: int | None = None
        self.stopped: str | None = None
        self.leftovers_ended = False
        self.error: dict[str, Any] | None = None
        self.started, self._started = time.time(), time.monotonic()
        self._watched: set[Capture] = set()
        self._killed = self.finished = False

    def start(self) -> None:
        if self.finished:
            return
        if time.monotonic() >= self._start_by:
            self.stopped = "too late"
            self.finish()
            return
        try:
            with environment(self._env):
                process = subprocess.Popen(
                    self._argv,
                    stdin=self.supervisor.null,
                    stdout=self.stdout.write_end,
                    stderr=self.stderr.write_end,
                    cwd=self._cwd,
                    process_group=0,
                    close_fds=False,  # every descriptor here closes by itself when a program starts
                )
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            self._not_started(error)
            return
        self.pid = process.pid
        process.returncode = 0  # reaped by the supervisor: Popen is to keep its hands off
        self._close_write_ends()
        self.supervisor.leaders[self.pid] = self
        self.supervisor.call_at(self._started + UNWATCHED, self._watch_output)
        if self.timeout is not None:
            self.supervisor.call_at(self._started + self.timeout, lambda: self.stop("timeout"))

    def stop(self, why: str, grace: float | None = None) -> None:
        """TERM to the process group now, KILL after the grace. The first reason counts, and the shortest grace."""
        if self.finished or (self.stopped and grace is None):
            return
        if self.stopped is None:
            self._signal(signal.SIGTERM)
            if why == WORKER_GONE and self.status is not None:  # it had ended by itself, and only its leftovers run
                self.leftovers_ended = True
            else:
                self.stopped = why
        if self.pid is None:  # still waiting for a process to be had
            self.finish()
            return
        self.supervisor.call_at(time.monotonic() + (self.grace if grace is None else grace), self.kill)

    def kill(self) -> None:
        if self.finished:
            return
        self._killed = True
        self._signal(signal.SIGKILL)
        self.supervisor.call_at(time.monotonic() + UNKILLABLE, self.finish)

    def on_exit(self, status: int, peak_memory: int) -> None:
        """The command itself has ended. What it left in its group gets a moment, then TERM, then KILL."""
        self.status, self.peak_memory = status, peak_memory
        if self._group_is_empty():
            self.finish()
        else:
            self.supervisor.closing.add(self)
            self.supervisor.call_at(time.monotonic() + LINGER, self._end_leftovers)

    def check_closed(self) -> None:
        if not self.finished and self._group_is_empty():
            self.finish()

    def finish(self) -> None:
        if self.finished:
            return
        self.finished = True
        self.supervisor.closing.discard(self)
        self._close_write_ends()
        for stream in (self.stdout, self.stderr):
            if stream in self._watched:
                self.supervisor.unwatch(stream.read_end)
            stream.drain()
            stream.close()
        self._reply(self._report())

    def _report(self) -> dict[str, Any]:
        return {
            "pid": self.pid,
            "status": self.status,
            "started": self.started,
            "duration": time.monotonic() - self._started,
            "peak_memory": self.peak_memory,
            "stopped": self.stopped,
            "leftovers_ended": self.leftovers_ended,
            "error": self.error,
            "output_error": self.stdout.error or self.stderr.error,
            "stdout": self.stdout.report(),
            "stderr": self.stderr.report(),
        }

    def _not_started(self, error: Exception) -> None:
        number = getattr(error, "errno", None)
        if number in OUT_OF_SOMETHING and time.monotonic() < min(self._started + START_PATIENCE, self._start_by):
            self.supervisor.call_at(time.monotonic() + START_RETRY, self.start)
            return
        about_cwd = self._cwd is not None and getattr(error, "filename", None) == self._cwd
        self.error = {"errno": number, "about": "cwd" if about_cwd else "program", "text": str(error)}
        self.finish()

    def _watch_output(self) -> None:
        if self.finished:
            return
        for stream in (self.stdout, self.stderr):
            self._watched.add(stream)
            self.supervisor.watch(stream.read_end, partial(self._on_output, stream))

    def _on_output(self, stream: Capture) -> None:
        if not stream.pump():
            self.supervisor.unwatch(stream.read_end)
            self._watched.discard(stream)

    def _end_leftovers(self) -> None:
        if self.finished or self._group_is_empty():
            return
        self.leftovers_ended = True
        if not self._killed:
            self._signal(signal.SIGTERM)
            self.supervisor.call_at(time.monotonic() + self.grace, self.kill)

    def _signal(self, number: int) -> None:
        if self.pid is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):  # gone, or no longer ours to signal
            os.killpg(self.pid, number)
        self.supervisor.signal_orphans(self.id, number)

    def _group_is_empty(self) -> bool:
        try:
            os.killpg(self.pid or 0, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False

    def _close_write_ends(self) -> None:
        for stream in (self.stdout, self.stderr):
            if stream.write_end >= 0:
                os.close(stream.write_end)
                stream.write_end = -1


@contextlib.contextmanager
def environment(changes: dict[str, str]) -> Iterator[None]:
    """Our own environment with some changes, for a child to inherit: cheaper than to encode all of it for each."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
