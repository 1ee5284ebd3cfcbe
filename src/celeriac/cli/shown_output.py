"""Show what the commands of a run write, on the standard streams of `celeriac run`.

    group (the default on a terminal)   the whole output of each attempt, when it has ended
    keep-order                          the same, in the order of the jobs
    line-buffer                         each line soon after it was written

The workers of this process write the output to files. A file that only this module needs is removed once it was shown.
"""

from __future__ import annotations

import contextlib
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import BinaryIO

from msgspec import Struct, field

from celeriac.cli.standard_streams import StandardOutputLost
from celeriac.executor.executor import CeleryExecutor
from celeriac.runs.run import Totals
from celeriac.task.event import Event
from celeriac.task.result import Execution
from celeriac.task.state import State
from celeriac.task.task import Command, TaskKey
from celeriac.worker.output import OutputPolicy, remove_file

CHUNK_SIZE = 256 * 1024  # bytes
STREAMS = ("stdout", "stderr")
MAX_HELD = 1024**3  # bytes on disk that wait for their turn before no more tasks start
BACKLOG = "its own output: an earlier job runs, and what has ended behind it waits to be shown"


class OutputStyle(Struct, frozen=True, kw_only=True):
    """How output is shown."""

    by_line: bool = False
    """Whether lines are shown as they are written. Otherwise the output of an attempt is shown when it has ended."""

    in_order: bool = False
    """Whether it is shown in the order of the jobs."""

    is_tagged: bool = False
    """Whether each line begins with the key of its task and a tab."""


class ShownOutput:
    """A watcher that shows the output of each attempt."""

    records_all = False

    def __init__(self, style: OutputStyle, policy: OutputPolicy, clear: Callable[[], None]) -> None:
        """`clear` removes what else is shown at the cursor, before output is written there."""
        self._style, self._policy = style, policy
        self._screen = Screen(clear, is_tagged=style.is_tagged)
        self._live: dict[TaskKey, LiveAttempt] = {}
        self._keys: deque[Iterator[TaskKey]] = deque()
        """The keys of the jobs that come next, in order."""

        self._next: TaskKey | None = None
        self._held: dict[TaskKey, HeldTask] = {}
        """The output of tasks whose turn has not come."""

        self._held_size = 0
        """Bytes of it."""

        self._running: set[TaskKey] = set()

    def on_queued(self, jobs: Iterable[tuple[TaskKey, Command]]) -> None:
        if self._style.in_order:
            self._keys.append(key for key, _ in jobs)

    def on_event(self, event: Event, command: Command | None) -> None:
        if event.state is State.RUNNING:
            self._running.add(event.key)
            if self._style.by_line:
                request = self._policy.request(str(event.key), event.attempt)
                self._live[event.key] = LiveAttempt({"stdout": request.stdout, "stderr": request.stderr})
            return
        self._running.discard(event.key)
        executions = [] if event.execution is None else [event.execution]
        if self._style.by_line:
            for execution in executions:
                self._end_live(event.key, execution)
        elif not self._style.in_order:
            for execution in executions:
                self._show(event.key, execution)
        elif executions or event.state.is_final:
            held = self._held.setdefault(event.key, HeldTask())
            held.executions += executions
            self._held_size += sum(map(size_of, executions))
            held.has_ended = event.state.is_final
            self._show_in_order()

    def on_tick(self, totals: Totals, executor: CeleryExecutor) -> None:
        for key, live in self._live.items():
            self._screen.write(key, live.new_lines())
        if self._style.in_order and totals.ended is None:
            # Only a task that runs can end the backlog by itself: one that waits must be sent.
            is_full = self._held_size > MAX_HELD and self._next in self._running
            executor.adjustments.hold_back(BACKLOG if is_full else None)
        if totals.ended is not None:
            for key, held in self._held.items():
                for execution in held.executions:
                    self._show(key, execution)
            self._held.clear()

    def on_interrupt(self, totals: Totals, executor: CeleryExecutor) -> None:
        """Nothing to show."""

    def on_revoke(self, waiting: int) -> None:
        """Nothing to show."""

    def _show_in_order(self) -> None:
        """Show the tasks that have ended, up to the first one that has not."""
        while True:
            self._next = next(chain.from_iterable(self._keys), None) if self._next is None else self._next
            if self._next is None or (held := self._held.get(self._next)) is None:
                return
            for execution in held.executions:
                self._show(self._next, execution)
                self._held_size -= size_of(execution)
            held.executions.clear()
            if not held.has_ended:
                return
            del self._held[self._next]
            self._next = None

    def _show(self, key: TaskKey, execution: Execution) -> None:
        parts = ((name, part) for name in STREAMS for part in parts_of(getattr(execution, name).path))
        self._screen.write(key, parts)
        self._screen.end(key)
        self._remove(execution)

    def _end_live(self, key: TaskKey, execution: Execution) -> None:
        live = self._live.pop(key, None) or LiveAttempt({name: getattr(execution, name).path for name in STREAMS})
        self._screen.write(key, live.rest())
        self._screen.end(key)
        self._remove(execution)

    def _remove(self, execution: Execution) -> None:
        if not self._policy.keep and execution.exit_code == 0:
            for path in filter(None, (execution.stdout.path, execution.stderr.path)):
                remove_file(path)


