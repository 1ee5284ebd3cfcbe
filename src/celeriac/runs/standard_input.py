"""Read jobs from standard input while another process is still writing them."""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from celeriac.errors import describe_error
from celeriac.runs.job_file import BadJobs, Problem, stream_jobs
from celeriac.runs.job_limits import TaskCheck
from celeriac.runs.run import Stream
from celeriac.surviving_loop import Survivor
from celeriac.task.task import Task

if TYPE_CHECKING:
    from celeriac.runs.job_file.template import JobTemplate

THREAD = "celeriac-stdin"
STDIN = 0
CHUNK_SIZE = 65_536  # bytes


class ByteSource:
    """A descriptor, such as standard input, as a file. A reader gets each line at once. `close` ends the wait of
    another thread."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._closing, self._closed = socket.socketpair()
        self._buffer = bytearray()
        self._ended = False

    def readline(self, limit: int = -1, /) -> bytes:
        while (size := self._line_size(limit)) is None:
            self._fill()
        line = bytes(self._buffer[:size])
        del self._buffer[:size]
        return line

    def read(self) -> bytes:
        """Return the next bytes, however many there are; none at the end."""
        while not self._buffer and not self._ended:
            self._fill()
        data = bytes(self._buffer)
        self._buffer.clear()
        return data

    def unread(self, data: bytes) -> None:
        """Give bytes back: the next `read` returns them."""
        self._buffer[:0] = data

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called: the input may go on after what was read."""
        return self._closing.fileno() < 0

    def close(self) -> None:
        """End the input, also for a thread that waits in `readline`."""
        self._closing.close()

    def release(self) -> None:
        """Close the other descriptor. No thread may read any more."""
        self._closed.close()

    def _line_size(self, limit: int) -> int | None:
        """Return the number of bytes of the next line; None if more must be read first."""
        size = self._buffer.find(b"\n") + 1 or (len(self._buffer) if self._ended else None)
        if 0 <= limit <= (len(self._buffer) if size is None else size):
            return limit
        return size

    def _fill(self) -> None:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        poll.register(self._closed, select.POLLIN)
        if self._closed.fileno() in dict(poll.poll()):
            data = b""
        else:
            try:
                data = os.read(self._descriptor, CHUNK_SIZE)
            except BlockingIOError:  # another program reads from it, too
                return
        self._buffer += data
        self._ended = not data


def check_standard_input() -> None:
    """Raise `BadJobs` if standard input is closed."""
    if sys.stdin is None:
        raise BadJobs([Problem("<stdin>", None, None, "it is closed", "name a file")])


@contextmanager
def stream_standard_input(
    format: str,
    defaults: Mapping[str, Any],
    check: TaskCheck,
    *,
    template: JobTemplate | None = None,
    report_problem: Callable[[Problem], None],
    wake: Callable[[], None],
) -> Iterator[Stream]:
    """Read standard input in a thread, line by line. `wake` is called after each line."""
    source = ByteSource(STDIN)

    def read() -> Iterator[Task | Problem]:
        for job in stream_jobs(source, "-", format, defaults, template):
            yield job if isinstance(job, Problem) else check(job, "<stdin>")

    def problem_of(error: Exception) -> Problem:
        Survivor(THREAD).record(error)
        text = f"the rest could not be read: {describe_error(error)}"
        return Problem("<stdin>", None, None, text, "see the log")

    with filled_in_thread(THREAD, source, read, problem_of, report_problem=report_problem, wake=wake) as stream:
        yield stream


@contextmanager
def filled_in_thread(
    thread: str,
    source: ByteSource,
    read: Callable[[], Iterable[Task | Problem]],
    problem_of: Callable[[Exception], Problem],
    *,
    report_problem: Callable[[Problem], None],
    wake: Callable[[], None],
) -> Iterator[Stream]:
    """Fill a stream in a thread of this name, which calls `read`. At the end, close the source of `read`.

    `wake` is called after each item. An error of `read` becomes the last item: its problem.
    """
    stream = Stream(report_problem)

    def put(item: Task | Problem) -> None:
        if isinstance(item, Problem):
            report_problem(item)
        stream.put(item)
        wake()

    def fill() -> None:
        try:
            for item in read():
                put(item)
        except Exception as error:  # noqa: BLE001 - without this, the run would wait for ever
            put(problem_of(error))
        finally:
            stream.put(None)
            wake()

    reader = threading.Thread(target=fill, name=thread)
    reader.start()
    try:
        yield stream
    finally:
        source.close()
        reader.join()
        source.release()
