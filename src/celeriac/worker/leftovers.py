"""Find and kill processes that a killed supervisor left behind, and remove its scratch folders and control groups."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from celeriac.worker.supervisor.command import KILL_TIMEOUT
from celeriac.worker.supervisor_start import SUPERVISOR_VARIABLE

if TYPE_CHECKING:
    import psutil

POLL_INTERVAL = 0.005  # seconds between two checks whether killed processes are dead


class ProcessInfo(NamedTuple):
    """A living process."""

    pid: int
    session: int
    mark: str | None
    """The mark of its supervisor; None if there is none, or if the process belongs to another user."""


def kill_leftovers_of(mark: str, session: int) -> None:
    """Kill the processes of one supervisor that has just ended, and wait until they are dead."""
    kill_all(lambda: [process.pid for process in processes() if process.session == session or process.mark == mark])
    remove_folders_of(mark)


def remove_folders_of(*marks: str) -> None:
    """Remove the scratch folders and the control groups of supervisors that have ended."""
    from celeriac.worker.supervisor.control_groups import remove_groups_of  # late, as in `processes`
    from celeriac.worker.supervisor.scratch import base_of, remove_if_abandoned

    for mark in marks:
        remove_if_abandoned(base_of(mark))
    remove_groups_of(*marks)


def kill_left_behind(supervisors: Mapping[str, int]) -> None:
    """Kill the processes of former supervisors, given by mark and process id, and wait until they are dead.

    The system may have reused a process id and its session number. So a session is killed only if a process in it
    carries the mark.
    """

    def left_behind() -> list[int]:
        others = [process for process in processes() if process.pid != os.getpid()]
        sessions = {other.session for other in others if other.mark and supervisors.get(other.mark) == other.session}
        return [other.pid for other in others if other.session in sessions or other.mark in supervisors]

    kill_all(left_behind)
    remove_folders_of(*supervisors)


def kill_all(find: Callable[[], list[int]]) -> None:
    """Kill the processes that `find` returns, until it returns none. Give up after `KILL_TIMEOUT`."""
    deadline = time.monotonic() + KILL_TIMEOUT
    while (pids := find()) and time.monotonic() < deadline:  # find again: a killed process may just have forked
        for pid in pids:
            with contextlib.suppress(OSError):  # the process has ended, or belongs to another user
                os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_INTERVAL)  # no event reports the end of processes that are not our children


def processes() -> Iterator[ProcessInfo]:
    """Yield all living processes."""
    import psutil  # late: a run whose supervisors end by themselves does not need it

    for process in psutil.process_iter():
        with contextlib.suppress(OSError):  # the process has just ended
            session, mark = os.getsid(process.pid), None
            with contextlib.suppress(psutil.Error, OSError):  # it belongs to another user
                mark = process.environ().get(SUPERVISOR_VARIABLE)
            if is_alive(process):
                yield ProcessInfo(process.pid, session, mark)


def is_alive(process: psutil.Process) -> bool:
    """Return whether a process exists and is no zombie: a zombie may stay until its parent reaps it."""
    import psutil

    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
