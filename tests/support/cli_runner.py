"""Run `celeriac` as a user would: in another process, with files and signals. Find processes that it left alive."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import psutil
from click.testing import CliRunner

MARK = "CELERIAC_TEST_MARK"
WAIT_TIMEOUT = 30.0  # seconds that a condition may take to become true before the test fails
END_TIMEOUT = 240.0  # seconds that a process may take to end before the test fails
STATUS_FIELDS = ("State", "PPid", "Threads", "Sig", "Shd")  # of /proc/PID/status
PROGRESS_LINE = re.compile(r"^[\d,]+/[\d,]+ done, .*\n", re.MULTILINE)
PASSWORD_WARNING = re.compile(r"^celeriac: other users of this machine can read the password in .*\n", re.MULTILINE)


@dataclass(frozen=True)
class Ended:
    status: int
    out: str
    err: str

    @property
    def summary(self) -> dict[str, Any]:
        summary: dict[str, Any] = json.loads(self.out)
        return summary


class Celeriac:
    """One `celeriac` process, with a mark in its environment that everything it starts inherits."""

    def __init__(
        self,
        *args: str | Path,
        cwd: Path,
        stdin: int | None = None,
        stdout: IO[bytes] | None = None,
        env: dict[str, str] | None = None,
        log: IO[bytes] | None = None,
        program: str = "celeriac",
        python: str = sys.executable,
        before: Sequence[str] = (),
    ) -> None:
        """Start the process. `log` receives its standard error, which `wait_for_stderr` and `wait` read otherwise.

        `before` is a command that starts it.
        """
        self.mark = str(uuid4())
        self.process = subprocess.Popen(
            [*before, python, "-m", program, *map(str, args)],
            cwd=cwd,
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=stdout or subprocess.PIPE,
            stderr=log or subprocess.PIPE,
            env={**os.environ, **(env or {}), MARK: self.mark},
            start_new_session=True,
        )

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """Kill the process, and wait until its commands have ended. A command that runs later is a new attempt."""
        self.signal(signal.SIGKILL)
        self.process.wait()
        self.wait_until_nothing_is_alive()

    def wait_until_nothing_is_alive(self) -> None:
        """Wait until all processes with the mark have ended. Fail after the timeout, and say what lives."""
        try:
            until(lambda: self.alive() == [], "the end of everything it started")
        except AssertionError as error:
            raise AssertionError("\n".join((str(error), *self._details()))) from None

    def wait(self) -> Ended:
        out, err = self.process.communicate(timeout=END_TIMEOUT)
        return Ended(self.process.returncode, out.decode(), without_progress(err.decode()))

    def wait_for_stderr(self, text: str) -> str:
        """Return its standard error up to the text. Fail if the text does not come in time."""
        assert self.process.stderr is not None
        output = b""
        deadline = time.monotonic() + END_TIMEOUT
        while text.encode() not in output:
            readable, _, _ = select.select([self.process.stderr], [], [], max(0.0, deadline - time.monotonic()))
            assert readable, f"it did not print {text!r} in {END_TIMEOUT:g} s: {output.decode()}"
            more = os.read(self.process.stderr.fileno(), 4096)
            assert more, f"it ended without printing {text!r}: {output.decode()}"
            output += more
        return output.decode()

    def alive(self) -> list[str]:
        """Return the command lines of living processes with the mark."""
        return [line for _, line in self._marked()]

    def groups_with(self, text: str) -> set[int]:
        """Return the process groups with `text` in a command line. A shell that forks is one group, not two."""
        found = set()
        for pid, line in self._marked():
            with contextlib.suppress(ProcessLookupError):
                if text in line:
                    found.add(os.getpgid(pid))
        return found

    def _marked(self) -> Iterator[tuple[int, str]]:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    yield process.pid, " ".join(process.cmdline())

    def _details(self) -> Iterator[str]:
        """Yield what tells why a process with the mark is still alive: its state, its parent and its signals."""
        for pid, line in self._marked():
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{pid}/status").read_text().splitlines()
                yield f"{pid} {line}: {' '.join(field for field in status if field.startswith(STATUS_FIELDS))}"

    def supervisors(self) -> list[psutil.Process]:
        return [c for c in psutil.Process(self.process.pid).children() if "supervisor" in " ".join(c.cmdline())]


@contextlib.contextmanager
def started(*args: str | Path, cwd: Path, **kwargs: Any) -> Iterator[Celeriac]:
    celeriac = Celeriac(*args, cwd=cwd, **kwargs)
    try:
        yield celeriac
    finally:
        if celeriac.process.poll() is None:
            celeriac.signal(signal.SIGKILL)
        for pipe in (celeriac.process.stdin, celeriac.process.stdout, celeriac.process.stderr):
            if pipe is not None:
                pipe.close()
        celeriac.process.wait()


def run(
    *args: str | Path,
    cwd: Path,
    stdin: bytes | None = None,
    env: dict[str, str] | None = None,
    python: str = sys.executable,
    before: Sequence[str] = (),
) -> Ended:
    """Run to the end. Fail if a process stays alive."""
    given = subprocess.PIPE if stdin is not None else None
    with started(*args, cwd=cwd, stdin=given, env=env, python=python, before=before) as celeriac:
        if stdin is not None and celeriac.process.stdin is not None:
            celeriac.process.stdin.write(stdin)
            celeriac.process.stdin.close()
            celeriac.process.stdin = None
        ended = celeriac.wait()
        assert celeriac.alive() == []
    return ended


def run_in_process(*args: str | Path, cwd: Path, env: dict[str, str] | None = None) -> Ended:
    """Run a command in this process, for commands that only read and start nothing."""
    from celeriac.cli import main

    with contextlib.chdir(cwd):
        result = CliRunner(env=env).invoke(main, [*map(str, args)], prog_name="celeriac")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ended(result.exit_code, result.stdout, result.stderr)


def until(condition: Callable[[], object], what: str, timeout: float = WAIT_TIMEOUT) -> None:
    """Wait until a condition is true. Fail after the timeout."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout:g} s"
        time.sleep(0.01)  # between two checks of the condition


def small_files(limit: int) -> tuple[str, ...]:
    """Return a command that starts another one, whose files may have `limit` bytes.

    It writes no bytecode: Python keeps a file that the limit has cut off, and no later process could import it.
    """
    return ("prlimit", f"--fsize={limit}", "env", "PYTHONDONTWRITEBYTECODE=1")


def without_progress(err: str) -> str:
    """Return standard error without its progress lines. A run longer than 5 s prints some, and on a slow machine every
    run may be longer."""
    return PROGRESS_LINE.sub("", err)


def without_password_warning(err: str) -> str:
    """Return standard error without the warning of a password in an option, which most tests give there."""
    return PASSWORD_WARNING.sub("", err)


def jobs(folder: Path, *lines: dict[str, Any] | str, name: str = "jobs.jsonl") -> Path:
    path = folder / name
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path
