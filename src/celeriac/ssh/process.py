"""One worker that ssh runs: its process, the lines that it writes, and when it is started again."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import time
from pathlib import Path
from random import Random

from celeriac.executor.backoff import backoff
from celeriac.ssh.hosts import Host

SSH = ("ssh", "-T", "-o", "BatchMode=yes", "-o", "ServerAliveInterval=15")
FIRST_DELAY = 1.0  # seconds until a worker is started again
MAX_DELAY = 60.0  # seconds, after many failures
LONG_ENOUGH = 60.0  # seconds after which an end is no failure of the start
ORDER_TO_END = b"TERM\n"
READ_SIZE = 65_536  # bytes
MAX_LINE = 10_000  # bytes


def remote_command(host: Host) -> str:
    """Return what the shell there runs: a worker in this folder if it is there, else in the home folder."""
    program = ["celeriac"] if host.python is None else [host.python, "-m", "celeriac"]
    folder = shlex.quote(str(Path.cwd()))
    return f"cd -- {folder} 2>/dev/null; exec {shlex.join([*program, 'worker', '--stdin'])}"


class HostWorker:
    """The worker of one host. All times are seconds of the monotonic clock."""

    def __init__(self, host: Host, settings: bytes, random: Random) -> None:
        """`settings` is one line for the worker's standard input."""
        self.host, self._settings, self._random = host, settings, random
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._failures = 0
        self._buffer = b""
        self.start_at: float | None = 0.0
        """When it is to be started; None if it runs, or has ended for good."""

    @property
    def is_over(self) -> bool:
        """Whether it has ended and is not started again."""
        return self._process is None and self.start_at is None

    @property
    def output(self) -> int:
        """The descriptor of its output."""
        assert self._process is not None and self._process.stdout is not None  # noqa: S101, PT018 - it was started
        return self._process.stdout.fileno()

    def start(self) -> int:
        """Start it. Return the descriptor of its output. Raises `OSError`."""
        self._process = subprocess.Popen(
            [*SSH, self.host.name, remote_command(self.host)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for this process
        )
        self._started_at, self.start_at, self._buffer = time.monotonic(), None, b""
        self._write(self._settings)
        return self.output

    def read_lines(self) -> list[str] | None:
        """Return the new lines of its output; None at the end of the output."""
        data = os.read(self.output, READ_SIZE)
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        if not data or len(self._buffer) > MAX_LINE:
            lines, self._buffer = [*lines, self._buffer], b""
        if not data and not any(lines):
            return None
        return [line.decode(errors="replace") for line in lines if line]

    def ended(self, *, is_stopping: bool) -> tuple[int, float | None]:
        """Take note of its end. Return its status, and the seconds until it is started again, or None."""
        assert self._process is not None  # noqa: S101 - it was started
        self.close()
        status = self._process.wait()
        self._process = None
        if status == 0 or is_stopping:
            return status, None
        now = time.monotonic()
        self._failures = 1 if now - self._started_at >= LONG_ENOUGH else self._failures + 1
        delay = backoff(FIRST_DELAY, self._failures, MAX_DELAY, self._random)
        self.start_at = now + delay
        return status, delay

    def order_end(self) -> None:
        """Let it drain; the second time, let it end its commands."""
        self.start_at = None
        self._write(ORDER_TO_END)

    def kill(self) -> None:
        """Kill ssh. The worker there sees the end of its input, and drains."""
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        for pipe in () if self._process is None else (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _write(self, data: bytes) -> None:
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError, ValueError):  # it has ended: its output ends, too
                self._process.stdin.write(data)
                self._process.stdin.flush()
