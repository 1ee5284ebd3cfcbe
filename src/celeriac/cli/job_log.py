"""`--joblog`: a line for each task that has ended, in the format of GNU parallel."""

from __future__ import annotations

import re
import shlex
import signal
import stat
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Self

from celeriac.cli.command_output import CANNOT_START, NO_PROGRAM, status_of
from celeriac.cli.messages import print_message
from celeriac.errors import InvalidConfig
from celeriac.task.event import Event
from celeriac.task.result import Execution, Reason
from celeriac.task.task import Command, TaskKey
from celeriac.worker.outcome import HOST

if TYPE_CHECKING:
    from celeriac.executor.executor import CeleryExecutor
    from celeriac.ledger.views import TaskView
    from celeriac.runs.run import Totals

OPTION = "--joblog"
HEADER = b"Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand\n"
LOCAL = ":"  # what GNU parallel calls this machine
UNKNOWN = -1  # what GNU parallel writes for a job that has no exit status
SEQ = re.compile(rb"(\d{1,18})\t")


def check_job_log(path: str) -> None:
    """Raise `InvalidConfig` unless the file is a log of jobs, or can be made. It may be a job file or other data."""
    try:
        begin = begin_of(path)
    except FileNotFoundError:
        if not Path(path).absolute().parent.is_dir():
            raise InvalidConfig(OPTION, f"{path}: its folder does not exist", "make it, or name another file") from None
        return
    except (OSError, ValueError) as error:
        raise unusable(path, error) from None
    if begin and begin != HEADER:
        raise InvalidConfig(OPTION, f"{path} exists and is no log of jobs", "remove it, or name another file")


def begin_of(path: str) -> bytes:
    """Return the first bytes of a file; none of a device and a pipe. Raises `OSError`."""
    if not stat.S_ISREG(Path(path).stat().st_mode) and not Path(path).is_dir():
        return b""
    with Path(path).open("rb") as file:
        return file.read(len(HEADER))


def write_job_log(path: str, tasks: Iterable[TaskView]) -> None:
    """Write a line for the last attempt of each task that has ended and was started, in place of an earlier log.

    Raises `InvalidConfig`.
    """
    check_job_log(path)
    try:
        with Path(path).open("wb") as file:
            file.write(HEADER)
            for view in tasks:
                event = view.last_event()
                if view.state.is_final and event.execution is not None and was_started(event):
                    file.write(log_line(view.place + 1, event, event.execution, view.task.command))
    except OSError as error:
        raise unusable(path, error) from None


class JobLog:
    """A watcher that writes a line as soon as a task has ended. After a write error it writes no more; the run goes
    on."""

    records_all = False

    def __init__(self, path: str, *, appends: bool = False) -> None:
        """Open the file. With `appends`, keep the lines of an earlier run. Raises `InvalidConfig`."""
        check_job_log(path)
        self._path, self._broken = path, False
        self._jobs: dict[TaskKey, tuple[int, Command]] = {}
        """The number and the command of each job that has not ended."""

        self._last = 0
        try:
            begin = Path(path).read_bytes() if appends and Path(path).is_file() else b""
            self._last = max((int(match[1]) for match in map(SEQ.match, begin.splitlines()) if match), default=0)
            self._file = open_log(path, appends=bool(begin))
            if not begin:
                self._file.write(HEADER)
            elif not begin.endswith(b"\n"):  # the end of a process that was killed
                self._file.write(b"\n")
        except OSError as error:
            raise unusable(path, error) from None

    def on_queued(self, jobs: Iterable[tuple[TaskKey, Command]]) -> None:
        for number, (key, command) in enumerate(jobs, self._last + 1):
            self._jobs[key] = number, command
            self._last = number

    def on_event(self, event: Event, command: Command | None) -> None:
        if not event.state.is_final:
            return
        number, text = self._jobs.pop(event.key, (0, command or ""))
        if event.execution is None or self._broken or not was_started(event):
            return
        try:
            line = log_line(number, event, event.execution, text)
            while line:
                line = line[self._file.write(line) or 0 :]
        except OSError as error:
            self._broken = True
            print_message(f"{OPTION}: {self._path}: {error.strerror}; later tasks are not logged")

    def on_tick(self, totals: Totals, executor: CeleryExecutor) -> None:
        totals.record_lost |= self._broken

    def on_interrupt(self, totals: Totals, executor: CeleryExecutor) -> None:
        """Nothing to log."""

    def on_revoke(self, waiting: int) -> None:
        """Nothing to log."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()


def open_log(path: str, *, appends: bool) -> BinaryIO:
    """Open the file without a buffer: a line is there as soon as it is written. Raises `OSError`."""
    return Path(path).open("ab" if appends else "wb", buffering=0)


def was_started(event: Event) -> bool:
    """Return whether a task was started, or could not be."""
    return event.reason is Reason.NOT_STARTED or (event.execution is not None and event.execution.started is not None)


def log_line(number: int, event: Event, execution: Execution, command: Command) -> bytes:
    duration = execution.duration or 0.0
    started = event.when - duration if execution.started is None else execution.started
    exit_value, signal_number = end_of(event, execution)
    text = command if isinstance(command, str) else shlex.join(command)
    cells = (
        str(number),
        LOCAL if execution.host == HOST else execution.host,
        f"{started:.3f}",
        f"{duration:10.3f}",
        "0",
        str(execution.stdout.size),
        str(exit_value),
        str(signal_number),
        text.replace("\n", "\0"),  # as GNU parallel does, so that each job has one line
    )
    return "\t".join(cells).encode(errors="surrogateescape") + b"\n"


def end_of(event: Event, execution: Execution) -> tuple[int, int]:
    """Return the exit status and the number of the signal that ended a command, as GNU parallel writes them."""
    number = 0
    if execution.signal is not None:
        name = execution.signal.removeprefix("signal ")  # a real-time signal has a number alone
        number = int(name) if name.isdecimal() else signal.Signals[name].value
    if event.reason is Reason.TIMEOUT:
        return UNKNOWN, number or signal.SIGTERM.value
    if number:
        return 0, number
    if event.reason is Reason.NOT_STARTED:
        return (NO_PROGRAM if status_of(event) == NO_PROGRAM else CANNOT_START), 0
    return UNKNOWN if execution.exit_code is None else execution.exit_code, 0


def unusable(path: str, error: OSError | ValueError) -> InvalidConfig:
    problem = error.strerror if isinstance(error, OSError) else str(error)
    return InvalidConfig(OPTION, f"{path}: {problem}", "name a file that can be written")
