"""Delay, lose or refuse requests to servers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError
from redis.exceptions import TimeoutError as RedisTimeoutError

from tests.simulation.primitives import here
from tests.simulation.world import Process, World

T = TypeVar("T")
TIMEOUT = 2.0  # seconds until a client gives up
REFUSALS = (
    OutOfMemoryError("command not allowed when used memory > 'maxmemory'"),
    ReadOnlyError("a read only replica"),
)


class Server:
    """A server: it may be down, hung, or refuse writes."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.is_up, self.is_hung, self.refuses_writes = True, False, False


class Network:
    """The links of all processes to all servers."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.loss = 0.0
        """The chance that a request or its reply is lost."""

        self.slowness = 1.0
        """A factor of all delays."""

        self.cut: set[tuple[str, str]] = set()
        """The processes that cannot reach a server, by their names."""

    def delay(self) -> float:
        random = self.world.random
        delay = random.random() * 0.002 * self.slowness
        return delay * 100 if random.random() < 0.01 else delay

    def is_cut(self, process: Process, server: Server) -> bool:
        return (process.name, server.name) in self.cut

    def call(self, server: Server, function: Callable[[], T], *, writes: bool = True) -> T:
        """Call a function at a server. Raise as a client does."""
        thread = here()
        process, random = thread.process, self.world.random
        thread.wait(self.delay())
        self._check(process, server)
        if random.random() < self.loss:
            thread.wait(TIMEOUT)
            raise RedisTimeoutError("Timeout reading from socket")
        if writes and server.refuses_writes:
            raise random.choice(REFUSALS)
        reply = function()
        if random.random() < self.loss:
            thread.wait(TIMEOUT)
            raise RedisTimeoutError("Timeout reading from socket")
        thread.wait(self.delay())
        self._check(process, server)
        return reply

    def reaches(self, process: Process, server: Server) -> bool:
        return server.is_up and not server.is_hung and not self.is_cut(process, server)

    def _check(self, process: Process, server: Server) -> None:
        if not server.is_up:
            raise RedisConnectionError("Connection refused")
        if server.is_hung or self.is_cut(process, server):
            here().wait(TIMEOUT)
            raise RedisTimeoutError("Timeout connecting to server")


class Remote:
    """An object at a server: each call of a method goes through the network."""

    def __init__(self, network: Network, server: Server, target: Any, reads: tuple[str, ...]) -> None:
        self._network, self._server, self._target, self._reads = network, server, target, reads
        self.errors: tuple[type[Exception], ...] = ()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._target, name)

        def call(*args: Any, **options: Any) -> Any:
            return self._network.call(self._server, lambda: method(*args, **options), writes=name not in self._reads)

        return call

    def anew(self) -> Remote:
        return self

    def cut(self) -> None:
        """All calls use connections of their own."""

    def close(self) -> None:
        """There is nothing to close."""
