"""Start the process of a supervisor.

`celeriac run` calls `start_early` before it imports anything else. So the supervisor loads on another processor while
the run does, and has nothing to do until it is taken.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence

import celeriac
from celeriac.secret_variables import VARIABLES

SUPERVISOR_VARIABLE = "CELERIAC_SUPERVISOR"
"""This variable holds the supervisor's mark in each process that it starts. So its processes can be found after it was
killed."""

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(celeriac.__file__)))  # noqa: PTH100, PTH120 - without `pathlib`
BOOTSTRAP = """
import gc, sys
gc.set_threshold(50_000)
sys.path.insert(0, sys.argv[1])
from celeriac.worker.supervisor.loop import main
main(int(sys.argv[2]))
"""
NEEDS_NONE = ("-h", "--help", "--dry-run", "--broker", "--broker-file")
"""Arguments of a run that needs no supervisor here."""

early: list[StartedProcess] = []
"""The process that `start_early` has started, until it is taken."""


class StartedProcess:
    """A process that waits for its setup: see `celeriac.worker.supervisor.setup`."""

    def __init__(self, folder: str | None = None, *, inherits_streams: bool) -> None:
        """`folder` is the working folder, by default that of this process. `inherits_streams` says whether it has the
        standard streams of this process; otherwise it has only standard error."""
        self.inherits_streams = inherits_streams
        self.mark = os.urandom(16).hex()
        self.control, other_end = socket.socketpair()
        try:
            with other_end:
                self.process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", BOOTSTRAP, ROOT, str(other_end.fileno())],
                    pass_fds=[other_end.fileno()],
                    stdin=None if inherits_streams else subprocess.DEVNULL,
                    stdout=None if inherits_streams else subprocess.DEVNULL,
                    env={
                        **{name: value for name, value in os.environ.items() if name not in VARIABLES},
                        SUPERVISOR_VARIABLE: self.mark,
                        **({} if folder is None else {"PWD": folder}),
                    },
                    cwd=folder,
                    start_new_session=True,  # Ctrl-C at the terminal must reach the worker alone
                )
        except BaseException:
            self.control.close()
            raise


def start_early(arguments: Sequence[str]) -> None:
    """Start a process if these arguments of `celeriac` are those of a local run. It may turn out not to be needed."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if options[:1] != ["run"] or any(option.partition("=")[0] in NEEDS_NONE for option in options):
        return
    try:
        for descriptor in range(3):
            os.fstat(descriptor)  # the sockets must not get the number of a standard stream that is closed
        early.append(StartedProcess(inherits_streams=True))
    except (OSError, MemoryError):  # the run finds out why, and says so
        return


def take(folder: str | None, *, inherits_streams: bool) -> StartedProcess:
    """Return the process that was started early, or a new one."""
    if folder is None and early:
        return early.pop()
    return StartedProcess(folder, inherits_streams=inherits_streams)


def discard_early() -> None:
    """End the process that was started early, if it was not taken. It has started no command."""
    while early:
        unused = early.pop()
        unused.process.kill()
        unused.process.wait()
        unused.control.close()
