"""What a task wrote: where it is, and how it comes here unchanged.

of an attempt that has ended ─► the file its execution names, or else the last lines, and a note
of one that runs             ─► the file it will name: as far as it goes, or with -f to its end
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from celeriac.cli.control_options import FAILED, complain
from celeriac.errors import InvalidConfig
from celeriac.ledger.database import Database
from celeriac.ledger.views import RunState, RunView, TaskView, earlier_events, find_run, find_task
from celeriac.task.result import Execution, Output
from celeriac.task.state import State
from celeriac.worker.output import OutputPolicy

LOOK = 0.2  # seconds between two looks at what is followed
SURE = 5  # looks in a row at which nobody runs it: a run that has just begun has no owner for a moment


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    streams: tuple[str, ...]
    attempt: int | None


@dataclass(slots=True)
class Followed:
    """One stream of an attempt that may still be running. Opened as soon as it is there: it may be removed."""

    path: Path
    to: BinaryIO
    file: BinaryIO | None = None

    def pump(self) -> None:
        """What has come since the last call."""
        if self.file is None:
            try:
                self.file = self.path.open("rb")
            except OSError:
                return
        if os.fstat(self.file.fileno()).st_size < self.file.tell():  # it was of an earlier task with this key
            self.file.seek(0)
        shutil.copyfileobj(self.file, self.to)
        self.to.flush()

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


@dataclass(slots=True)
class Attempts:
    """A task's attempts, as the ledger has them now."""

    run: RunView
    task: TaskView
    ended: dict[int, Execution | None] = field(default_factory=dict)

    @property
    def last_begun(self) -> int | None:
        """None if it has not begun, or never will."""
        if self.task.state is State.RUNNING:
            return self.task.task.attempt
        return max((number for number, execution in self.ended.items() if execution is not None), default=None)

    def is_running(self, number: int) -> bool:
        return self.task.state is State.RUNNING and self.task.task.attempt == number

    @property
    def is_over(self) -> bool:
        return self.task.state.is_final


def show_output(store: Database, run: str, key: str, wanted: Wanted, *, follow: bool) -> int:
    """Answers with the exit status. Raises `InvalidConfig` for a run, a task or an attempt that is not there."""
    if follow:
        return follow_output(lambda: attempts_of(store, run, key), wanted)
    attempts = attempts_of(store, run, key)
    number = wanted.attempt or attempts.last_begun
    if number is None:
        never = "never began" if attempts.is_over else "has not begun"
        complain(f"task {key!r} of run {run!r} {never}")
        return FAILED
    if number in attempts.ended:
        show_ended(attempts.ended[number], wanted)
    elif attempts.is_running(number):
        show_so_far(attempts, number, wanted)
    else:
        raise InvalidConfig("--attempt", f"task {key!r} has had none of number {number}", said(attempts))
    return 0


def attempts_of(store: Database, run: str, key: str) -> Attempts:
    found = find_run(store, run, counted=False)
    task = find_task(store, found, key)
    ids = (task.task.id, f"{task.task.id}.")  # else of an earlier task with this key
    moves = [move for move in earlier_events(store, found.id, key) if move.id == ids[0] or move.id.startswith(ids[1])]
    failed = {move.attempt: move.execution for move in moves if move.state is State.WAITING}
    attempts = Attempts(found, task, failed)
    if task.state.is_final:
        attempts.ended[task.task.attempt] = task.execution
    return attempts


def said(attempts: Attempts) -> str:
    last = attempts.last_begun
    return "it has not begun" if last is None else f"the last that began is {last}"


# — of an attempt that has ended —


def show_ended(execution: Execution | None, wanted: Wanted) -> None:
    for name in wanted.streams:
        if execution is not None:
            show_stream(getattr(execution, name), execution.host, name)


def show_stream(output: Output, host: str, name: str) -> None:
    to = target(name)
    why = "no file was kept of it"
    if output.path is not None:
        if host != socket.gethostname():
            why = f"its file is on {host}: {output.path}"
        else:
            try:
                with Path(output.path).open("rb") as file:
                    shutil.copyfileobj(file, to)
            except FileNotFoundError:
                why = f"{output.path} is gone"
            except PermissionError as error:
                why = f"{output.path}: {error.strerror}"
            else:
                to.flush()
                return
    tail = output.tail.encode()
    to.write(tail)
    to.flush()
    if output.size > len(tail):
        complain(f"{name}: these are the last of {output.size:,} bytes; {why}")


def target(name: str) -> BinaryIO:
    return sys.stdout.buffer if name == "stdout" else sys.stderr.buffer


# — of one that runs —


def show_so_far(attempts: Attempts, number: int, wanted: Wanted) -> None:
    files = followed(attempts, number, wanted)
    for file in files:
        file.pump()
        file.close()
    if not files:
        complain("its worker keeps what it writes: the last lines come when it has ended")


def followed(attempts: Attempts, number: int, wanted: Wanted) -> list[Followed]:
    """The files of an attempt, if they are on this machine."""
    if attempts.run.output is None:
        return []
    files = OutputPolicy(directory=Path(attempts.run.output)).request(str(attempts.task.task.key), number).to_json()
    return [Followed(Path(files[stream]), target(stream)) for stream in wanted.streams]


def follow_output(look: Callable[[], Attempts], wanted: Wanted) -> int:
    attempts = look()
    number = wanted.attempt or attempts.last_begun or attempts.task.task.attempt
    if not attempts.is_over and not attempts.is_running(number) and number not in attempts.ended:
        complain(f"task {attempts.task.task.key!r} has not begun: waiting for it")
    while True:
        attempts, is_there = follow_attempt(look, number, wanted)
        if not is_there:
            return FAILED
        if wanted.attempt is not None or (attempts.is_over and attempts.task.task.attempt <= number):
            return 0
        number += 1


def follow_attempt(look: Callable[[], Attempts], number: int, wanted: Wanted) -> tuple[Attempts, bool]:
    """Return at its end, or when it is certain that it will not come."""
    attempts = look()
    files = followed(attempts, number, wanted)
    unowned = 0
    while number not in attempts.ended:
        key = attempts.task.task.key
        if attempts.is_over:
            complain(f"task {key!r} ended without attempt {number}")
            return attempts, False
        unowned = unowned + 1 if attempts.run.state is RunState.INTERRUPTED else 0
        if unowned == SURE:
            complain(f"nobody runs task {key!r} any more: run {attempts.run.name!r} was interrupted")
            return attempts, False
        for file in files if attempts.is_running(number) else ():
            file.pump()
        time.sleep(LOOK)  # a ledger tells nobody that it has changed
        attempts = look()
    show_rest(attempts.ended[number], files, wanted)
    return attempts, True


def show_rest(execution: Execution | None, files: list[Followed], wanted: Wanted) -> None:
    """What was written since the last look; of a stream that could not be followed, as much as was kept."""
    followed_streams = dict(zip(wanted.streams, files, strict=False))
    for name in wanted.streams:
        file = followed_streams.get(name)
        if file is not None and file.file is not None:
            file.pump()
            file.close()
        elif execution is not None:
            show_stream(getattr(execution, name), execution.host, name)
