"""The standard streams of a program that must outlive them: closed ones, a full disk, a reader that has gone.

standard error   what cannot be written is dropped: the run that it tells about goes on
standard output  the first failed write raises `StandardOutputLost`; later ones are dropped
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

STDOUT, STDERR = 1, 2
CHARACTERS = "backslashreplace"  # for characters that the encoding of the stream does not have


class StandardOutputLost(OSError):
    """Standard output cannot be written."""

    @property
    def line(self) -> str | None:
        """The line to print about it; None if the reader has closed the pipe, as `head` does."""
        return None if self.errno == errno.EPIPE else f"standard output cannot be written: {self.strerror}"


class OutputDescriptor(io.RawIOBase):
    """Standard output or standard error. After a failed write, it drops what it is given."""

    def __init__(self, descriptor: int, name: str, *, raises: bool) -> None:
        """`raises` says whether the first failed write raises `StandardOutputLost`."""
        self._descriptor, self.name, self._raises = descriptor, name, raises
        self._is_lost = False

    def fileno(self) -> int:
        return self._descriptor

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: ReadableBuffer, /) -> int:
        if not self._is_lost:
            try:
                return self._write(data)
            except OSError as error:
                self._is_lost = True
                if self._raises:
                    raise StandardOutputLost(error.errno, error.strerror) from None
        return memoryview(data).nbytes

    def _write(self, data: ReadableBuffer) -> int:
        while True:
            try:
                return os.write(self._descriptor, data)
            except BlockingIOError:  # another program has set the terminal or the pipe to non-blocking
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll()


def reader_is_gone(stream: IO[Any]) -> bool:
    """Return whether the other end of a stream is closed: of its pipe or its terminal."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
    except (OSError, ValueError):  # a stream of a caller may have no descriptor
        return False


def check_readers(*streams: IO[Any]) -> None:
    """Raise `StandardOutputLost` if all of these streams have lost their readers, as after `head`."""
    if all(map(reader_is_gone, streams)):
        raise StandardOutputLost(errno.EPIPE, os.strerror(errno.EPIPE))


@contextlib.contextmanager
def surviving_streams() -> Iterator[None]:
    """Put streams that fail as this module says in the place of Python's own. Leave those that a caller has replaced.

    A closed stream becomes /dev/null: otherwise the next file would get its number, and the text that is meant for it.
    """
    open_closed_descriptors()
    former = sys.stdout, sys.stderr
    if sys.stdout is sys.__stdout__:
        sys.stdout = surviving_stream(sys.stdout, STDOUT, "<stdout>", raises=True)
    if sys.stderr is sys.__stderr__:
        sys.stderr = surviving_stream(sys.stderr, STDERR, "<stderr>", raises=False)
    try:
        yield
        sys.stdout.flush()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        sys.stdout, sys.stderr = former


def open_closed_descriptors() -> None:
    """Open /dev/null for each of the three standard descriptors that is closed."""
    for descriptor in range(STDERR + 1):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest free number: this one


def surviving_stream(stream: TextIO | None, descriptor: int, name: str, *, raises: bool) -> io.TextIOWrapper:
    """Return a stream that writes to the descriptor with the encoding of `stream`, which is None if it is closed."""
    raw = OutputDescriptor(descriptor, name, raises=raises)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding if stream is not None else "utf-8",
        errors=CHARACTERS,
        line_buffering=not raises or raw.isatty(),
    )
