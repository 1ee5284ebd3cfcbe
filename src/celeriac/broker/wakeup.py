"""End the wait of one thread from another thread or from a signal handler."""

from __future__ import annotations

import contextlib
import math
import select
import socket


class Wakeup:
    """A pair of sockets. One thread waits, with `wait` or in a selector; any other thread may notify it.

    `threading.Event` and `threading.Condition` are not used: if a signal handler notifies one, it can deadlock with
    the thread that it interrupted.
    """

    def __init__(self) -> None:
        self._writer, self._reader = socket.socketpair()
        self._writer.setblocking(False)
        self._reader.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._reader, select.POLLIN)

    def notify(self) -> None:
        """End the current wait, or else the next one. Never block; do nothing once closed."""
        with contextlib.suppress(OSError):  # the socket is full of notifications, or closed
            self._writer.send(b"!")

    def wait(self, timeout: float) -> bool:
        """Wait until notified, at most `timeout` seconds. Return at once if notified since the last wait.

        Return whether it was notified."""
        if not self._poll.poll(math.ceil(max(0.0, timeout) * 1_000)):
            return False
        self.clear()
        return True

    def clear(self) -> None:
        """Discard the notifications. Call it after a selector has returned `fileno`."""
        with contextlib.suppress(BlockingIOError):
            while self._reader.recv(4096):
                pass

    def fileno(self) -> int:
        """Return the file descriptor that is readable while there is a notification."""
        return self._reader.fileno()

    def close(self) -> None:
        self._writer.close()
        self._reader.close()
