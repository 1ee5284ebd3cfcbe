"""Find out who can use a store that did not renew a lease in time: everyone, no one, or everyone but this worker.

While no one can use the store, no executor can declare this worker dead, so its commands may go on. The probe connects
to the server directly, without a client library, while a renewal is tried over a new connection.

renewal refused, unless for this client alone         no one can use the store
renewal without a reply,   the probe got a reply      no one: the server is hung, or a proxy has no server behind it
renewal failed,            the probe was refused, or accepted and not answered     no one: the server is down
renewal failed,            the probe got no connection                             this worker is cut off
renewal refused for this client alone (user, rights), or another error             others may use the store
"""

from __future__ import annotations

import socket
import struct
import time
from dataclasses import dataclass
from enum import Enum, auto

from celery import Celery

from celeriac.backend.kind import BackendKind, backend_kind, import_for_database
from celeriac.server_errors import CERTIFICATE, CONNECTIONS, LOGIN, RIGHTS, ServerProblem, chain_of, diagnose

CONNECT_TIMEOUT = 1.0  # seconds
PROBE_TIMEOUT = 1.3  # seconds; shorter than a renewal over a new connection may take
REDIS_PING = b"PING\r\n"
POSTGRES_SSL_REQUEST = struct.pack("!II", 8, 80877103)
NOTHING = b""  # a MySQL server sends the first message
GREETINGS = {"postgresql": POSTGRES_SSL_REQUEST, "mysql": NOTHING}
PORTS = {"postgresql": 5432, "mysql": 3306}


FOR_ONE_CLIENT = (CERTIFICATE, CONNECTIONS, LOGIN, RIGHTS)
"""The refusals that other clients may not get: those with another user, or with a connection."""


class Reach(Enum):
    """The result of a probe."""

    REPLY = auto()
    """The server, or a proxy before it, replied."""

    NO_SERVER = auto()
    """The connection was refused, or accepted without a reply."""

    NO_CONNECTION = auto()
    """The host does not exist, or does not respond."""

    UNKNOWN = auto()
    """The store has no address that can be probed."""


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


def probe(server: Server | None) -> Reach:
    """Connect to a server, and wait for its first reply, for at most `PROBE_TIMEOUT` in all."""
    if server is None:
        return Reach.UNKNOWN
    deadline = time.monotonic() + PROBE_TIMEOUT
    try:
        connection = socket.create_connection((server.host, server.port), CONNECT_TIMEOUT)
    except ConnectionRefusedError:
        return Reach.NO_SERVER
    except OSError:
        return Reach.NO_CONNECTION
    with connection:
        connection.settimeout(max(0.1, deadline - time.monotonic()))
        try:
            connection.sendall(server.greeting)
            return Reach.REPLY if connection.recv(64) else Reach.NO_SERVER
        except OSError:  # no reply, or the connection was closed at once
            return Reach.NO_SERVER


def is_unavailable_for_everyone(error: Exception, reach: Reach) -> bool:
    """Return whether no client can use the store. `error` is the error of a renewal over a new connection."""
    diagnosis = diagnose(error)
    if diagnosis is None or diagnosis in FOR_ONE_CLIENT:
        return False
    if diagnosis.problem is ServerProblem.UNREACHABLE:
        return reach in (Reach.NO_SERVER, Reach.UNKNOWN) or (reach is Reach.REPLY and is_timeout(error))
    return True


def is_timeout(error: BaseException) -> bool:
    """Return whether a client waited in vain for a reply."""
    return any(
        "timeout" in f"{type(link).__name__} {link}".lower().replace("timed out", "timeout") for link in chain_of(error)
    )
