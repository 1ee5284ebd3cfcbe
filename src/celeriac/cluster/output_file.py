"""The two files with the output of an attempt that a worker elsewhere runs."""

from __future__ import annotations

import os
import socket

from msgspec.structs import replace

from celeriac.backend.outputs import END, Chunk
from celeriac.task.result import Output
from celeriac.worker.output import remove_file
from celeriac.worker.supervisor.capture import OPEN_ERRORS, open_regular_file
from celeriac.worker.supervisor.messages import OutputRequest

NAMES = {1: "stdout", 2: "stderr"}


class OutputFiles:
    """The files of one attempt. They are opened for each write: hundreds of commands may run at a time."""

    def __init__(self, request: OutputRequest) -> None:
        self._paths = {"stdout": str(request.stdout), "stderr": str(request.stderr)}
        self._sizes = dict.fromkeys(self._paths, 0)
        self._skipped = 0
        """Bytes that an earlier process has not written, and that cannot come any more."""

        self._has_begun = self._is_broken = False
        self.error: str | None = None
        """Why they could not be written; the first error counts."""

    @property
    def size(self) -> int:
        return sum(self._sizes.values())

    def begin(self, *, anew: bool) -> None:
        """Begin to write: at the end of the files that are there, or `anew`."""
        self._has_begun, self._skipped = True, 0
        for name, path in self._paths.items():
            if anew:
                remove_file(path)
            self._sizes[name] = size_of(path)

    def write(self, chunk: Chunk) -> None:
        """Write the part of a chunk that the files do not have."""
        position = self.size + self._skipped
        if chunk.stream == END or chunk.end <= position:
            return
        if chunk.offset > position:
            self._skipped += chunk.offset - position
            self._fail(f"{self._skipped:,} bytes did not arrive")
            position = chunk.offset
        name = NAMES[chunk.stream]
        if not self._is_broken:
            self._append(self._paths[name], chunk.data[position - chunk.offset :], is_new=self._sizes[name] == 0)
        self._sizes[name] += chunk.end - position

    def remove(self) -> None:
        """Remove the files."""
        for path in self._paths.values():
            remove_file(path)

    def make_missing(self) -> None:
        """Make the files of streams that were empty."""
        for name, path in self._paths.items():
            if self._sizes[name] == 0 and not self._is_broken:
                self._append(path, b"", is_new=True)
        self._has_begun = True

    def output(self, name: str, reported: Output, cap: int) -> Output:
        """Return what a worker has reported about a stream, with the file here."""
        path = self._paths[name]
        size = max(reported.size, self._sizes[name])
        if not self._has_begun or not os.path.exists(path):  # noqa: PTH110 - called for every attempt
            return reported
        left_out = max(0, reported.size - cap) if cap else 0
        return replace(reported, path=path, host=socket.gethostname(), size=size, left_out=left_out)

    def _append(self, path: str, data: bytes, *, is_new: bool) -> None:
        try:
            append(path, data, is_new=is_new)
        except OSError as error:
            self._is_broken = True
            self._fail(f"{path}: {OPEN_ERRORS.get(error.errno or 0, error.strerror)}")

    def _fail(self, problem: str) -> None:
        self.error = self.error or problem


def append(path: str, data: bytes, *, is_new: bool) -> None:
    """Write at the end of a regular file. Raises `OSError`."""
    file = open_regular_file(path) if is_new else os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)
    try:
        while data:
            data = data[os.write(file, data) :]
    finally:
        os.close(file)


def size_of(path: str) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0
