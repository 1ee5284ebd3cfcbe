"""Asks the executors of this user on this machine, each through its socket."""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from celeriac.control.folder import sockets
from celeriac.control.wire import ReplyMessage, encode_request
from celeriac.executor.requests import CancelRequest, Request

KNOCK = 1.0  # seconds to be let in
PATIENCE = 5.0  # seconds for an executor to answer, besides what it was told to wait
CHUNK = 65_536  # bytes


class UnixControlClient:
    """Ask as often as you like; each time of those that are there then."""

    def send_request(self, request: Request) -> Iterator[ReplyMessage]:
        """Each answer as it comes. Who is there and does not answer in time says so as an error."""
        line = msgspec.json.encode(encode_request(request)) + b"\n"
        callers = {caller: path for path in sockets() if (caller := called(path, line)) is not None}
        try:
            yield from answers(callers, PATIENCE + (request.wait if isinstance(request, CancelRequest) else 0.0))
        finally:
            for caller in callers:
                caller.close()


def remove_stale() -> None:
    """The sockets of processes that were killed."""
    for path in sockets():
        if (caller := connect(path)) is not None:
            caller.close()


def connect(path: Path) -> socket.socket | None:
    """A connection; None if nobody is there any more, or nobody can be let in. The socket of the dead is removed."""
    caller = socket.socket(socket.AF_UNIX)
    caller.settimeout(KNOCK)
    try:
        caller.connect(str(path))
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)
    except OSError:
        pass  # it goes, or is full
    else:
        return caller
    caller.close()
    return None


def called(path: Path, line: bytes) -> socket.socket | None:
    caller = connect(path)
    if caller is None:
        return None
    try:
        caller.sendall(line)
    except OSError:
        caller.close()
        return None
    return caller


def answers(callers: dict[socket.socket, Path], patience: float) -> Iterator[ReplyMessage]:
    """Until everybody has said his last, has hung up, or time is up."""
    deadline = time.monotonic() + patience
    said = {caller: bytearray() for caller in callers}
    with selectors.DefaultSelector() as selector:
        for caller in callers:
            selector.register(caller, selectors.EVENT_READ, caller)
        while said and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                for answer in read_replies(key.data, said[key.data]):
                    if answer is not None:
                        yield answer
                    if answer is None or answer.is_last:
                        del said[key.data]
                        selector.unregister(key.data)
                        break
    for caller in said:
        pid = callers[caller].name.partition("-")[0]
        name = f"{pid}@{socket.gethostname()}"
        yield ReplyMessage(executor=name, channel=callers[caller].stem, error=f"does not answer in {patience:g} s")


def read_replies(caller: socket.socket, text: bytearray) -> Iterator[ReplyMessage | None]:
    """What it has said since; None if it has hung up."""
    data = b""
    with contextlib.suppress(ConnectionError):
        data = caller.recv(CHUNK)
    text += data
    while (end := text.find(b"\n")) >= 0:
        line = bytes(text[:end])
        del text[: end + 1]
        yield msgspec.json.decode(line, type=ReplyMessage)
    if not data:
        yield None
