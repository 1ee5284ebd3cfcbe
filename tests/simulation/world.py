"""Threads that take turns under a virtual clock.

A thread of a simulated process is a greenlet. It runs until it waits; then the event that is next in time goes on. So
one history has one order of events, which follows from the seed alone.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from random import Random
from typing import Any

from greenlet import getcurrent, greenlet

from tests.simulation import decisions

JITTER = 0.0002  # seconds until a thread that is woken goes on, at most: the order of threads is random
MAX_STEPS = 100_000
EPOCH = 1_800_000_000.0  # the wall clock's time when a history begins, in seconds


class NoRest(BaseException):
    """Raised by a history whose clock hardly moves."""


class ProcessKilled(BaseException):
    """Raised in each thread of a process that was killed."""


class World:
    """All processes of one history, and its clock."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self._chance = self.random.random
        self.is_stopped = False
        """Whether `run` returns after the event that happens now, if it may."""

        self.now = 0.0
        """Seconds since the history began."""

        self.steps = 0
        self.current: SimThread | None = None
        """The thread that runs now; None between two events."""

        self.hub = getcurrent()
        self._events: list[tuple[float, int, Callable[..., Any], Any]] = []
        self._number = 0

    def at(self, when: float, action: Callable[..., Any], argument: Any = None) -> None:
        """Call `action(argument)` at a time. Two actions of one time are called in the order of their planning."""
        self._number += 1
        heappush(self._events, (when, self._number, action, argument))

    def run(self, until: float, *, may_stop: bool = False) -> bool:
        """Run to a time. With `may_stop`, return True as soon as the world is stopped."""
        events, most = self._events, MAX_STEPS
        while events and events[0][0] <= until:
            if may_stop and self.is_stopped:
                return True
            self.now, _, action, argument = heappop(events)
            self.steps += 1
            if self.steps > most:
                raise NoRest
            action(argument)
        if may_stop and self.is_stopped:
            return True
        self.now = max(self.now, until)
        return False

    def moment(self) -> float:
        """Return a time that has just not come yet."""
        return self.now + self._chance() * JITTER


class Process:
    """A simulated process. Its clock may go wrong: `rate` is how fast it goes, and `wall_offset` is in seconds."""

    def __init__(self, world: World, name: str, *, rate: float = 1.0, wall_offset: float = 0.0) -> None:
        self.world, self.name, self.rate, self.wall_offset = world, name, rate, wall_offset
        self.is_alive, self.is_frozen = True, False
        self.ended_at = self.thawed_at = float("-inf")
        self.threads: list[SimThread] = []
        self.on_killed: list[Callable[[], None]] = []
        self._due: list[tuple[SimThread, int]] = []
        self.started_at = world.random.uniform(1000, 100_000)
        self.created_at, self.pid = world.now, 1

    def monotonic(self) -> float:
        return self.started_at + self.world.now * self.rate

    def wall(self) -> float:
        return EPOCH + self.wall_offset + self.world.now * self.rate

    def spawn(self, function: Callable[..., object], *args: Any, name: str = "main") -> SimThread:
        """Start a thread."""
        thread = SimThread(self, function, args, name)
        self.threads.append(thread)
        thread.wake()
        return thread

    def kill(self) -> None:
        """End all threads at once, without any goodbye. One of them that calls this goes on until it waits."""
        if not self.is_alive:
            return
        self.is_alive, self.ended_at = False, self.world.now
        self.world.at(self.world.now, self._end_threads)
        for action in self.on_killed:
            action()

    def freeze(self) -> None:
        self.is_frozen = True

    def thaw(self) -> None:
        """Go on: what was due meanwhile happens now."""
        if not self.is_frozen:
            return
        self.is_frozen, self.thawed_at = False, self.world.now
        due, self._due = self._due, []
        for thread, turn in due:
            self.world.at(self.world.moment(), thread.resume, turn)

    def postpone(self, thread: SimThread, turn: int) -> None:
        self._due.append((thread, turn))

    def _end_threads(self, _: Any) -> None:
        for thread in self.threads:
            thread.end()
        self.threads.clear()


class SimThread:
    """A thread of a process."""

    __slots__ = ("_waiting", "_woken", "args", "ended", "function", "glet", "locals", "name", "process", "turn")

    def __init__(self, process: Process, function: Callable[..., object], args: Any, name: str) -> None:
        self.process, self.function, self.args, self.name = process, function, args, name
        self.glet = greenlet(self._run, process.world.hub)
        self.turn = 0
        """Grows when it goes on: an event that was meant for an earlier wait has no effect."""

        self.ended = self._woken = False
        self.locals: dict[int, dict[str, Any]] = {}

    def _run(self) -> None:
        decisions.trace()
        try:
            self.function(*self.args)
        except ProcessKilled:
            pass
        finally:
            self.ended = True

    def wait(self, seconds: float | None) -> bool:
        """Wait until `wake`, or for some seconds of this process's clock. Return whether it was woken.

        Only the thread itself may call this."""
        process = self.process
        world = process.world
        if not process.is_alive:
            raise ProcessKilled
        self._woken = False
        if seconds is not None:
            when = world.now + world._chance() * JITTER + (seconds / process.rate if seconds > 0 else 0.0)
            world._number += 1
            heappush(world._events, (when, world._number, self.resume, self.turn))
        world.current = None
        world.hub.switch()
        world.current = self
        if not process.is_alive:
            raise ProcessKilled
        return self._woken

    def wake(self) -> None:
        """Let it go on soon."""
        self._woken = True
        world = self.process.world
        world.at(world.moment(), self.resume, self.turn)

    def resume(self, turn: int) -> None:
        """Go on, in the hub."""
        process = self.process
        if turn != self.turn or self.ended or not process.is_alive:
            return
        if process.is_frozen:
            process.postpone(self, turn)
            return
        self.turn += 1
        process.world.current = self
        self.glet.switch()
        process.world.current = None

    def end(self) -> None:
        """End it, in the hub, because its process was killed."""
        if not self.ended and self.glet:
            self.process.world.current = self
            self.glet.throw(ProcessKilled)
            self.process.world.current = None
        self.ended = True
