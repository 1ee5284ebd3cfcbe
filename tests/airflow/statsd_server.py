"""A StatsD server that keeps what it receives."""

from __future__ import annotations

import socket
from contextlib import suppress


class StatsDServer:
    """Collects the datagrams that are sent to it."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.setblocking(False)
        self.received: set[str] = set()
        self.environment = {
            "AIRFLOW__METRICS__STATSD_ON": "True",
            "AIRFLOW__METRICS__STATSD_HOST": "127.0.0.1",
            "AIRFLOW__METRICS__STATSD_PORT": str(self._socket.getsockname()[1]),
            "AIRFLOW__METRICS__STATSD_PREFIX": "airflow",
        }

    def read(self) -> set[str]:
        """Return all that was received."""
        with suppress(BlockingIOError):
            while True:
                self.received.update(self._socket.recv(65536).decode().splitlines())
        return self.received

    def close(self) -> None:
        self._socket.close()
