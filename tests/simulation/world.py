"""Threads that take turns under a virtual clock.

A thread of a simulated process is a greenlet. It runs until it waits; then the event that is next in time goes on. So
one history has one order of events, which follows from the seed alone.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from random import Random
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet

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
        self.idle: list[greenlet] = []
        """Those whose thread has ended, for other threads: a new one costs more than a switch."""

        self._events: list[tuple[float, int, SimThread | None, Any]] = []
        """Each: its time, its number, and a thread with the turn in which it goes on, or None with an action."""

        self._number = 0
        self._until, self._may_stop = 0.0, False

    def at(self, when: float, action: Callable[..., Any], argument: Any = None) -> None:
        """Call `action(argument)` at a time. Two actions of one time are called in the order of their planning."""
        self._number += 1
        heappush(self._events, (when, self._number, None, (action, argument)))

    def resume_at(self, when: float, thread: SimThread, turn: int) -> None:
        """Let a thread go on at a time, if it is still in that turn."""
        self._number += 1
        heappush(self._events, (when, self._number, thread, turn))

    def run(self, until: float, *, may_stop: bool = False) -> bool:
        """Run to a time. With `may_stop`, return True as soon as the world is stopped."""
        events, most = self._events, MAX_STEPS
        self._until, self._may_stop = until, may_stop
        while events and events[0][0] <= until:
            if may_stop and self.is_stopped:
                return True
            self.now, _, thread, what = heappop(events)
            self.steps += 1
            if self.steps > most:
                raise NoRest
            if thread is None:
                action, argument = what
                action(argument)
            elif thread.may_resume(what):
                thread.go_on()
                self.current = None
        if may_stop and self.is_stopped:
            return True
        self.now = max(self.now, until)
        return False

    def go_on(self) -> None:
        """Run what is next, in the thread of this moment, until this thread itself is the next one.

        It switches from thread to thread for as long as `run` would do nothing else in between: half of all switches
        are saved.
        """
        events, this = self._events, self.current
        while events and not (self._may_stop and self.is_stopped):
            when, _, thread, turn = events[0]
            if thread is None or when > self._until or self.steps >= MAX_STEPS:
                break
            heappop(events)
            self.now = when
            self.steps += 1
            if thread.may_resume(turn):
                if thread is not this:
                    thread.go_on()
                return
        self.current = None
        self.hub.switch()

    def close(self) -> None:
        """End what is idle, once all processes have ended: the memory of a suspended greenlet is never freed."""
        for idle in self.idle:
            idle.throw(GreenletExit)

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
            self.world.resume_at(self.world.moment(), thread, turn)

    def postpone(self, thread: SimThread, turn: int) -> None:
        self._due.append((thread, turn))

    def _end_threads(self, _: Any) -> None:
        for thread in self.threads:
            thread.end()
        self.threads.clear()


def run_threads(thread: SimThread) -> None:
    """Run one thread after the other, in one greenlet."""
    world = thread.process.world
    while True:
        thread.run()
        world.idle.append(getcurrent())
        thread = world.hub.switch()


class SimThread:
    """A thread of a process."""

    __slots__ = ("_glet", "_woken", "args", "ended", "function", "locals", "name", "process", "turn")

    def __init__(self, process: Process, function: Callable[..., object], args: Any, name: str) -> None:
        self.process, self.function, self.args, self.name = process, function, args, name
        self._glet: greenlet | None = None
        self.turn = 0
        """Grows when it goes on: an event that was meant for an earlier wait has no effect."""

        self.ended = self._woken = False
        self.locals: dict[int, dict[str, Any]] = {}

    def run(self) -> None:
        """Run from the start to the end."""
        decisions.trace()
        try:
            self.function(*self.args)
        except ProcessKilled:
            pass
        finally:
            self.ended = True

    def go_on(self) -> None:
        """Start, or run on until the next wait."""
        if self._glet is not None:
            self._glet.switch()
            return
        world = self.process.world
        self._glet = world.idle.pop() if world.idle else greenlet(run_threads, world.hub)
        self._glet.switch(self)

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
            world.resume_at(when, self, self.turn)
        world.go_on()
        if not process.is_alive:
            raise ProcessKilled
        return self._woken

    def wake(self) -> None:
        """Let it go on soon."""
        self._woken = True
        world = self.process.world
        world.resume_at(world.moment(), self, self.turn)

    def may_resume(self, turn: int) -> bool:
        """Return whether it goes on now: then it is the thread of this moment."""
        process = self.process
        if turn != self.turn or self.ended or not process.is_alive:
            return False
        if process.is_frozen:
            process.postpone(self, turn)
            return False
        self.turn += 1
        process.world.current = self
        return True

    def end(self) -> None:
        """End it, in the hub, because its process was killed."""
        if not self.ended and self._glet is not None:
            self.process.world.current = self
            self._glet.throw(ProcessKilled)
            self.process.world.current = None
        self.ended = True
