"""Carry out one plan: start the command line, let things happen to it, and collect how it ended."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import psutil
import redis

from tests.support.cli_runner import MARK, WAIT_TIMEOUT
from tests.support.environments.judge import Outcome
from tests.support.environments.plan import (
    FOLDER,
    JOBS,
    PORT,
    REDIS,
    STARTED,
    Action,
    CloseReader,
    CloseTerminal,
    Plan,
    Resize,
    Send,
    Stream,
    Terminal,
)
from tests.support.servers import RedisServer, free_port

HANG = 120.0  # seconds after which a run counts as hanging
STOP_TIMEOUT = 15.0  # seconds between two signals to a partner
END_OF_INPUT = b"\n\x04\x04"  # on a terminal
CELERIAC = (sys.executable, "-m", "celeriac")
READ_SIZE = 65_536  # bytes


class Session:
    """The servers and files that the runs share: a Redis, and a ledger of which each run gets a copy."""

    def __init__(self, folder: Path, server: RedisServer) -> None:
        self._ledger, self._redis = folder / "ledger.db", server
        folder.mkdir()
        (folder / "old.txt").write_text("echo output; echo error >&2; exit 3\n")
        (folder / "waiting.txt").write_text("true\n" * JOBS)
        self._run("run", "old.txt", "-o", "out", "--ledger", "ledger.db", cwd=folder)
        self._run("submit", "waiting.txt", "--ledger", "ledger.db", cwd=folder)

    @staticmethod
    def _run(*args: str, cwd: Path) -> None:
        subprocess.run([*CELERIAC, *args], cwd=cwd, check=False, capture_output=True, timeout=HANG)

    def prepare(self, folder: Path, database: int) -> str:
        """Make the folder of a run, and empty a database of the Redis. Return its URL."""
        folder.mkdir()
        for name, path in (("jobs.jsonl", STARTED), ("at-redis.jsonl", f"{folder}/{STARTED}")):
            lines = (f'{{"key": "{n}", "command": "echo {n} >> {path}"}}\n' for n in range(JOBS))
            (folder / name).write_text("".join(lines))
        (folder / "failing.txt").write_text("exit 3\n")
        (folder / "bad.jsonl").write_text('{"key": 1}\n')
        shutil.copy(self._ledger, folder)
        url = f"{self._redis.url.removesuffix('/0')}/{database}"
        with redis.Redis.from_url(url) as client:
            client.flushdb()
        return url


def run_plan(plan: Plan, folder: Path, session: Session, database: int = 0) -> Outcome:
    """Carry out a plan in a new folder, with a database of the Redis for it alone."""
    url = session.prepare(folder, database)
    if plan.owner is not None:
        os.chown(folder, plan.owner, plan.owner)
    places = {FOLDER: str(folder), REDIS: url, PORT: str(free_port())}
    # A run as another user would leave a folder that all later tests must refuse. Its path must be short.
    with TemporaryDirectory(prefix="celeriac-run-") as runtime:
        environment = {**os.environ, "XDG_RUNTIME_DIR": runtime}
        with partner_of(plan, folder, places, environment) as partner:
            process = Process(plan, folder, places, environment)
            status = process.wait()
    numbers = [number for path in folder.rglob(STARTED) for number in path.read_text().split()]
    return Outcome(status, process.out, process.err, numbers, process.survivors(), "".join(partner))


@contextlib.contextmanager
def partner_of(plan: Plan, folder: Path, places: dict[str, str], environment: dict[str, str]) -> Iterator[list[str]]:
    """Run the partner meanwhile, if there is one. Yield a list that gets what it wrote to standard error."""
    err: list[str] = []
    if not plan.command.partner:
        yield err
        return
    command = [*CELERIAC, *filled(plan.command.partner, places)]
    with (folder / "partner.err").open("wb+") as file:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=file, start_new_session=True
        )
        try:
            yield err
        finally:
            for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
                process.send_signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_TIMEOUT)
                    break
        file.seek(0)
        err.append(file.read().decode(errors="replace"))


class Process:
    """The process of a plan, with the other ends of its standard streams."""

    def __init__(self, plan: Plan, folder: Path, places: dict[str, str], environment: dict[str, str]) -> None:
        self._mark = str(uuid4())
        self._actions = list(plan.actions)
        self._texts = {1: bytearray(), 2: bytearray()}
        self._readers: dict[int, int] = {}
        """Descriptor to read from ─► number of the standard stream."""

        self._terminal: int | None = None
        variables = {**environment, **plan.env, MARK: self._mark}
        ends = self._open_streams(plan.terminal)
        self._process = subprocess.Popen(
            [*plan.started_by, *CELERIAC, *filled(plan.command.args, places)],
            cwd=folder,
            stdin=ends[0],
            stdout=ends[1],
            stderr=ends[2],
            env={name: fill(value, places) for name, value in variables.items() if value is not None},
            start_new_session=True,
            preexec_fn=None if plan.terminal is None else lambda: take_terminal(ends),
        )
        self._began = time.monotonic()
        for end in set(ends):
            os.close(end)
        self._input = plan.command.stdin
        if self._terminal is not None and self._stdin == self._terminal:
            self._input = self._input[:100] + END_OF_INPUT
        os.set_blocking(self._stdin, False)

    @property
    def out(self) -> str:
        return self._texts[1].decode(errors="replace")

    @property
    def err(self) -> str:
        return self._texts[2].decode(errors="replace")

    def wait(self) -> int | None:
        """Read, write and act until the process has ended. Return its status; None if it hangs, and is killed."""
        ended = os.pidfd_open(self._process.pid)
        try:
            while time.monotonic() < self._began + HANG:
                if ended in self._poll(ended):
                    self._read_rest()
                    return self._process.wait()
            self._process.kill()
            self._process.wait()
            self._read_rest()
            return None
        finally:
            os.close(ended)
            terminal = () if self._terminal is None else (self._terminal,)
            for descriptor in {self._stdin, *terminal, *self._readers} - {-1}:
                with contextlib.suppress(OSError):
                    os.close(descriptor)

    def survivors(self) -> list[str]:
        """Return the processes that it left. If a signal has ended it, its supervisors need a moment to notice."""
        left = [other for other in psutil.process_iter() if mark_of(other) == self._mark]
        if self._process.returncode != 0:
            _, left = psutil.wait_procs(left, timeout=WAIT_TIMEOUT)
        return [str(other) for other in left]

    def _open_streams(self, terminal: Terminal | None) -> tuple[int, int, int]:
        """Return the ends that the process gets."""
        streams = (Stream.PIPE,) * 3 if terminal is None else terminal.streams
        slave = -1
        if terminal is not None:
            self._terminal, slave = pty.openpty()
            set_size(self._terminal, terminal.columns, terminal.rows)
            self._readers[self._terminal] = 2
        ends = [slave, slave, slave]
        for number, stream in enumerate(streams):
            if stream is Stream.PIPE:
                read, write = os.pipe()
                ends[number], other = (read, write) if number == 0 else (write, read)
                if number == 0:
                    self._stdin = other
                else:
                    self._readers[other] = number
            elif number == 0:
                self._stdin = self._terminal if self._terminal is not None else -1
        return ends[0], ends[1], ends[2]

    def _poll(self, ended: int) -> list[int]:
        """Wait for the next thing, and deal with it. Return what is readable."""
        now = time.monotonic() - self._began
        while self._actions and self._actions[0][0] <= now:
            self._act(self._actions.pop(0)[1])
        timeout = min(1.0, self._actions[0][0] - now) if self._actions else 1.0
        writes = [self._stdin] if self._input and self._stdin != -1 else []
        readable, writable, _ = select.select([ended, *self._readers], writes, [], max(0.0, timeout))
        if writable:
            self._write()
        for descriptor in readable:
            if descriptor != ended:
                self._read(descriptor)
        if not self._input and self._stdin not in (-1, self._terminal):
            os.close(self._stdin)
            self._stdin = -1
        return readable

    def _write(self) -> None:
        try:
            self._input = self._input[os.write(self._stdin, self._input[:READ_SIZE]) :]
        except BlockingIOError:
            pass
        except OSError:  # its reader has gone
            self._input = b""

    def _read(self, descriptor: int) -> bool:
        """Return whether there may be more."""
        try:
            data = os.read(descriptor, READ_SIZE)
        except BlockingIOError:
            return False
        except OSError:  # no stream of the process is the terminal; to close our end would send it a HUP
            self._readers.pop(descriptor)
            return False
        self._texts[self._readers[descriptor]] += data
        if not data:
            self._close(descriptor)
        return bool(data)

    def _read_rest(self) -> None:
        for descriptor in list(self._readers):
            os.set_blocking(descriptor, False)
            while self._read(descriptor):
                pass

    def _close(self, descriptor: int) -> None:
        os.close(descriptor)
        self._readers.pop(descriptor, None)
        if descriptor == self._stdin:
            self._stdin, self._input = -1, b""
        if descriptor == self._terminal:
            self._terminal = None

    def _act(self, action: Action) -> None:
        match action:
            case Send(number):
                self._process.send_signal(number)
            case Resize(columns, rows):
                if self._terminal is not None:
                    set_size(self._terminal, columns, rows)
            case CloseTerminal():
                if self._terminal is not None:
                    self._close(self._terminal)
            case CloseReader():
                for descriptor in set(self._readers) - {self._terminal}:
                    self._close(descriptor)


def take_terminal(ends: tuple[int, int, int]) -> None:
    """Make the terminal control this process, which leads a new session."""
    for end in ends:
        if os.isatty(end):
            fcntl.ioctl(end, termios.TIOCSCTTY, 0)
            return


def set_size(terminal: int, columns: int, rows: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def filled(args: tuple[str, ...], places: dict[str, str]) -> list[str]:
    return [fill(arg, places) for arg in args]


def fill(text: str, places: dict[str, str]) -> str:
    for name, place in places.items():
        text = text.replace(name, place)
    return text


def mark_of(process: psutil.Process) -> str | None:
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else process.environ().get(MARK)
    except (psutil.Error, OSError):
        return None
