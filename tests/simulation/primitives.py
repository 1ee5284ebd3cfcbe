"""Stand in for `threading`, `queue`, `time`, `uuid` and `random` while a history runs.

Outside a simulated thread each of them is the real one.
"""

from __future__ import annotations

import os
import queue
import random
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType, ModuleType
from typing import Any

from tests.simulation.world import ProcessKilled, SimThread, World

worlds: list[World] = []
"""The world of the history that runs now, if one does."""


def current() -> SimThread | None:
    return worlds[-1].current if worlds else None


def here() -> SimThread:
    """Return the simulated thread that runs now."""
    thread = worlds[-1].current
    assert thread is not None
    if not thread.process.is_alive:
        raise ProcessKilled
    return thread


# — time —


def monotonic() -> float:
    thread = worlds[-1].current if worlds else None
    if thread is None:
        return REAL_MONOTONIC()
    process = thread.process
    return process.started_at + process.world.now * process.rate


def wall() -> float:
    thread = current()
    return thread.process.wall() if thread is not None else REAL_TIME()


def sleep(seconds: float) -> None:
    if current() is None:
        REAL_SLEEP(seconds)
    else:
        here().wait(seconds)


# — threads —


class Waiters:
    """Threads that wait for one thing, in order."""

    def __init__(self) -> None:
        self._threads: deque[SimThread] = deque()

    def wait(self, timeout: float | None) -> bool:
        thread = here()
        self._threads.append(thread)
        try:
            return thread.wait(timeout)
        finally:
            if thread in self._threads:
                self._threads.remove(thread)

    def wake(self, number: int | None = None) -> None:
        while self._threads and number != 0:
            self._threads.popleft().wake()
            number = None if number is None else number - 1


class Event:
    def __init__(self) -> None:
        self._is_set, self._waiters = False, Waiters()

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        self._waiters.wake()

    def clear(self) -> None:
        self._is_set = False

    def wait(self, timeout: float | None = None) -> bool:
        if not self._is_set:
            self._waiters.wait(timeout)
        return self._is_set


class Lock:
    """A lock that the same thread may acquire again. Its waiters compete for it."""

    def __init__(self) -> None:
        self._owner: SimThread | None = None
        self._depth, self._waiters = 0, Waiters()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        thread = here()
        while self._owner not in (None, thread) and self._owner.process.is_alive:
            if not blocking:
                return False
            if not self._waiters.wait(None if timeout < 0 else timeout) and timeout >= 0:
                return False
        self._owner = thread
        self._depth += 1
        return True

    def release(self) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = None
            self._waiters.wake(1)

    def locked(self) -> bool:
        return self._owner is not None

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def give_up(self) -> int:
        """Release it however often it was acquired. Return how often."""
        depth, self._depth = self._depth, 1
        self.release()
        return depth

    def take_back(self, depth: int) -> None:
        self.acquire()
        self._depth = depth


class Condition:
    def __init__(self, lock: Lock | None = None) -> None:
        self._lock, self._waiters = lock or Lock(), Waiters()
        self.acquire, self.release = self._lock.acquire, self._lock.release

    def __enter__(self) -> bool:
        return self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        depth = self._lock.give_up()
        try:
            return self._waiters.wait(timeout)
        finally:
            if here_or_none() is not None:
                self._lock.take_back(depth)

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        deadline = None if timeout is None else monotonic() + timeout
        while not (result := predicate()):
            left = None if deadline is None else deadline - monotonic()
            if left is not None and left <= 0:
                break
            self.wait(left)
        return result

    def notify(self, n: int = 1) -> None:
        self._waiters.wake(n)

    def notify_all(self) -> None:
        self._waiters.wake()


def here_or_none() -> SimThread | None:
    thread = current()
    return thread if thread is not None and thread.process.is_alive else None


class Thread:
    def __init__(
        self,
        group: None = None,
        target: Any = None,
        name: str = "",
        args: Any = (),
        kwargs: Any = None,
        daemon: Any = None,
    ) -> None:
        self._call, self.name, self.daemon = (target, args, kwargs or {}), name, daemon
        self._thread: SimThread | None = None
        self._ended = Event()

    def start(self) -> None:
        self._thread = here().process.spawn(self._run, name=self.name)

    def _run(self) -> None:
        target, args, options = self._call
        try:
            target(*args, **options)
        finally:
            self._ended.set()

    @property
    def ident(self) -> int | None:
        return None if self._thread is None else id(self._thread)

    def is_alive(self) -> bool:
        return self._thread is not None and not self._thread.ended and self._thread.process.is_alive

    def join(self, timeout: float | None = None) -> None:
        if self.is_alive():
            self._ended.wait(timeout)


