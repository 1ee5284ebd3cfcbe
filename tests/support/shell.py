"""Bash with job control on a pseudo-terminal, as a person has it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Self

from tests.support.cli_runner import END_TIMEOUT, WAIT_TIMEOUT

CTRL_C, CTRL_Z = "\x03", "\x1a"


class Shell:
    """An interactive shell in a folder. `celeriac` is a command in it."""

    def __init__(self, folder: Path) -> None:
        self._master, slave = pty.openpty()
        self.output = ""
        self._bytes = b""
        env = {**os.environ, "PS1": "ready> ", "TERM": "xterm", "HISTFILE": "", "INPUTRC": "/dev/null"}
        self.process = subprocess.Popen(
            ["bash", "--norc", "--noprofile", "--noediting", "-i"],
            cwd=folder,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=env,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self.type(f'celeriac() {{ {sys.executable} -m celeriac "$@"; }}\n')

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def wait_for(self, text: str, *, after: int = 0) -> int:
        """Wait for a text on the terminal, after this number of characters. Return the number up to its end."""
        deadline = time.monotonic() + WAIT_TIMEOUT
        while (found := self.output.find(text, after)) < 0:
            assert time.monotonic() < deadline, f"the terminal did not show {text!r}:\n{self.output[after:]}"
            self._read()
        return found + len(text)

    def _read(self) -> None:
        if select.select([self._master], [], [], 0.1)[0]:
            with contextlib.suppress(OSError):  # the shell has ended
                self._bytes += os.read(self._master, 65_536)
        self.output = self._bytes.decode(errors="replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._master)  # the shell and its jobs get SIGHUP
        try:
            self.process.wait(END_TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
