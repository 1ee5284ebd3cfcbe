"""The address of a web server, HOST:PORT, and its socket."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass

from celeriac.errors import InvalidConfig

SETTING = "--listen"
EXAMPLE = "give HOST:PORT, such as 127.0.0.1:8730, or [::1]:8730"
BACKLOG = 128  # connections
MAX_PORT = 65_535


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens."""

    host: str
    port: int
    """0 for any free port."""

    @property
    def is_loopback(self) -> bool:
        """Whether only processes of this machine reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Return the address in a text. Raises `InvalidConfig`."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise InvalidConfig(SETTING, f"{text!r} is not an address", EXAMPLE)
    if not colon or not host or not (port.isascii() and port.isdecimal()) or int(port) > MAX_PORT:
        raise InvalidConfig(SETTING, f"{text!r} is not an address", EXAMPLE)
    return Address(host, int(port))


def bind(address: Address) -> socket.socket:
    """Return a listening socket. Raises `InvalidConfig` if the address cannot be used."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise InvalidConfig(SETTING, f"{address} cannot be used: {reason(error)}", EXAMPLE) from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(place)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise InvalidConfig(SETTING, f"{address} cannot be used: {reason(error)}", "give another port") from None
    return listening


def reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
