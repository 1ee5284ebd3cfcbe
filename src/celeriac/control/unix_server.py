"""A desk on a Unix socket, for an executor whose users are on this machine: one line of JSON in, one or two out."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import msgspec

from celeriac.control.folder import SUFFIX, ensure_folder
from celeriac.control.request_queue import RequestQueue
from celeriac.control.unix_client import remove_stale
from celeriac.control.wire import ReplyMessage, RequestMessage, decode_request, encode_reply
from celeriac.executor.requests import ErrorReply, Reply

logger = logging.getLogger(__name__)

CHUNK = 65_536  # bytes
LONGEST_LINE = 64 * 2**20  # bytes of a request: a million keys
PATIENCE = 2.0  # seconds for a caller to take one answer
TRIES = 5


class UnixControlServer:
    """Open from the first moment on, until `close`. Its thread is there when somebody asks, and sleeps else."""

    def __init__(self, *, wake: Callable[[], None]) -> None:
        """`wake` ends the executor's `wait`. Raises `OSError` where there is no place for a socket."""
        self.tray = RequestQueue(wake=wake, ring=self._ring)
        self._executor = f"{os.getpid()}@{socket.gethostname()}"
        self._listener, self._path = listening()
        self._waker, self._woken = socket.socketpair()
        for end in (self._waker, self._woken, self._listener):
            end.setblocking(False)
        self._lines: dict[socket.socket, bytearray] = {}
        """What each caller has said so far; nothing is kept of one that has gone."""

        self._closing = False
        self._thread = threading.Thread(target=self._run, name="celeriac-desk", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """What has been answered still gets out."""
        self._closing = True
        self._ring()
        self._thread.join()
        self._path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # somebody else's is there
            self._path.parent.rmdir()

    def _ring(self) -> None:
        with contextlib.suppress(OSError):  # rung often enough already, or closed
            self._waker.send(b"!")

    def _run(self) -> None:
        remove_stale()
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while not self._closing:
                for key, _ in selector.select():
                    self._attend(key.fileobj, selector)
                self._send_replies(selector)
            self._send_replies(selector)
        for end in (*self._lines, self._listener, self._waker, self._woken):
            end.close()

    def _attend(self, end: object, selector: selectors.BaseSelector) -> None:
        with contextlib.suppress(BlockingIOError):
            if end is self._woken:
                self._woken.recv(CHUNK)
            elif end is self._listener:
                caller, _ = self._listener.accept()
                caller.setblocking(False)
                self._lines[caller] = bytearray()
                selector.register(caller, selectors.EVENT_READ)
            elif isinstance(end, socket.socket) and end in self._lines:
                self._listen_to(end, selector)

    def _listen_to(self, caller: socket.socket, selector: selectors.BaseSelector) -> None:
        try:
            data = caller.recv(CHUNK)
        except ConnectionError:
            data = b""
        line = self._lines[caller]
        line += data
        if not data or len(line) > LONGEST_LINE:
            self._forget(caller, selector)
        elif line.endswith(b"\n"):
            text = bytes(line)
            line.clear()
            request = decode_request(lambda: msgspec.json.decode(text, type=RequestMessage))
            if isinstance(request, ErrorReply):
                self._send(caller, self._answer(request), selector)
            else:
                self.tray.put(request, caller)

    def _send_replies(self, selector: selectors.BaseSelector) -> None:
        for asked, reply in self.tray.replies():
            caller = asked.reply_to
            if isinstance(caller, socket.socket) and caller in self._lines:
                self._send(caller, self._answer(reply), selector)

    def _answer(self, reply: Reply) -> ReplyMessage:
        return encode_reply(reply, executor=self._executor, channel=self._path.stem)

    def _send(self, caller: socket.socket, said: ReplyMessage, selector: selectors.BaseSelector) -> None:
        caller.settimeout(PATIENCE)
        try:
            caller.sendall(msgspec.json.encode(said) + b"\n")
        except OSError as error:
            logger.debug("an answer was not taken: %s", error)
            self._forget(caller, selector)
            return
        caller.setblocking(False)
        if said.is_last:
            self._forget(caller, selector)

    def _forget(self, caller: socket.socket, selector: selectors.BaseSelector) -> None:
        del self._lines[caller]
        selector.unregister(caller)
        caller.close()


def listening() -> tuple[socket.socket, Path]:
    """Raises `OSError`."""
    for _ in range(TRIES):
        with contextlib.suppress(FileNotFoundError):  # the last one who was there has just taken the folder with him
            return listening_in(ensure_folder())
    return listening_in(ensure_folder())


def listening_in(folder: Path) -> tuple[socket.socket, Path]:
    """Its name shows only when it listens: what cannot be reached is taken for dead, and removed."""
    path = folder / f"{os.getpid()}-{uuid4().hex[:6]}{SUFFIX}"
    unready = path.with_suffix(".new")
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(unready))
        listener.listen()
        unready.rename(path)
    except OSError:
        listener.close()
        unready.unlink(missing_ok=True)
        raise
    return listener, path
