"""Start the program of a command.

`posix_spawn` takes half of the time of `subprocess`: it makes no pipe for an error, and encodes no environment. But it
cannot change the working folder, and its errors are less exact. So all that it cannot do or start goes to `subprocess`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping

from celeriac.shortages import is_shortage

HAS_SPAWN = sys.platform.startswith("linux")
IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)
"""Signals that Python ignores. A program gets them with their usual effects."""


def spawn(
    argv: list[str],
    env: Mapping[bytes, bytes],
    cwd: str | None,
    streams: tuple[int | None, int | None, int | None],
    enter: Callable[[], None] | None = None,
) -> int:
    """Start a program in a process group of its own, and return its process id. The caller reaps it.

    `streams` are the descriptors of its three standard streams; None for those of this process. The new process calls
    `enter` before it becomes the program. Raises what `subprocess.Popen` does.
    """
    if HAS_SPAWN and cwd is None and enter is None and (program := find_program(argv[0], env)) is not None:
        actions = [(os.POSIX_SPAWN_DUP2, source, target) for target, source in enumerate(streams) if source is not None]
        try:
            return os.posix_spawn(program, argv, env, file_actions=actions, setpgroup=0, setsigdef=IGNORED_BY_PYTHON)
        except OSError as error:
            if is_shortage(error):
                raise
    stdin, stdout, stderr = streams
    process = subprocess.Popen(
        argv,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        cwd=cwd,
        env=env,
        process_group=0,
        preexec_fn=enter,
        close_fds=False,  # every descriptor here closes by itself when a program starts
    )
    process.returncode = 0  # the caller reaps it: Popen must not try to
    return process.pid


def find_program(name: str, env: Mapping[bytes, bytes]) -> bytes | None:
    """Return the path of a program, looked up in the PATH of its environment. Return None if it is not there."""
    program = os.fsencode(name)
    if b"/" in program:
        return program
    for folder in env.get(b"PATH", os.fsencode(os.defpath)).split(b":"):
        path = os.path.join(folder, program)
        if os.access(path, os.X_OK) and os.path.isfile(path):
            return path
    return None
