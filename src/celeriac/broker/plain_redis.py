"""A connection to Redis or Valkey for a few reads, without the client library, whose import takes longer than they do.

URL ─► address_of ─► PlainRedis ─► run: many commands in one round trip

The replies are parsed by hiredis. What is special (Sentinel, options in the URL, several servers) is left to the client
library: `address_of` returns None for it.
"""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

import hiredis

from celeriac.config.settings import Connection

DEFAULT_PORT = 6379
READ_SIZE = 65_536


@dataclass(frozen=True, slots=True)
class Address:
    """One server, and the login there."""

    host: str
    port: int
    database: int
    username: str | None
    password: str | None
    has_tls: bool


def address_of(url: str) -> Address | None:
    """Return the server that a URL names by host and port; None if it says more, or names several."""
    parts = urlsplit(url)
    database = parts.path.strip("/") or "0"
    if parts.scheme not in ("redis", "rediss") or ";" in url or parts.query or parts.fragment or not parts.hostname:
        return None
    if not database.isdecimal():
        return None
    username, password = (unquote(each) if each else None for each in (parts.username, parts.password))
    port = parts.port or DEFAULT_PORT
    return Address(parts.hostname, port, int(database), username, password, parts.scheme == "rediss")


class PlainRedis:
    """An open connection. Raises `OSError` and `hiredis.HiredisError`: then close it."""

    def __init__(self, address: Address, settings: Connection, *, timeout: float) -> None:
        """Connect and log in. `timeout`, in seconds, bounds each wait for the server."""
        self._reader = hiredis.Reader(notEnoughData=NOTHING_YET)
        self._socket = socket.create_connection((address.host, address.port), timeout)
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if address.has_tls:
                self._socket = tls_context(settings).wrap_socket(self._socket, server_hostname=address.host)
            self.run(*login(address))
        except BaseException:
            self.close()
            raise

    def run(self, *commands: tuple[Any, ...]) -> list[Any]:
        """Return the reply to each command. Raise `hiredis.ReplyError` if the server refuses one of them."""
        if not commands:
            return []
        self._socket.sendall(b"".join(map(hiredis.pack_command, commands)))
        replies = [self._read() for _ in commands]
        if refusal := next((reply for reply in replies if isinstance(reply, hiredis.ReplyError)), None):
            raise refusal
        return replies

    def close(self) -> None:
        self._socket.close()

    def _read(self) -> Any:
        while (reply := self._reader.gets()) is NOTHING_YET:
            received = self._socket.recv(READ_SIZE)
            if not received:
                raise ConnectionError("Connection closed by server")
            self._reader.feed(received)
        return reply


NOTHING_YET = object()


def login(address: Address) -> list[tuple[Any, ...]]:
    """Return the commands with which a connection begins."""
    commands: list[tuple[Any, ...]] = []
    if address.username:
        commands.append(("AUTH", address.username, address.password or ""))
    elif address.password:
        commands.append(("AUTH", address.password))
    if address.database:
        commands.append(("SELECT", address.database))
    return commands


def tls_context(settings: Connection) -> ssl.SSLContext:
    """Return the context of the settings. The server needs a certificate for its name."""
    context = ssl.create_default_context(cafile=settings.tls_ca)
    if settings.tls_cert is not None:
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
    return context
