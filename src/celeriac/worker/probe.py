"""A lease that cannot be renewed: is the store away for everybody, or only for this worker?

Of a store that nobody can reach nobody hears that this worker is silent, and what it runs may go on. So the question is
put to the server anew, below any client, and whatever leaves a doubt is taken for our own fault.

refused; connected, and not a word          nobody can use it
answered, that it cannot serve for now      nobody can use it
answered                                    others can
not even connected                          it is we who are cut off
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import Any

PATIENCE = 1.0  # seconds for each step
MYSQL_SPEAKS_FIRST = b""
REDIS_PING = b"PING\r\n"
POSTGRES_SSL_REQUEST = struct.pack("!II", 8, 80877103)
GREETINGS = {"postgresql": POSTGRES_SSL_REQUEST, "mysql": MYSQL_SPEAKS_FIRST}
PORTS = {"postgresql": 5432, "mysql": 3306}

UNUSABLE = (b"-LOADING", b"-MASTERDOWN", b"-MISCONF", b"-BUSY")
"""What a Redis says first that answers nobody's questions for now."""

RECOVERING = ("starting up", "shutting down", "in recovery mode", "not yet accepting connections")
"""What a PostgreSQL says that lets nobody in for now."""


@dataclass(frozen=True, slots=True)
class Place:
    host: str
    port: int
    greeting: bytes
    """What makes the server say something."""


def place_of(backend: Any) -> Place | None:
    """Where a result backend's server is; None of a file, a Unix socket or Sentinel."""
    parameters = getattr(backend, "connparams", None)
    if isinstance(parameters, dict):
        host, port, greeting = parameters.get("host"), parameters.get("port"), REDIS_PING
    else:
        from sqlalchemy.engine import make_url

        url = make_url(backend.url)
        kind = url.get_backend_name()
        if kind not in GREETINGS:
            return None
        host, port, greeting = url.host, url.port or PORTS[kind], GREETINGS[kind]
    return Place(host, port, greeting) if isinstance(host, str) and isinstance(port, int) else None


def is_away_for_everybody(place: Place | None, error: Exception) -> bool:
    """`error` is what became of the renewal. A store that cannot be probed is taken to be."""
    if place is None or any(words in str(error) for words in RECOVERING):
        return True
    try:
        said = answer_of(place)
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return said is None or said.startswith(UNUSABLE)


def answer_of(place: Place) -> bytes | None:
    """The first bytes that the server says; None if it says nothing. Raises `OSError` if there is no connection."""
    with socket.create_connection((place.host, place.port), PATIENCE) as connection:
        try:
            connection.sendall(place.greeting)
            return connection.recv(64)
        except TimeoutError:
            return None
