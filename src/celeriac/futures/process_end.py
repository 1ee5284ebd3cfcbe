"""Finish the tasks of all drivers when the interpreter exits, and forget the drivers in forked children.

At exit, all tasks are finished first, as with `ProcessPoolExecutor`. After Ctrl-C, they are ended instead. The drivers
are daemon threads: they still run when `atexit` calls its functions, and every other thread of the program has ended
before. A child process does nothing for the tasks of its parent.
"""

from __future__ import annotations

import atexit
import os
import sys
from typing import TYPE_CHECKING
from weakref import WeakSet

if TYPE_CHECKING:
    from celeriac.futures.driver import Driver

drivers: WeakSet[Driver] = WeakSet()
"""The drivers of this process. Empty until the first one starts."""

registered: list[bool] = []


def register(driver: Driver) -> None:
    """Let a driver finish before the interpreter exits."""
    if not registered:
        registered.append(True)
        atexit.register(finish_all)
        os.register_at_fork(after_in_child=forget_all)
    drivers.add(driver)


def finish_all() -> None:
    """Wait for all tasks. End them if Ctrl-C has ended the program, or if it comes now."""
    running = list(drivers)
    for driver in running:
        driver.shut_down()
    try:
        if was_interrupted():
            terminate_all(running)
        join_all(running)
    except KeyboardInterrupt:
        terminate_all(running)
        join_all(running)
        raise


def terminate_all(running: list[Driver]) -> None:
    for driver in running:
        driver.terminate()


def join_all(running: list[Driver]) -> None:
    for driver in running:
        driver.join()


def was_interrupted() -> bool:
    """Return whether Ctrl-C has ended the program. In an interactive session it does not."""
    last = getattr(sys, "last_type", None)
    return last is not None and issubclass(last, KeyboardInterrupt) and not hasattr(sys, "ps1")


def forget_all() -> None:
    """Close in a child process what it has inherited: otherwise the supervisors would not see the parent's end."""
    for driver in list(drivers):
        driver.forget()
    drivers.clear()
