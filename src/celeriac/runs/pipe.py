"""`run --pipe`: split an input at line ends into blocks, and run a command for each, with the block as its input.

    FILE or standard input ─► thread ─► block files ─► tasks with `stdin_file` ─► Stream

Each block is a file until its job has succeeded. The thread reads on only while few blocks wait, so neither memory nor
disk must hold the whole input. Workers elsewhere get a block in the message of its task.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import replace

from celeriac.errors import InvalidConfig, describe_error
from celeriac.runs.job_file import Problem
from celeriac.runs.kept_output import temporary_folder
from celeriac.runs.run import Stream, Totals
from celeriac.runs.standard_input import STDIN, ByteSource, filled_in_thread
from celeriac.runs.temporary_output import in_use
from celeriac.surviving_loop import Survivor
from celeriac.task.event import Event
from celeriac.task.sent_file import MAX_SIZE, SentFile
from celeriac.task.state import State
from celeriac.task.task import Command, Task, TaskKey

if TYPE_CHECKING:
    from celeriac.executor.executor import CeleryExecutor
    from celeriac.runs.launch import RunContext
    from celeriac.runs.options import JobRunOptions

THREAD = "celeriac-pipe"
BLOCKS_PER_SLOT = 2
MOST_SLOTS = 64  # slots of workers elsewhere for which there are blocks: their number may not be known
BLOCK_OF_MESSAGE = 4 * 1024 * 1024  # bytes


class PipeOptions(Struct, frozen=True, kw_only=True):
    """How to split an input, and the command of each block."""

    command: Command
    block: int
    """Bytes; a block ends with the line that reaches them."""

    is_default: bool = False
    """Whether the user has not given this size."""

    def command_of(self, number: int) -> Command:
        """Return the command of a block. In a text, {#} is its number. Raises `InvalidConfig`."""
        if not isinstance(self.command, str):
            return self.command
        from celeriac.runs.job_file.template import NUMBER, Pattern, UnknownPlaceholder  # late, as are templates

        try:
            return Pattern(self.command, is_quoted=True).fill({NUMBER: str(number)})
        except UnknownPlaceholder as error:
            raise InvalidConfig("--template", str(error), error.remedy) from None


class BlockTooLong(Exception):
    """A block that no message can carry."""


class Room:
    """How many more blocks there may be."""

    def __init__(self, blocks: int) -> None:
        self._free, self._is_closed = blocks, False
        self._changed = threading.Condition()

    def take(self) -> bool:
        """Wait until there may be another block. Return False if there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._free > 0 or self._is_closed)
            self._free -= 1
            return not self._is_closed

    def give_back(self) -> None:
        with self._changed:
            self._free += 1
            self._changed.notify()

    def close(self) -> None:
        """End the wait for room."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()


class Blocks:
    """The blocks of one run: also a watcher, which removes the block of each job that has succeeded."""

    records_all = False

    def __init__(
        self, file: str, options: PipeOptions, fields: Mapping[str, Any], parallelism: int, *, is_local: bool = True
    ) -> None:
        """`fields` are those of each task. If it is not local, workers elsewhere get the blocks. Raises `InvalidConfig`
        and `InvalidTask`."""
        self._file, self._options, self._fields, self._is_local = file, options, fields, is_local
        Task(key="1", command=options.command_of(1), **fields)  # raises
        check_readable(file)
        self._room = Room(BLOCKS_PER_SLOT * (parallelism if is_local else min(parallelism, MOST_SLOTS)))
        self._folder = Path()

    @contextmanager
    def stream(self, report_problem: Callable[[Problem], None], wake: Callable[[], None]) -> Iterator[Stream]:
        """Split the input in a thread. `wake` is called after each block."""
        self._folder = temporary_folder()
        with in_use(self._folder), opened(self._file) as descriptor:
            source = ByteSource(descriptor)
            filled = filled_in_thread(
                THREAD,
                source,
                lambda: self._tasks(source),
                self._problem_of,
                report_problem=report_problem,
                wake=wake,
            )
            with filled as stream:
                try:
                    yield stream
                finally:
                    self._room.close()

    def _problem_of(self, error: Exception) -> Problem:
        if not isinstance(error, OSError | BlockTooLong):  # the first, such as a full disk
            Survivor(THREAD).record(error)
        why = str(error) if isinstance(error, BlockTooLong) else describe_error(error)
        text = f"the rest could not be split: {why}"
        return Problem(self._file, None, None, text, "run the rest of it again")

    def _tasks(self, source: ByteSource) -> Iterator[Task]:
        number = 1
        while self._room.take():
            path = self._folder / str(number)
            try:
                is_block = write_block(source, path, self._options.block) and not source.is_closed
            except BaseException:
                path.unlink(missing_ok=True)
                raise
            if not is_block:
                path.unlink(missing_ok=True)
                return
            if not self._is_local and path.stat().st_size > MAX_SIZE:
                path.unlink()
                why = f"a line makes block {number} longer than {MAX_SIZE:,} bytes, which is too much for a message"
                raise BlockTooLong(why)
            command = self._options.command_of(number)
            input_of_task = str(path) if self._is_local else SentFile(path)
            yield Task(key=str(number), command=command, stdin_file=input_of_task, **self._fields)
            number += 1

    def on_queued(self, jobs: Iterable[tuple[TaskKey, Command]]) -> None: ...

    def on_event(self, event: Event, command: Command | None) -> None:
        if event.state.is_final:
            if event.state is State.SUCCESS:
                with suppress(OSError):
                    os.unlink(self._folder / str(event.key))  # noqa: PTH108 - as fast as possible
            self._room.give_back()

    def on_tick(self, totals: Totals, executor: CeleryExecutor) -> None: ...

    def on_interrupt(self, totals: Totals, executor: CeleryExecutor) -> None:
        self._room.close()

    def on_revoke(self, waiting: int) -> None: ...


def blocks_of(options: JobRunOptions, context: RunContext) -> Blocks:
    """Return what splits the input of --pipe. Raises `InvalidInput`."""
    pipe, is_local = options.pipe, context.connection is None
    if pipe is None:
        raise ValueError("there is no --pipe")
    if not is_local and pipe.block > BLOCK_OF_MESSAGE:
        if not pipe.is_default:
            problem = f"{pipe.block:,} bytes are too much for the message that takes a block to a worker elsewhere"
            raise InvalidConfig("--block", problem, f"give at most {BLOCK_OF_MESSAGE:,}, or --local")
        pipe = replace(pipe, block=BLOCK_OF_MESSAGE)
    return Blocks(str(options.file), pipe, options.defaults, context.config.parallelism, is_local=is_local)


def write_block(source: ByteSource, path: Path, size: int) -> bool:
    """Write the next block to a file: up to the end of the line that reaches `size` bytes. Return whether there was
    one."""
    written = 0
    with path.open("wb") as file:
        while data := source.read():
            end = 0
            if written + len(data) >= size:
                end = data.find(b"\n", max(0, size - written - 1)) + 1
            file.write(data[:end] if end else data)
            written += end or len(data)
            if end:
                source.unread(data[end:])
                break
    return written > 0


@contextmanager
def opened(file: str) -> Iterator[int]:
    """Yield a descriptor of the input."""
    if file == "-":
        yield STDIN
        return
    descriptor = os.open(file, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def check_readable(file: str) -> None:
    """Raise `InvalidConfig` if the input cannot be read."""
    if file == "-":
        return
    try:
        if Path(file).is_dir():
            raise IsADirectoryError(0, "it is a directory")
        if not os.access(file, os.R_OK):
            Path(file).open("rb").close()  # raises the error that says why
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidConfig("--pipe", f"{file}: {reason}", "name a file, or - for standard input") from None
