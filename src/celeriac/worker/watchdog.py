"""Detect dead connections to the broker: the broker is frozen, or the network loses all packets.

A broker that works sends something every few seconds: Redis answers each BRPOP after a second at most, and each PING;
RabbitMQ sends heartbeats. After a longer silence the watchdog shuts the sockets down, and Celery connects again.
"""

from __future__ import annotations

import time
from typing import Any

from celeriac.broker.sockets import shut_down
from celeriac.worker.log import logger

MAX_SILENCE = 10.0  # seconds


class Watchdog:
    """Watches one connection at a time."""

    def __init__(self) -> None:
        self._last_read: float | None = None
        self._reader: Any = None

    def listen_to(self, transport: Any) -> None:
        """Note the time whenever a connection's transport reads."""
        read = transport.on_readable

        def on_readable(*args: Any) -> Any:
            self._last_read = time.monotonic()
            return read(*args)

        transport.on_readable = self._reader = on_readable
        self._last_read = time.monotonic()

    def check(self, hub: Any) -> None:
        """Shut down sockets that were silent for too long. Call it about once a second, in another thread than the
        event loop's."""
        if self._last_read is None or time.monotonic() - self._last_read < MAX_SILENCE:
            return
        logger.warning("the broker sent nothing for %.0f s: reconnecting", MAX_SILENCE)
        self.cut(hub)

    def cut(self, hub: Any) -> None:
        """Shut down the sockets of the connection."""
        self._last_read = None  # until the next connection
        for descriptor, (callback, _) in list(hub.readers.items()):
            if callback is self._reader:
                shut_down(descriptor)
