"""Delay, lose, double or refuse requests to servers, and let faults strike in the middle of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from redis.exceptions import AuthenticationError, BusyLoadingError, NoPermissionError, OutOfMemoryError, ReadOnlyError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from tests.simulation.primitives import here
from tests.simulation.world import Process, World

T = TypeVar("T")
TIMEOUT = 2.0  # seconds until a client gives up
REFUSALS = (
    OutOfMemoryError("command not allowed when used memory > 'maxmemory'"),
    ReadOnlyError("a read only replica"),
    BusyLoadingError("Redis is loading the dataset in memory"),
    NoPermissionError("this user has no permissions to run the command"),
    AuthenticationError("invalid username-password pair or user is disabled."),
)


class Server:
    """A server: it may be down, hung, or refuse writes."""

    FLAGS = frozenset(("is_up", "is_hung", "refuses_writes"))
    is_up, is_hung, refuses_writes = True, False, False
    serves_reads = serves_writes = True

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.outage_began = self.outage_ended = float("-inf")
        """When it last served no writes, and since when it serves them again; infinite while it does not."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in self.FLAGS:
            self.serves_reads = self.is_up and not self.is_hung
            self.serves_writes = serves = self.serves_reads and not self.refuses_writes
            if not serves and self.outage_ended < float("inf"):
                self.outage_began, self.outage_ended = self.world.now, float("inf")
            elif serves and self.outage_ended == float("inf"):
                self.outage_ended = self.world.now


@dataclass
class Strike:
    """A fault in the middle of a request: of the next one of its kind, before or after the server has done it."""

    point: str
    is_after: bool
    action: Callable[[Process, Server], str]
    """Causes the fault, and returns what it did."""

    doubles: bool = False
    """Whether the server gets the request twice."""

    loses: bool = False
    """Whether the request, or its reply, is lost."""


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

        self.strikes: list[Strike] = []
        """The faults that wait for a request of their kind."""

        self.on_strike: Callable[[str], None] = print

    def delay(self) -> float:
        """Return how long a request, or a reply, is on its way: one in a hundred takes much longer."""
        chance = self.world.random.random() * 100
        delay = chance % 1 * 0.002 * self.slowness
        return delay * 100 if chance < 1 else delay

    def is_cut(self, process: Process, server: Server) -> bool:
        return (process.name, server.name) in self.cut

    def call(self, server: Server, function: Callable[[], T], point: str, *, writes: bool = True) -> T:
        """Call a function at a server. Raise as a client does. `point` names the kind of the request."""
        thread = here()
        process = thread.process
        thread.wait(self.delay())
        hits = self._strike(point, process, server, is_after=False) if self.strikes else ()
        if self.cut or not server.serves_reads:
            self._check(process, server)
        if self.loss or hits:
            self._lose(hits)
        if writes and server.refuses_writes:
            raise self.world.random.choice(REFUSALS)
        reply = function()
        hits = self._strike(point, process, server, is_after=True) if self.strikes else ()
        if hits and any(strike.doubles for strike in hits) and server.serves_writes:
            reply = function()
        if self.loss or hits:
            self._lose(hits)
        thread.wait(self.delay())
        if self.cut or not server.serves_reads:
            self._check(process, server)
        return reply

    def _lose(self, hits: Sequence[Strike]) -> None:
        """Raise if a request, or its reply, is lost."""
        if any(strike.loses for strike in hits) or (self.loss and self.world.random.random() < self.loss):
            here().wait(TIMEOUT)
            raise RedisTimeoutError("Timeout reading from socket")

    def _strike(self, point: str, process: Process, server: Server, *, is_after: bool) -> Sequence[Strike]:
        """Cause the faults that wait for this moment, and return them."""
        hits = [strike for strike in self.strikes if strike.point == point and strike.is_after is is_after]
        for strike in hits:
            self.strikes.remove(strike)
        for strike in hits:
            what = strike.action(process, server)
            self.on_strike(f"{process.name}, {'after' if is_after else 'before'} {point}: {what}")
            here().wait(0.0)  # a process that was killed or frozen does not go on
        return hits

    def meet(self, point: str, server: Server) -> None:
        """Let the faults strike this process that wait for a moment inside of a request."""
        self._strike(point, here().process, server, is_after=False)

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

    def __init__(
        self, network: Network, server: Server, target: Any, reads: tuple[str, ...], *, kind: str = ""
    ) -> None:
        """`kind` is the begin of the names of its requests."""
        self._network, self._server, self._target, self._reads, self._kind = network, server, target, reads, kind
        self.errors: tuple[type[Exception], ...] = ()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._target, name)

        def call(*args: Any, **options: Any) -> Any:
            reads = name in self._reads
            return self._network.call(
                self._server, lambda: method(*args, **options), self._kind + name, writes=not reads
            )

        return call

    def anew(self) -> Remote:
        return self

    def cut(self) -> None:
        """All calls use connections of their own."""

    def close(self) -> None:
        """There is nothing to close."""
