"""Find and kill processes that a killed supervisor left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import psutil

from celeriac.worker.supervisor.command import KILL_TIMEOUT

SUPERVISOR_VARIABLE = "CELERIAC_SUPERVISOR"
"""The mark of a supervisor, in the environment of everything it starts: its processes can be found after it was
killed."""

POLL_INTERVAL = 0.005  # seconds between two checks whether killed processes are dead


class ProcessInfo(NamedTuple):
    """A living process."""

    pid: int
    session: int
    mark: str | None
    """The mark of its supervisor; None if it has none, or belongs to another user."""


def kill_leftovers_of(mark: str, session: int) -> None:
    """Kill the processes of one supervisor that has just ended, and wait until they are dead."""
    kill_all(lambda: [each.pid for each in processes() if each.session == session or each.mark == mark])


def kill_left_behind(supervisors: Mapping[str, int]) -> None:
    """Kill the processes of former supervisors, given by mark and process id, and wait until they are dead.

    Another process may have that process id by now, and another session that number. So a session counts only if a
    process in it carries the mark.
    """

    def left_behind() -> list[int]:
        others = [each for each in processes() if each.pid != os.getpid()]
        sessions = {each.session for each in others if each.mark and supervisors.get(each.mark) == each.session}
        return [each.pid for each in others if each.session in sessions or each.mark in supervisors]

    kill_all(left_behind)


def kill_all(find: Callable[[], list[int]]) -> None:
    """Kill the processes that `find` returns until it returns none, or until the kernel does not let them die."""
    deadline = time.monotonic() + KILL_TIMEOUT
    while (pids := find()) and time.monotonic() < deadline:  # again: a killed process may just have forked
        for pid in pids:
            with contextlib.suppress(OSError):  # it has ended, or belongs to another user
                os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_INTERVAL)  # they are not our children: no event tells when they are dead


def processes() -> Iterator[ProcessInfo]:
    """Yield all living processes."""
    for process in psutil.process_iter():
        with contextlib.suppress(OSError):  # it has just ended
            session, mark = os.getsid(process.pid), None
            with contextlib.suppress(psutil.Error, OSError):  # another user's
                mark = process.environ().get(SUPERVISOR_VARIABLE)
            if is_alive(process):
                yield ProcessInfo(process.pid, session, mark)


def is_alive(process: psutil.Process) -> bool:
    """Return whether a process exists and is no zombie: a zombie may stay until its parent reaps it."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
