"""A program on a terminal that the test reads like a person: an emulator behind a real pseudo-terminal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pyte

from tests.support.cli_runner import END_TIMEOUT, WAIT_TIMEOUT

ALTERNATE_SCREEN_ON, ALTERNATE_SCREEN_OFF = b"\x1b[?1049h", b"\x1b[?1049l"


class Terminal:
    """A `celeriac` process on a terminal of a given size."""

    def __init__(self, *args: str, cwd: Path, columns: int, lines: int, env: Mapping[str, str] | None = None) -> None:
        self._master, slave = pty.openpty()
        self._slave = slave
        self.screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self.screen)
        self.output = b""
        self._set_size(columns, lines)
        self.settings_before = termios.tcgetattr(slave)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "celeriac", *args],
            cwd=cwd,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "TERM": "xterm-256color", **(env or {})},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )

    def resize(self, columns: int, lines: int) -> None:
        self.screen.resize(lines, columns)
        self._set_size(columns, lines)
        os.killpg(self.process.pid, signal.SIGWINCH)

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def text(self) -> str:
        """Return what the screen shows now."""
        return "\n".join(line.rstrip() for line in self.screen.display)

    def wait_for(self, condition: str | Callable[[str], object]) -> str:
        """Return the text of the screen once it holds a text, or fulfils a condition."""
        deadline = time.monotonic() + WAIT_TIMEOUT
        while not (condition in self.text() if isinstance(condition, str) else condition(self.text())):
            assert time.monotonic() < deadline, f"the screen did not show {condition!r}:\n{self.text()}"
            self._read()
        return self.text()

    def wait(self) -> int:
        """Return the exit status."""
        deadline = time.monotonic() + END_TIMEOUT
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it did not end:\n{self.text()}"
            self._read()
        while self._read():
            pass
        return self.process.wait()

    @property
    def is_clean(self) -> bool:
        """Whether the program left the alternate screen, the cursor and the settings as it found them."""
        left = self.output.rfind(ALTERNATE_SCREEN_OFF) >= self.output.rfind(ALTERNATE_SCREEN_ON)
        return left and not self.screen.cursor.hidden and termios.tcgetattr(self._slave) == self.settings_before

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)
        os.close(self._slave)

    def _read(self) -> bool:
        """Draw what the program has written, if there is any within a moment."""
        if not select.select([self._master], [], [], 0.05)[0]:
            return False
        with contextlib.suppress(OSError):
            written = os.read(self._master, 65_536)
            self.output += written
            self._stream.feed(written)
        return True

    def _set_size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))


@contextlib.contextmanager
def on_terminal(
    *args: str, cwd: Path, columns: int = 100, lines: int = 30, env: Mapping[str, str] | None = None
) -> Iterator[Terminal]:
    terminal = Terminal(*args, cwd=cwd, columns=columns, lines=lines, env=env)
    try:
        yield terminal
    finally:
        terminal.close()
