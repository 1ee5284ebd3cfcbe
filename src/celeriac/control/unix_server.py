"""A control channel on a Unix socket, for callers on this machine: one line of JSON in, one or two lines out."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from uuid import uuid4

import msgspec

from celeriac.broker.wakeup import Wakeup
from celeriac.control.folder import SUFFIX, ensure_folder
from celeriac.control.request_queue import RequestQueue
from celeriac.control.unix_client import remove_stale_sockets
from celeriac.control.wire import ReplyMessage, RequestMessage, addressed, decode_request, encode_reply, executor_name
from celeriac.executor.requests import ErrorReply, Reply
from celeriac.log_lines import logger_for
from celeriac.surviving_loop import SurvivingLoop

logger = logger_for(__name__)

CHUNK_SIZE = 65_536  # bytes
MAX_REQUEST = 64 * 2**20  # bytes of a request: a million keys
SEND_TIMEOUT = 2.0  # seconds for a caller to receive one reply
MAX_LISTEN_ATTEMPTS = 6


class UnixControlServer:
    """Accepts callers from its creation until `close`. Its thread sleeps while there is no request and no reply."""

    def __init__(self, *, wake: Callable[[], None]) -> None:
        """`wake` ends the executor's `wait`. Raise `OSError` if no socket can be created."""
        self._listener, self._path = listen()
        self._wakeup = Wakeup()
        self.requests = RequestQueue(wake=wake, on_reply=self._wakeup.notify)
        self._executor = executor_name()
        self._buffers: dict[socket.socket, bytearray] = {}
        """By open connection, the received part of a request."""

        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._wakeup, selectors.EVENT_READ, self._wakeup.clear)
        self._closing = False
        self._has_old_sockets = True
        self._thread = SurvivingLoop("celeriac-control", self._run_round)
        self._thread.start()

    def close(self) -> None:
        """Send the replies that are ready, then remove the socket."""
        self._closing = True
        self._wakeup.notify()
        self._thread.join()
        self._path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # another executor has its socket there
            self._path.parent.rmdir()

    def _run_round(self) -> bool:
        if self._has_old_sockets:
            self._has_old_sockets = False
            remove_stale_sockets()
        self._send_replies()
        if self._closing:
            self._end()
            return False
        for key, _ in self._selector.select():
            self._call(key)
        return True

    def _call(self, key: selectors.SelectorKey) -> None:
        """Call the callback of a descriptor. Close the connection of a caller that makes it raise."""
        try:
            key.data()
        except Exception:
            if key.fileobj in self._buffers:
                self._close_connection(key.fileobj)
            raise

    def _end(self) -> None:
        self._selector.close()
        for connection in (*self._buffers, self._listener):
            connection.close()
        self._wakeup.close()

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):  # the caller has already closed the connection
            connection, _ = self._listener.accept()
            connection.setblocking(False)
            self._buffers[connection] = bytearray()
            self._selector.register(connection, selectors.EVENT_READ, partial(self._receive, connection))

    def _receive(self, connection: socket.socket) -> None:
        if connection not in self._buffers:
            return  # closed since `select` returned
        data = b""
        try:
            data = connection.recv(CHUNK_SIZE)
        except BlockingIOError:
            return
        except ConnectionError:
            pass
        buffer = self._buffers[connection]
        buffer += data
        if not data or len(buffer) > MAX_REQUEST:
            self._close_connection(connection)
        elif buffer.endswith(b"\n"):
            line = bytes(buffer)
            buffer.clear()
            self._handle(line, connection)

    def _handle(self, line: bytes, connection: socket.socket) -> None:
        request = addressed(decode_request(lambda: msgspec.json.decode(line, type=RequestMessage)), self._executor)
        if isinstance(request, ErrorReply):
            self._send(connection, request)
        else:
            self.requests.put(request, connection)

    def _send_replies(self) -> None:
        for request, reply in self.requests.take_replies():
            connection = request.reply_to
            if isinstance(connection, socket.socket) and connection in self._buffers:
                with self._thread.survivor.guard():  # so that the other replies are sent
                    self._send(connection, reply)

    def _send(self, connection: socket.socket, reply: Reply) -> None:
        message = encode_reply(reply, executor=self._executor, channel=self._path.stem)
        if not send_line(connection, message) or message.is_last:
            self._close_connection(connection)

    def _close_connection(self, connection: socket.socket) -> None:
        del self._buffers[connection]
        self._selector.unregister(connection)
        connection.close()


def send_line(connection: socket.socket, message: ReplyMessage) -> bool:
    """Send a message. Return whether the caller received it in time."""
    connection.settimeout(SEND_TIMEOUT)
    try:
        connection.sendall(msgspec.json.encode(message) + b"\n")
    except OSError as error:
        logger.debug("cannot send a reply to a caller: %s", error)
        return False
    connection.setblocking(False)
    return True


def listen() -> tuple[socket.socket, Path]:
    """Return a listening socket and its path. Raise `OSError` if no socket can be created."""
    for _ in range(MAX_LISTEN_ATTEMPTS - 1):
        with contextlib.suppress(FileNotFoundError):  # another executor has just removed the folder
            return listen_in(ensure_folder())
    return listen_in(ensure_folder())


def listen_in(folder: Path) -> tuple[socket.socket, Path]:
    """Return a socket that listens at a new path in the folder.

    The socket gets this path only once it listens, because callers remove a socket that they cannot reach.
    """
    path = folder / f"{os.getpid()}-{uuid4().hex[:6]}{SUFFIX}"
    unready = path.with_suffix(".new")
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.setblocking(False)
        listener.bind(str(unready))
        listener.listen()
        unready.rename(path)
    except OSError:
        listener.close()
        unready.unlink(missing_ok=True)
        raise
    return listener, path
