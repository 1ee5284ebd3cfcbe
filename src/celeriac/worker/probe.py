"""Find out whether a store that cannot renew a lease is unavailable for everyone, or only for this worker.

While the store is unavailable for everyone, no executor can declare this worker dead, so its commands may go on. The
probe connects to the server directly, without a client library.

connection refused, or accepted without a reply    unavailable for everyone
a reply that the server cannot serve requests now  unavailable for everyone
any other reply                                    available for others
no connection                                      this worker is cut off
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

from celery import Celery

from celeriac.backend.kind import BackendKind, backend_kind, import_for_database

TIMEOUT = 1.0  # seconds for each step
REDIS_PING = b"PING\r\n"
POSTGRES_SSL_REQUEST = struct.pack("!II", 8, 80877103)
NOTHING = b""  # a MySQL server sends the first message
GREETINGS = {"postgresql": POSTGRES_SSL_REQUEST, "mysql": NOTHING}
PORTS = {"postgresql": 5432, "mysql": 3306}

REFUSALS = (b"-LOADING", b"-MASTERDOWN", b"-MISCONF", b"-BUSY")
"""Starts of the replies of a Redis server that cannot serve requests now."""

RECOVERY_MESSAGES = ("starting up", "shutting down", "in recovery mode", "not yet accepting connections")
"""Parts of the error messages of a PostgreSQL server that accepts no sessions now."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server that can be probed."""

    host: str
    port: int
    greeting: bytes
    """Bytes to which the server replies."""


def server_of(app: Celery) -> Server | None:
    """Return the server of the app's result backend; None for a file, a Unix socket or Sentinel."""
    match backend_kind(app):
        case BackendKind.REDIS:
            parameters = app.backend.connparams
            host, port, greeting = parameters.get("host"), parameters.get("port"), REDIS_PING
        case BackendKind.DATABASE:
            url = import_for_database("sqlalchemy.engine").make_url(app.backend.url)
            kind = url.get_backend_name()
            if kind not in GREETINGS:
                return None
            host, port, greeting = url.host, url.port or PORTS[kind], GREETINGS[kind]
        case _:
            return None
    return Server(host, port, greeting) if isinstance(host, str) and isinstance(port, int) else None


def is_unavailable_for_everyone(server: Server | None, error: Exception) -> bool:
    """Return whether no client can use the store. `error` is the error of the renewal.

    A store that cannot be probed counts as unavailable for everyone.
    """
    if server is None or any(message in str(error) for message in RECOVERY_MESSAGES):
        return True
    try:
        reply = first_reply_of(server)
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return reply is None or reply.startswith(REFUSALS)


def first_reply_of(server: Server) -> bytes | None:
    """Return the first bytes that the server sends; None if it sends none. Raises `OSError` without a connection."""
    with socket.create_connection((server.host, server.port), TIMEOUT) as connection:
        try:
            connection.sendall(server.greeting)
            return connection.recv(64)
        except TimeoutError:
            return None
