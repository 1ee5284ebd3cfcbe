"""A connection can be dead without anybody being told: the broker frozen, the network a black hole.

A broker that lives says something every few seconds: Redis answers each BRPOP after a second at most and each PING,
RabbitMQ sends heartbeats. After a longer silence the watchdog cuts the sockets, and Celery connects anew.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import Any

from celeriac.worker.log import logger

LONGEST_SILENCE = 10.0  # seconds


class Watchdog:
    def __init__(self) -> None:
        self._heard_at: float | None = None
        self._heard: Any = None

    def listen_to(self, transport: Any) -> None:
        """Take note of whatever a connection's transport reads."""
        read = transport.on_readable

        def heard(*args: Any) -> Any:
            self._heard_at = time.monotonic()
            return read(*args)

        transport.on_readable = self._heard = heard
        self._heard_at = time.monotonic()

    def look(self, hub: Any) -> None:
        """Cut what has been silent for too long. Called every second or so, by a thread of its own."""
        if self._heard_at is None or time.monotonic() - self._heard_at < LONGEST_SILENCE:
            return
        self._heard_at = None  # until the next connection
        logger.warning("the broker has said nothing for %.0f s: connecting anew", LONGEST_SILENCE)
        for descriptor, (callback, _) in list(hub.readers.items()):
            if callback is self._heard:
                cut(descriptor)


def cut(descriptor: int) -> None:
    """End a connection under its owner's feet: reading from it gives the end, at once."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as sock:
        sock.shutdown(socket.SHUT_RDWR)
