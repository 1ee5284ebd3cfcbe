"""Read what a command writes to its pipes, and keep it in files."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable

from celeriac.shortages import is_shortage
from celeriac.worker.supervisor.masking import Masker
from celeriac.worker.supervisor.messages import StreamReport

READ_SIZE = 65_536  # bytes: the capacity of a pipe
TAIL_SIZE = 16_384  # bytes kept of the end of each stream
TAIL_LINES = 20
OPEN_ERRORS = {errno.ELOOP: "it is a symbolic link", errno.ENXIO: "it is not a regular file"}


class Capture:
    """One stream of one command: its head and its end in a file, its last lines in memory."""

    def __init__(self, path: str | None, cap: int, keep_empty: bool, masker: Masker) -> None:
        """If `path` is None, only the last lines are kept, without the secrets of `masker`. `cap` is in bytes. With
        `keep_empty`, an empty stream gets a file, too."""
        self._masker = masker
        self.path, self._room, self._keeps_empty = path, max(0, cap - TAIL_SIZE), keep_empty
        self.size = self._written = 0
        self.read_end = self.write_end = self._file = -1
        self._tail = b""
        self.read_size = READ_SIZE
        """Bytes of one read. A larger pipe is asked for if this is larger."""

        self.on_data: Callable[[bytes], None] | None = None
        """Gets all that is read."""

        self.error: str | None = None
        """Why the file could not be written; the first error counts."""

    def open(self) -> None:
        """Open what is not open yet: the pipe, and the file if it is kept even empty. Raises `OSError` only if the
        system is out of descriptors or memory."""
        if self.read_end < 0:
            self.read_end, self.write_end = os.pipe()
            os.set_blocking(self.read_end, False)
            if self.read_size > READ_SIZE:
                enlarge(self.read_end, self.read_size)
        if self._keeps_empty:
            try:
                self._open()
            except OSError as error:
                if is_shortage(error):
                    raise
                self._fail(error)

    def pump(self) -> bool:
        """Read once from the pipe. Return False at its end."""
        try:
            data = os.read(self.read_end, self.read_size)
        except BlockingIOError:
            return True
        if not data:
            return False
        self.size += len(data)
        if self.on_data is not None:
            self.on_data(data)
        head = data[: self._room]
        if head:
            self._room -= len(head)
            self._write(head)
        self._tail = (self._tail + data)[-TAIL_SIZE - self._masker.longest :]  # so a secret is never cut
        return True

    def drain(self) -> None:
        """Read all that the pipe holds, without waiting for more."""
        if self.read_end < 0:
            return
        previous_size = -1
        while previous_size != self.size:
            previous_size = self.size
            if not self.pump():
                return

    def read_some(self) -> int:
        """Read once, without waiting. Return the number of bytes."""
        previous_size = self.size
        if self.read_end >= 0:
            self.pump()
        return self.size - previous_size

    def rest(self, missing: int) -> bytes:
        """Return the end of the stream, for a reader who lacks so many bytes, with a note if he lacks more."""
        rest = self._tail[-min(missing, TAIL_SIZE) :] if missing else b""
        left_out = missing - len(rest)
        return b"\n[%d bytes left out]\n" % left_out + rest if left_out else rest

    def close_pipe(self) -> None:
        """Close both ends of the pipe. What it holds is lost."""
        self.close_write_end()
        if self.read_end >= 0:
            os.close(self.read_end)
            self.read_end = -1

    def close_write_end(self) -> None:
        """Close the end that the command writes to: it has an end of its own."""
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1

    def close(self) -> None:
        """Close the pipe, and write the end of the stream to the file."""
        self.close_pipe()
        missing = self.size - self._written
        if missing and self.path and not self.error:
            rest = self._tail[-min(missing, TAIL_SIZE) :]
            if missing > len(rest):
                self._write(b"\n[%d bytes left out]\n" % (missing - len(rest)), is_counted=False)
            self._write(rest)
        if self._file >= 0:
            try:
                os.close(self._file)
            except OSError as error:
                self._fail(error)

    def report(self) -> StreamReport:
        """Return the size of the stream, its file and its last lines, in which secrets are masked."""
        tail = self._masker.mask(self._tail, max(0, len(self._tail) - TAIL_SIZE)) if self._tail else b""
        lines = tail.decode("utf-8", "replace").splitlines(keepends=True)
        if self.size > TAIL_SIZE and len(lines) > TAIL_LINES:
            lines = lines[1:]
        return StreamReport(
            path=self.path if self._file >= 0 else None,
            size=self.size,
            left_out=self.size - self._written if self.path else 0,
            tail="".join(lines[-TAIL_LINES:]),
        )

    def _open(self) -> None:
        if self.path and self._file < 0 and not self.error:
            self._file = open_regular_file(self.path)

    def _write(self, data: bytes, *, is_counted: bool = True) -> None:
        try:
            self._open()
            while data and self._file >= 0 and not self.error:
                written = os.write(self._file, data)
                data = data[written:]
                self._written += written if is_counted else 0
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        problem = OPEN_ERRORS.get(error.errno or 0, error.strerror)
        self.error = self.error or f"{self.path}: {problem}"


def enlarge(pipe: int, size: int) -> None:
    """Give a pipe a larger buffer, where the system allows it."""
    import fcntl  # late: few commands need it

    with contextlib.suppress(OSError, AttributeError):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, size)


def open_regular_file(path: str) -> int:
    """Open a file to write it anew. Raises `OSError` for a symbolic link, which another user may have put there, and
    for what is no file: it could block the supervisor."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        os.ftruncate(file, 0)
    except OSError:
        os.close(file)
        raise
    return file
