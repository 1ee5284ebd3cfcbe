"""Send the output of one attempt to its executor, through the store of the result backend."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from celeriac.backend.outputs import END, Chunk, OutputStore
from celeriac.errors import describe_error
from celeriac.log_lines import logger_for
from celeriac.server_errors import is_server_error

logger = logger_for("celeriac.worker")

READ_TIMEOUT = 600.0  # seconds without progress after which the rest of an output is dropped
MIN_PAUSE, MAX_PAUSE = 0.002, 0.1  # seconds between two attempts
UNAVAILABLE_PAUSE = 0.5  # seconds until a store that fails is called again


class OutputSender:
    """Sends chunks in order. A call of `take` or `end` returns when the store has the chunk: so a command that writes
    faster than its executor reads is slowed down.

    What the store has and the executor has not read yet is kept here, too: a server that restarts may have lost it.
    """

    def __init__(
        self,
        store: OutputStore,
        task_id: str,
        token: int,
        *,
        should_stop: Callable[[], bool] = lambda: False,
        read_timeout: float = READ_TIMEOUT,
    ) -> None:
        """`token` is that of the claim. `should_stop` returns whether the task may run elsewhere by now."""
        self._store, self._task_id, self._token = store, task_id, token
        self._should_stop, self._read_timeout = should_stop, read_timeout
        self._unread: deque[Chunk] = deque()
        self._end = self._read = self._written = 0
        """Bytes that were taken here, read by the executor, and stored."""

        self._pause = MIN_PAUSE
        self._progress_at = time.monotonic()
        self._has_given_up = False

    def take(self, stream: int, data: bytes) -> None:
        """Send a chunk, or drop it once nothing was read for long."""
        self._add(Chunk(self._end, stream, data))

    def end(self) -> None:
        """Say that the output is complete, unless a part of it was dropped."""
        self._add(Chunk(self._end, END, b""))

    def _add(self, chunk: Chunk) -> None:
        if self._has_given_up:
            return
        self._end = chunk.end
        self._unread.append(chunk)
        self._progress_at, self._pause = time.monotonic(), MIN_PAUSE
        while not self._has_given_up and (due := self._next()) is not None:
            self._send(due)

    def _next(self) -> Chunk | None:
        """Return the chunk that the store expects; None if it has all of them."""
        return next((chunk for chunk in self._unread if chunk.offset >= self._written), None)

    def _send(self, chunk: Chunk) -> None:
        try:
            reply = self._store.put(self._task_id, self._token, chunk, read=self._read)
        except Exception as error:  # noqa: BLE001 - a command must not fail because its output cannot be sent
            if is_server_error(error):
                self._wait(UNAVAILABLE_PAUSE)
            else:
                self._give_up(describe_error(error))
            return
        if reply.is_superseded:
            self._give_up("another worker runs the task")
            return
        if reply.read > self._read or reply.accepted:
            self._progress_at, self._pause = time.monotonic(), MIN_PAUSE
        moved = reply.accepted or reply.written != self._written
        self._read, self._written = reply.read, reply.written
        while self._unread and self._unread[0].end <= self._read and self._unread[0] is not chunk:
            self._unread.popleft()
        if reply.accepted and chunk.stream == END:
            self._unread.clear()
        if not moved:
            self._wait(self._pause)
            self._pause = min(2 * self._pause, MAX_PAUSE)

    def _wait(self, seconds: float) -> None:
        if self._should_stop() or time.monotonic() >= self._progress_at + self._read_timeout:
            self._give_up("it is not read")
        else:
            time.sleep(seconds)

    def _give_up(self, why: str) -> None:
        logger.warning("[%s] the rest of its output is dropped: %s", self._task_id, why)
        self._has_given_up = True
        self._unread.clear()
