"""`celeriac run -- COMMAND...`: the output of one command, and its exit status."""

from __future__ import annotations

import contextlib
import errno
import signal
import sys
from collections.abc import Iterable
from typing import BinaryIO

from celeriac.cli.formatting import failure_line
from celeriac.cli.progress import Failures
from celeriac.cli.standard_streams import StandardOutputLost
from celeriac.executor.executor import CeleryExecutor
from celeriac.runs.run import Totals
from celeriac.task.event import Event
from celeriac.task.result import Execution, Output, Reason
from celeriac.task.state import State
from celeriac.task.task import Command, TaskKey
from celeriac.worker.outcome import START_ERRORS

NO_PROGRAM, CANNOT_START, SIGNALLED = 127, 126, 128  # exit statuses, as a shell gives them


class CommandOutput(Failures):
    """Show nothing but the command's own output: its exit status says why it failed, if it does."""

    def on_event(self, event: Event, command: Command | None) -> None:
        if event.state.is_final and event.execution is not None:
            copy_tail(event.execution.stdout, sys.stdout.buffer)
            copy_tail(event.execution.stderr, sys.stderr.buffer)
        if event.state is State.FAILED and event.reason is not Reason.EXIT_CODE:
            self.print(f"failed: {failure_line(event, command)}")


class CommandEnd:
    """A watcher that remembers how the command ended."""

    records_all = False

    def __init__(self) -> None:
        self._event: Event | None = None

    def on_queued(self, jobs: Iterable[tuple[TaskKey, Command]]) -> None:
        """Nothing to remember."""

    def on_event(self, event: Event, command: Command | None) -> None:
        if event.state.is_final:
            self._event = event

    def on_tick(self, totals: Totals, executor: CeleryExecutor) -> None:
        """Nothing to remember."""

    def on_interrupt(self, totals: Totals, executor: CeleryExecutor) -> None:
        """Nothing to remember."""

    def on_revoke(self, waiting: int) -> None:
        """Nothing to print."""

    def exit_status(self, totals: Totals) -> int:
        """Return the exit status of the command; that of the run if the command has none, or was interrupted."""
        if self._event is None or totals.interrupted:
            return totals.exit_status
        return status_of(self._event) or totals.exit_status


def status_of(event: Event) -> int:
    """Return the exit status that a shell gives for a command that ended so; 0 if it has none."""
    if event.reason is Reason.NOT_STARTED:
        is_missing = (event.detail or "").endswith(START_ERRORS[errno.ENOENT])
        return NO_PROGRAM if is_missing else CANNOT_START
    return 0 if event.execution is None else status_of_execution(event.execution)


def status_of_execution(execution: Execution) -> int:
    if execution.signal is None:
        return execution.exit_code or 0
    name = execution.signal.removeprefix("signal ")  # a real-time signal has a number alone
    return SIGNALLED + (int(name) if name.isdecimal() else signal.Signals[name])


def copy_tail(output: Output, file: BinaryIO) -> None:
    """Write the last lines, which are all that a worker elsewhere sends. A command of this machine has written all."""
    with contextlib.suppress(StandardOutputLost):  # the run goes on to its end
        file.write(output.tail.encode())
        file.flush()
