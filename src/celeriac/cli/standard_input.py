"""Standard input that can be closed while somebody reads it."""

from __future__ import annotations

import os
import select
import socket

STDIN = 0
CHUNK = 65_536  # bytes


class StandardInput:
    """Lines, each as soon as it is there. `close`, from another thread, is the end of them."""

    def __init__(self) -> None:
        self._closing, self._closed = socket.socketpair()
        self._buffer = bytearray()
        self._ended = False

    def readline(self, limit: int = -1, /) -> bytes:
        while (size := self._line_size(limit)) is None:
            self._fill()
        line = bytes(self._buffer[:size])
        del self._buffer[:size]
        return line

    def close(self) -> None:
        self._closing.close()

    def _line_size(self, limit: int) -> int | None:
        """How many bytes the next line has; None if more must be read to tell."""
        size = self._buffer.find(b"\n") + 1 or (len(self._buffer) if self._ended else None)
        if 0 <= limit <= (len(self._buffer) if size is None else size):
            return limit
        return size

    def _fill(self) -> None:
        closed = self._closed.fileno()
        ready, _, _ = select.select([STDIN, closed], [], [])
        data = b"" if closed in ready else os.read(STDIN, CHUNK)
        self._buffer += data
        self._ended = not data
