"""A TCP proxy between a client and a server, which can cut, mute or swallow the traffic."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading

READ_SIZE = 65_536  # bytes
STOP_TIMEOUT = 30.0  # seconds
BACKLOG_FILLERS = 4  # connections that fill the backlog and are never accepted


class Proxy:
    """Forward each connection to `port` to the server, until told otherwise."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._lock = threading.RLock()  # a rule's action may use the proxy
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._clients: set[socket.socket] = set()
        self._filling: list[socket.socket] = []
        self._replies_to_pass: int | None = None
        self._swallows = self._holds = False
        self._mute: set[socket.socket] = set()
        self._closed = False
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def cut_after_replies(self, number: int) -> None:
        """Forward `number` more pieces of replies. Then forward what the client writes, and cut instead of replying."""
        with self._lock:
            self._replies_to_pass = number

    def swallow(self) -> None:
        """Behave like a frozen server: keep connections, accept new ones, forward nothing."""
        with self._lock:
            self._swallows = True

    def vanish(self) -> None:
        """Behave like a black hole: keep connections, complete no new ones, forward nothing."""
        with self._lock:
            self._swallows = True
            if self._filling:
                return
            self._selector.unregister(self._listener)
            self._listener.listen(0)
            for _ in range(BACKLOG_FILLERS):  # with a full backlog the system leaves the next first packet unanswered
                filling = socket.socket()
                filling.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    filling.connect(("127.0.0.1", self.port))
                self._filling.append(filling)

    def hold(self) -> None:
        """Leave half-open connections: the server gets nothing more, not even the end of a client."""
        with self._lock:
            self._swallows = self._holds = True

    def mute(self) -> None:
        """Turn the present connections into black holes; forward new ones."""
        with self._lock:
            self._mute |= self._pairs.keys()

    def heal(self) -> None:
        """Cut the present connections; forward new ones."""
        with self._lock:
            self._swallows, self._holds, self._replies_to_pass = False, False, None
            if self._filling:
                for filling in self._filling:
                    filling.close()
                self._filling.clear()
                self._listener.listen()
                self._selector.register(self._listener, selectors.EVENT_READ)
            self._cut_all()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._cut_all()
            for filling in self._filling:
                filling.close()
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(STOP_TIMEOUT)
        self._listener.close()
        assert not self._thread.is_alive(), "the proxy hangs"

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        while not self._closed:
            for key, _ in self._selector.select(0.5):
                with self._lock:
                    if key.fileobj is self._listener:
                        self._accept()
                    elif isinstance(key.fileobj, socket.socket) and key.fileobj in self._pairs:
                        self._pass_on(key.fileobj)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:  # closed
            return
        try:
            server = socket.create_connection(("127.0.0.1", self._server_port))
        except OSError:
            client.close()
            return
        for one, other in ((client, server), (server, client)):
            self._pairs[one] = other
            self._selector.register(one, selectors.EVENT_READ)
        self._clients.add(client)

    def _pass_on(self, source: socket.socket) -> None:
        try:
            data = source.recv(READ_SIZE)
        except OSError:
            data = b""
        if data and (self._swallows or source in self._mute):
            return
        if self._holds:
            self._selector.unregister(source)
            return
        if data and source not in self._clients and self._replies_to_pass is not None:
            self._replies_to_pass -= 1
            if self._replies_to_pass < 0:
                data = b""
        if not data:
            self._cut(source)
            return
        try:
            self._send(source, data)
        except OSError:
            self._cut(source)

    def _send(self, source: socket.socket, data: bytes) -> None:
        """Send the bytes of one side to the other. Raise `OSError` to cut the connection."""
        self._pairs[source].sendall(data)

    def _cut_all(self) -> None:
        for client in list(self._clients):
            self._cut(client)

    def _cut(self, one: socket.socket) -> None:
        for end in (one, self._pairs[one]):
            del self._pairs[end]
            self._clients.discard(end)
            self._mute.discard(end)
            with contextlib.suppress(OSError):  # reset by its peer
                end.shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(KeyError):  # it was unregistered when its end was held back
                self._selector.unregister(end)
            end.close()
