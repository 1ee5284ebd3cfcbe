"""Send what a command writes to its worker, one chunk at a time.

    pipe ─► Capture ─► Delivery ─► socket ─► worker ─► "more" ─► the next chunk

While a chunk is on its way, nothing is read from the command's pipes: a command that writes faster than the worker
takes its output is slowed by full pipes. No other command waits for that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from functools import partial

from celeriac.worker.supervisor.capture import TAIL_SIZE, Capture

CHUNK_SIZE = 128 * 1024  # bytes; less than the buffer of a socket, so that sending one does not wait
MAX_PIPES = 2 * 1024 * 1024  # bytes that the pipes of an ended command may hold: a process that is left may write on


class Delivery:
    """The output of one command on its way to the worker."""

    def __init__(
        self, streams: Mapping[bytes, Capture], cap: int, send: Callable[[bytes], None], on_free: Callable[[], None]
    ) -> None:
        """`streams` are by the first byte of their frames. Of each, `cap` bytes are sent: its head and its end.
        `on_free` is called when the worker has taken all that was read."""
        self._streams, self._send, self._on_free = streams, send, on_free
        self._room = dict.fromkeys(streams, max(0, cap - TAIL_SIZE))
        self._sent = dict.fromkeys(streams, 0)
        self._chunks: deque[bytes] = deque()
        self.is_busy = False
        """Whether the worker has yet to take a chunk."""

        self._is_ended = False
        self._drainable = MAX_PIPES
        for name, stream in streams.items():
            stream.on_data, stream.read_size = partial(self._take, name), CHUNK_SIZE

    def _take(self, name: bytes, data: bytes) -> None:
        head = data[: self._room[name]]
        self._room[name] -= len(head)
        self._sent[name] += len(head)
        self._add(name, head)

    def _add(self, name: bytes, data: bytes) -> None:
        if data:
            self._chunks.append(name + data)
            if not self.is_busy:
                self._send_next()

    def _send_next(self) -> None:
        self.is_busy = bool(self._chunks)
        if self._chunks:
            self._send(self._chunks.popleft())

    def on_taken(self) -> None:
        """Go on after the worker has taken a chunk."""
        self._send_next()
        if not self.is_busy:
            self._on_free()

    def drain(self) -> bool:
        """Read what the pipes still hold, and the ends of streams that exceed the cap. Return whether the worker has
        taken everything; otherwise call again when it is free."""
        while not self.is_busy:
            if self._drainable > 0 and (read := sum(stream.read_some() for stream in self._streams.values())):
                self._drainable -= read
                continue
            if self._is_ended:
                return True
            self._is_ended = True
            for name, stream in self._streams.items():
                self._add(name, stream.rest(stream.size - self._sent[name]))
        return False
