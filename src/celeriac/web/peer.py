"""The user at the other end of a connection over loopback: other users of this machine can connect, too.

Linux lists the sockets of a machine with their users in /proc/net/tcp and /proc/net/tcp6. Where it does not, the user
is unknown, and only a token lets a client in.

A socket that its process has closed is listed until the connection has ended, and then as one of root. So only open
sockets count: another user could send a request and close the socket before the server looks.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator
from pathlib import Path

LOCAL, REMOTE, STATE, USER = 1, 2, 3, 7  # columns of a table
ESTABLISHED = "01"
TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))


def user_of(client: tuple[str, int], server: tuple[str, int]) -> int | None:
    """Return the id of the user whose socket `client` is connected to `server`; None if it is unknown."""
    wanted = (endpoint(client), endpoint(server))
    for table in TABLES:
        for local, remote, user in sockets_in(table):
            if (local, remote) in wanted_forms(wanted):
                return user
    return None


def wanted_forms(pair: tuple[tuple[str, str], tuple[str, str]]) -> list[tuple[str, str]]:
    """Return both forms of a pair: an IPv4 address may be written as an IPv6 one."""
    (client4, client6), (server4, server6) = pair
    return [(client4, server4), (client6, server6)]


def endpoint(address: tuple[str, int]) -> tuple[str, str]:
    """Return an address as the tables have it: of IPv4 also as an address of IPv6."""
    ip, port = ipaddress.ip_address(address[0].partition("%")[0]), f"{address[1]:04X}"
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if isinstance(ip, ipaddress.IPv4Address):
        mapped = bytes(10) + b"\xff\xff" + ip.packed
        return f"{words(ip.packed)}:{port}", f"{words(mapped)}:{port}"
    return "", f"{words(ip.packed)}:{port}"


def words(packed: bytes) -> str:
    """Return an address as the kernel prints it: 32-bit words in the order of the machine."""
    return "".join(f"{word:08X}" for word in struct.unpack(f"={len(packed) // 4}I", packed))


def sockets_in(table: Path) -> Iterator[tuple[str, str, int]]:
    """Yield the local and the remote address of each open socket, and its user."""
    try:
        lines = table.read_text().splitlines()[1:]
    except OSError:
        return
    for line in lines:
        columns = line.split()
        if len(columns) > USER and columns[STATE] == ESTABLISHED and columns[USER].isdecimal():
            yield columns[LOCAL], columns[REMOTE], int(columns[USER])