class Local:
    """Attributes of one thread."""

    def __getattr__(self, name: str) -> Any:
        try:
            return here().locals[id(self)][name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        here().locals.setdefault(id(self), {})[name] = value


class SimpleQueue:
    def __init__(self) -> None:
        self._items: deque[Any] = deque()
        self._waiters = Waiters()

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        self._items.append(item)
        self._waiters.wake(1)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        deadline = None if timeout is None else monotonic() + timeout
        while not self._items:
            left = None if deadline is None else deadline - monotonic()
            if not block or (left is not None and left <= 0):
                raise queue.Empty
            self._waiters.wait(left)
        return self._items.popleft()

    def get_nowait(self) -> Any:
        return self.get(block=False)

    def empty(self) -> bool:
        return not self._items

    def qsize(self) -> int:
        return len(self._items)


# — chance —


class SeededUuid:
    """An id as `uuid4` makes it, from the history's own chance."""

    def __init__(self) -> None:
        self.hex = f"{worlds[-1].random.getrandbits(128):032x}"

    def __str__(self) -> str:
        return self.hex


def seeded_uuid() -> Any:
    return SeededUuid() if current() is not None else REAL_UUID()


def seeded_random(*seed: Any) -> Any:
    return worlds[-1].random if current() is not None and not seed else REAL_RANDOM(*seed)


def seeded_bytes(size: int) -> bytes:
    return worlds[-1].random.randbytes(size) if worlds else REAL_URANDOM(size)


def simulated_pid() -> int:
    if not worlds:
        return REAL_PID()
    thread = current()
    return 1 if thread is None else thread.process.pid


# — what stands in for what —


REAL_MONOTONIC, REAL_TIME, REAL_SLEEP = time.monotonic, time.time, time.sleep
REAL_UUID, REAL_RANDOM, REAL_URANDOM = uuid.uuid4, random.Random, os.urandom
REAL_PID = os.getpid
SIMULATED: dict[tuple[Any, str], Any] = {
    (time, "monotonic"): monotonic,
    (time, "time"): wall,
    (time, "sleep"): sleep,
    (uuid, "uuid4"): seeded_uuid,
    (os, "getpid"): simulated_pid,
    (os, "urandom"): seeded_bytes,
    (random, "Random"): seeded_random,
}
CLASSES: dict[tuple[Any, str], Any] = {
    (threading, "Event"): Event,
    (threading, "Lock"): Lock,
    (threading, "RLock"): Lock,
    (threading, "Condition"): Condition,
    (threading, "Thread"): Thread,
    (threading, "local"): Local,
    (queue, "SimpleQueue"): SimpleQueue,
}


def either(real: Any, simulated: Any) -> Callable[..., Any]:
    """Return a factory that makes the simulated kind in a simulated thread."""

    def make(*args: Any, **options: Any) -> Any:
        return (simulated if current() is not None else real)(*args, **options)

    return make


@contextmanager
def simulated() -> Iterator[None]:
    """Stand in for the real ones in all modules of Celeriac that are loaded, and as defaults of their arguments."""
    stand_ins = SIMULATED | {
        (module, name): either(getattr(module, name), simulated_class)
        for (module, name), simulated_class in CLASSES.items()
    }
    by_identity = {id(getattr(module, name)): value for (module, name), value in stand_ins.items()}
    places = [vars(module) for module in {module for module, _ in stand_ins}]
    for name, module in list(sys.modules.items()):
        if name.startswith("celeriac"):
            places.append(vars(module))
            places += [function.__kwdefaults__ for function in functions_of(module) if function.__kwdefaults__]
    changes = [
        (place, name, value) for place in places for name, value in list(place.items()) if id(value) in by_identity
    ]
    for place, name, value in changes:
        place[name] = by_identity[id(value)]
    try:
        yield
    finally:
        for place, name, value in changes:
            place[name] = value


def functions_of(module: ModuleType) -> Iterator[FunctionType]:
    """Yield the functions and methods of a module."""
    for value in list(vars(module).values()):
        if isinstance(value, FunctionType):
            yield value
        elif isinstance(value, type) and value.__module__ == module.__name__:
            yield from (method for method in vars(value).values() if isinstance(method, FunctionType))
