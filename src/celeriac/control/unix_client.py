"""Send a request to every executor of this user on this machine, each over its own socket."""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec

from celeriac.control.folder import sockets
from celeriac.control.wire import ReplyMessage, decode_reply, encode_request
from celeriac.executor.requests import OwnerRequest, Request, wait_of

CONNECT_TIMEOUT = 1.0  # seconds
REPLY_TIMEOUT = 5.0  # seconds for an executor to reply, on top of the `wait` of the request
CHUNK_SIZE = 65_536  # bytes


class UnixControlClient:
    """A client that looks for executors again at each request."""

    def send_request(self, request: Request) -> Iterator[ReplyMessage]:
        """Yield each reply as it arrives. An executor that is running and does not reply in time yields an error."""
        line = msgspec.json.encode(encode_request(request)) + b"\n"
        connections = {
            connection: path for path in sockets_for(request) if (connection := connect_and_send(path, line))
        }
        timeout = REPLY_TIMEOUT + wait_of(request)
        try:
            yield from read_all_replies(connections, timeout)
        finally:
            for connection in connections:
                connection.close()


def sockets_for(request: Request) -> list[Path]:
    """Return the sockets of the executors that a request is for. The name of a socket begins with the pid."""
    if not isinstance(request, OwnerRequest):
        return sockets()
    pid, _, host = request.executor.partition("@")
    return [path for path in sockets() if path.name.startswith(f"{pid}-")] if host == socket.gethostname() else []


def remove_stale_sockets() -> None:
    """Remove the sockets of killed processes."""
    for path in sockets():
        if (connection := connect(path)) is not None:
            connection.close()


def connect(path: Path) -> socket.socket | None:
    """Return a connection, or None if no process accepts one in time. Remove the socket of a dead process."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(CONNECT_TIMEOUT)
    try:
        connection.connect(str(path))
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)
    except OSError:
        pass  # the executor is closing the socket, or too many callers are waiting
    else:
        return connection
    connection.close()
    return None


def connect_and_send(path: Path, line: bytes) -> socket.socket | None:
    """Return a connection over which the line was sent, or None if that failed."""
    connection = connect(path)
    if connection is None:
        return None
    try:
        connection.sendall(line)
    except OSError:
        connection.close()
        return None
    return connection


def read_all_replies(connections: dict[socket.socket, Path], timeout: float) -> Iterator[ReplyMessage]:
    """Yield the replies until each executor has sent its last one or closed its connection, or the time is up."""
    deadline = time.monotonic() + timeout
    buffers = {connection: bytearray() for connection in connections}
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection, selectors.EVENT_READ, connection)
        while buffers and (remaining := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(remaining):
                for reply in read_replies(key.data, buffers[key.data]):
                    if reply is not None:
                        yield reply
                    if reply is None or reply.is_last:
                        del buffers[key.data]
                        selector.unregister(key.data)
                        break
    for connection in buffers:
        path = connections[connection]
        executor = f"{path.name.partition('-')[0]}@{socket.gethostname()}"  # the file name begins with the pid
        yield ReplyMessage(executor=executor, channel=path.stem, error=f"did not reply within {timeout:g} s")


def read_replies(connection: socket.socket, buffer: bytearray) -> Iterator[ReplyMessage | None]:
    """Yield the replies that are complete, then None if the executor has closed the connection."""
    data = b""
    with contextlib.suppress(ConnectionError):
        data = connection.recv(CHUNK_SIZE)
    buffer += data
    while (end := buffer.find(b"\n")) >= 0:
        line = bytes(buffer[:end])
        del buffer[: end + 1]
        yield decode_reply(partial(msgspec.json.decode, line, type=ReplyMessage), channel="")
    if not data:
        yield None