class HeldTask(Struct):
    """The output of a task whose turn has not come."""

    executions: list[Execution] = field(default_factory=list)
    has_ended: bool = False


class LiveAttempt:
    """The files of an attempt that runs, and how far they were shown."""

    def __init__(self, paths: Mapping[str, str | None]) -> None:
        self._paths = {name: path for name, path in paths.items() if path is not None}
        self._shown = dict.fromkeys(self._paths, 0)

    def new_lines(self) -> Iterator[tuple[str, bytes]]:
        """Yield the complete lines that were written since the last call, with the names of their streams."""
        for name, path in self._paths.items():
            for part in parts_of(path, self._shown[name]):
                end = part.rfind(b"\n") + 1 or (len(part) if len(part) >= CHUNK_SIZE else 0)
                self._shown[name] += end
                if end:
                    yield name, part[:end]
                if end < len(part):
                    break

    def rest(self) -> Iterator[tuple[str, bytes]]:
        """Yield all that was not shown yet."""
        for name, path in self._paths.items():
            for part in parts_of(path, self._shown[name]):
                self._shown[name] += len(part)
                yield name, part


def size_of(execution: Execution) -> int:
    """Return the bytes that the files of an execution may have."""
    return execution.stdout.size + execution.stderr.size


def parts_of(path: str | None, offset: int = 0) -> Iterator[bytes]:
    """Yield a file in parts. One that is not there is empty."""
    if path is None:
        return
    with contextlib.suppress(OSError), open(path, "rb") as file:  # noqa: PTH123 - called for each task at each tick
        file.seek(offset)
        while part := file.read(CHUNK_SIZE):
            yield part


class Screen:
    """The standard streams. What cannot be written is dropped: the run goes on to its end."""

    def __init__(self, clear: Callable[[], None], *, is_tagged: bool) -> None:
        self._clear, self._is_tagged = clear, is_tagged
        self._is_terminal = sys.stdout.isatty()
        self._open_line: tuple[TaskKey, str] | None = None
        """The task and the stream whose last line has no end yet."""

    def write(self, key: TaskKey, parts: Iterable[tuple[str, bytes]]) -> None:
        for name, part in parts:
            if (
                self._open_line is not None
                and self._open_line != (key, name)
                and (self._is_tagged or self._is_terminal)
            ):
                self._put(self._open_line[1], b"\n")
            begins = self._open_line != (key, name)
            self._open_line = None if part.endswith(b"\n") else (key, name)
            self._put(name, self._tagged(key, part, begins=begins) if self._is_tagged else part)

    def end(self, key: TaskKey) -> None:
        """Take note that the output of an attempt is complete. On a terminal, the next output begins a line."""
        if self._open_line is not None and self._open_line[0] == key:
            if self._is_tagged or self._is_terminal:
                self._put(self._open_line[1], b"\n")
            self._open_line = None

    def _tagged(self, key: TaskKey, part: bytes, *, begins: bool) -> bytes:
        tag = f"{key}\t".encode(errors="surrogateescape")
        text = part.replace(b"\n", b"\n" + tag)
        text = text[: -len(tag)] if part.endswith(b"\n") else text
        return tag + text if begins else text

    def _put(self, name: str, data: bytes) -> None:
        self._clear()
        stream: BinaryIO = sys.stdout.buffer if name == "stdout" else sys.stderr.buffer
        with contextlib.suppress(StandardOutputLost, OSError):
            stream.write(data)
            stream.flush()
