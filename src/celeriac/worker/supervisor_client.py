"""The supervisor process as the worker sees it, and the lanes to it. What travels is told in `supervisor`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import celeriac
from celeriac.config.signing import VARIABLES
from celeriac.worker.supervisor.capture import READ_SIZE
from celeriac.worker.supervisor.command import UNKILLABLE
from celeriac.worker.supervisor.connection import FRAME, HEARTBEAT

SUPERVISOR_VARIABLE = "CELERIAC_SUPERVISOR"
"""Set in the environment of everything a supervisor starts, so that it can be found when the supervisor was killed."""

TICK = 0.005  # seconds between two looks whether what was killed is dead
SHUTDOWN_PATIENCE = 15.0  # seconds for the supervisor to end what runs, and itself

ROOT = str(Path(celeriac.__file__).parent.parent)
BOOTSTRAP = """
import sys
sys.path.insert(0, sys.argv[1])
from celeriac.worker.supervisor.loop import main
main(int(sys.argv[2]), *sys.argv[3:])
"""

Report = dict[str, Any]
"""How a command ended, as the supervisor saw it: see `Command._report` in `supervisor.command`."""


class SupervisorDied(Exception):
    """The supervisor was killed while a command ran. In words, what was."""

    def __init__(self, detail: str = "the process that ran it was killed") -> None:
        super().__init__(detail)


@dataclass(frozen=True, slots=True)
class JournalPlace:
    """Where supervisors write down what they run."""

    folder: Path
    """Absolute."""

    lock: int
    """The descriptor of the folder's lock, which is locked. A supervisor holds it too, until it has gone."""


class CommandChannel:
    """A socket to the supervisor: one command at a time."""

    def __init__(self, owner: SupervisorProcess, sock: socket.socket) -> None:
        self.owner, self._socket = owner, sock

    def fileno(self) -> int:
        return self._socket.fileno()

    def start(self, request: dict[str, Any]) -> None:
        """Raises `OSError` if the supervisor has gone."""
        self._send({"run": request})

    def report(self) -> Report:
        """Wait for the end of the command. Raises `OSError` if the supervisor has gone."""
        data = self._receive(b"", FRAME.size)
        end = FRAME.size + FRAME.unpack_from(data)[0]
        report: Report = json.loads(self._receive(data, end)[FRAME.size :])
        return report

    def stop(self, task_id: str, why: str) -> None:
        with contextlib.suppress(OSError):  # the supervisor has gone, and the command with it: `report` says so
            self._send({"stop": why, "id": task_id})

    def close(self) -> None:
        self._socket.close()

    def _send(self, message: dict[str, Any]) -> None:
        data = json.dumps(message).encode()
        self._socket.sendall(FRAME.pack(len(data)) + data)

    def _receive(self, data: bytes, size: int) -> bytes:
        """At least so many bytes, with those already here: nothing follows a report before the next command."""
        while len(data) < size:
            more = self._socket.recv(READ_SIZE)
            if not more:
                raise ConnectionResetError("the supervisor has gone")
            data += more
        return data


class SupervisorProcess:
    """Starts with the object. Everything it ran is dead once `close` or `clean_up` has returned."""

    def __init__(self, journal: JournalPlace | None = None) -> None:
        self.mark = str(uuid4())
        self._control, theirs = socket.socketpair()
        written = [] if journal is None else [str(journal.lock), str(journal.folder), self.mark]
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", BOOTSTRAP, ROOT, str(theirs.fileno()), *written],
                pass_fds=[theirs.fileno(), *([] if journal is None else [journal.lock])],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={
                    **{name: it for name, it in os.environ.items() if name not in VARIABLES},
                    SUPERVISOR_VARIABLE: self.mark,
                },
                start_new_session=True,  # Ctrl-C at the terminal is for the worker to act on
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def open_channel(self) -> CommandChannel:
        ours, theirs = socket.socketpair()
        with theirs, contextlib.suppress(OSError):  # of a supervisor that has gone the lane itself tells
            socket.send_fds(self._control, [b"+"], [theirs.fileno()])
        return CommandChannel(self, ours)

    def heartbeat(self) -> None:
        """Once said, it must be said again before the supervisor's patience ends. Does not wait."""
        with contextlib.suppress(OSError):  # it has gone, or is frozen and has enough to read
            self._control.send(HEARTBEAT, socket.MSG_DONTWAIT)

    def begin_to_end(self) -> None:
        """Have it end everything that runs: TERM, a short grace, KILL. Does not wait."""
        self._control.close()

    def close(self) -> None:
        """End everything that runs, and wait until it is dead."""
        self.begin_to_end()
        try:
            self._process.wait(SHUTDOWN_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self.clean_up()

    def clean_up(self) -> None:
        """Kill what a supervisor left behind that was itself killed."""
        self._control.close()
        if self._process.wait() == 0:
            return
        kill_all(self._left_behind)

    def _left_behind(self) -> list[int]:
        return [pid for pid, session, mark in processes() if session == self._process.pid or mark == self.mark]


def kill_left_behind(supervisors: Mapping[str, int]) -> None:
    """Kill what former supervisors left behind, each known by its mark and its process id.

    That id may be another process's by now, and the session of that name too: it counts only while something in it
    carries the mark.
    """

    def left_behind() -> list[int]:
        seen = [each for each in processes() if each.pid != os.getpid()]
        sessions = {session for _, session, mark in seen if mark and supervisors.get(mark) == session}
        return [pid for pid, session, mark in seen if session in sessions or mark in supervisors]

    kill_all(left_behind)


def kill_all(left: Callable[[], list[int]]) -> None:
    deadline = time.monotonic() + UNKILLABLE
    while (pids := left()) and time.monotonic() < deadline:  # what is killed may just have forked
        for pid in pids:
            with contextlib.suppress(OSError):  # gone, or another user's
                os.kill(pid, signal.SIGKILL)
        time.sleep(TICK)  # they are nobody's children any more: nothing tells when they are dead


class Seen(NamedTuple):
    """A living process."""

    pid: int
    session: int
    mark: str | None


def processes() -> Iterator[Seen]:
    """All that live."""
    import psutil  # for accidents alone, and slow to import

    for process in psutil.process_iter():
        with contextlib.suppress(OSError):  # it has just ended
            session, mark = os.getsid(process.pid), None
            with contextlib.suppress(psutil.Error, OSError):  # another user's
                mark = process.environ().get(SUPERVISOR_VARIABLE)
            if lives(process):
                yield Seen(process.pid, session, mark)


def lives(process: Any) -> bool:
    """A zombie, which its parent is in no hurry to bury, does not."""
    import psutil

    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
