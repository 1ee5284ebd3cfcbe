"""Checks of this machine: Python, limits of the system, folders. They ask no server."""

from __future__ import annotations

import os
import resource
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from celeriac.control.folder import MAX_NAME, MAX_PATH, folders, keeps_others_out
from celeriac.doctor.check import Check, Problem, Subject, error, warning
from celeriac.doctor.disk import space_problem
from celeriac.worker.supervisor.resources import LEAST_OF_WORKER, commands_that_fit, hard_limit

OLDEST_PYTHON = (3, 11)
PROCESSES_PER_COMMAND = 2  # a shell and what it starts
SPARE_PROCESSES = 20  # of the worker itself: its threads and its supervisor
MANY_PROCESSES = 100_000  # a limit that is not compared with what runs, because counting takes time
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Machine:
    """The use that is made of this machine."""

    concurrency: int
    """How many commands a worker is to run at once."""


# — decisions —


def python_problem(version: tuple[int, ...]) -> Iterator[Problem]:
    if version[:2] < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        yield error(f"Python {version[0]}.{version[1]} is too old", f"install Celeriac with Python {oldest} or newer")


def open_files_problem(limit: int | None, concurrency: int) -> Iterator[Problem]:
    """Yield a problem if the hard limit of open files does not allow so many commands at once."""
    fitting = commands_that_fit(limit, supervisors=1)
    if limit is not None and limit < LEAST_OF_WORKER:
        text = f"the hard limit of {limit:,} open files is too low for a worker"
        yield error(text, f"raise it with ulimit -Hn to {LEAST_OF_WORKER} or more")
    elif limit is not None and concurrency > fitting:
        text = f"with a hard limit of {limit:,} open files, {fitting:,} commands run at once, not {concurrency:,}"
        yield warning(text, "raise it with ulimit -Hn, or give a smaller concurrency")


def processes_problem(room: int | None, concurrency: int) -> Iterator[Problem]:
    """Yield a problem if there is no room for the processes of so many commands. `room` is None without a limit."""
    needed = PROCESSES_PER_COMMAND * concurrency + SPARE_PROCESSES
    if room is not None and room < needed:
        text = f"this user may start {max(0, room):,} more processes, and {concurrency:,} commands may need {needed:,}"
        yield warning(text, "raise the limit (ulimit -u, or the container's), or give a smaller concurrency")


def control_folder_problem(folder: Path, *, exists: bool, private: bool, may_create: bool) -> Iterator[Problem]:
    if exists and not private:
        yield warning(
            f"{folder} is not a folder that this user alone may enter, so runs open no control socket",
            "remove it, or set XDG_RUNTIME_DIR to a folder of your own with mode 700",
        )
    elif not exists and not may_create:
        yield warning(
            f"{folder} cannot be created, so runs open no control socket",
            "set XDG_RUNTIME_DIR to a folder of your own with mode 700",
        )


# — facts —


def process_room() -> int | None:
    """Return how many more processes and threads this user may start; None without a limit."""
    rooms = []
    soft = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if os.geteuid() != 0 and soft not in (resource.RLIM_INFINITY, -1) and soft < MANY_PROCESSES:
        rooms.append(soft - own_processes())
    if (room := cgroup_room(CGROUP)) is not None:
        rooms.append(room)
    return min(rooms, default=None)


def own_processes() -> int:
    """Return how many processes and threads this user has: the limit counts both."""
    user, number = os.geteuid(), 0
    for process in psutil.process_iter(["uids", "num_threads"]):
        uids = process.info["uids"]
        if uids is not None and uids.real == user:
            number += process.info["num_threads"] or 1
    return number


def cgroup_room(cgroup: Path) -> int | None:
    """Return how many more processes this container may start; None without a limit."""
    try:
        return int((cgroup / "pids.max").read_text()) - int((cgroup / "pids.current").read_text())
    except (OSError, ValueError):  # no control group, or no limit: "max"
        return None


def look_at_temporary_folder(_: Machine) -> Iterator[Problem]:
    try:
        folder = tempfile.gettempdir()
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as problem:
        yield error(
            f"no temporary file can be made: {problem.strerror or problem}", "set TMPDIR to a folder to write in"
        )
        return
    yield from space_problem(Path(folder))


def look_at_control_folder(_: Machine) -> Iterator[Problem]:
    folder = next((each for each in folders() if len(os.fsencode(each)) + 1 + MAX_NAME <= MAX_PATH), None)
    if folder is not None:
        try:
            status = folder.lstat()  # once: the last executor that uses the folder removes it, at any moment
        except OSError:
            status = None
        may_create = os.access(folder.parent, os.W_OK | os.X_OK)
        private = status is not None and keeps_others_out(status)
        yield from control_folder_problem(folder, exists=status is not None, private=private, may_create=may_create)


CHECKS: tuple[Check[Machine], ...] = (
    Check(
        id="python",
        sound="this Python is new enough",
        risk="Celeriac does not start.",
        look=lambda _: python_problem(sys.version_info[:3]),
        describe=lambda _: "Python {}.{}.{}".format(*sys.version_info[:3]),
    ),
    Check(
        id="open-files",
        sound="the limit of open files allows this concurrency",
        risk="Fewer commands run at once than asked for.",
        look=lambda machine: open_files_problem(hard_limit(), machine.concurrency),
    ),
    Check(
        id="processes",
        sound="the limit of processes allows this concurrency",
        risk="Commands wait, or fail when they start processes.",
        look=lambda machine: processes_problem(process_room(), machine.concurrency),
    ),
    Check(
        id="temporary-folder",
        sound="temporary files can be made",
        risk="No command can run.",
        look=look_at_temporary_folder,
    ),
    Check(
        id="control-folder",
        sound="control sockets can be made",
        risk="`celeriac explain` and `celeriac cancel` do not reach a run on this machine.",
        look=look_at_control_folder,
        is_cheap=True,
    ),
)


def machine_subject(concurrency: int) -> Subject[Machine]:
    return Subject("this machine", lambda: Machine(concurrency), CHECKS)
