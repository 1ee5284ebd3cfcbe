"""Share out the CPUs, memory and GPUs of one worker: no more runs than fits.

thread with a message ─► turn ─► enough is free ─► claim, command ─► given back
                             └─► waits, and keeps what it needs ─► handed back: another worker may have room

The broker gives a task to any worker of its queue, also to one that is full while another is idle. So a task does not
wait here for long. Each time that it comes again to the same worker it waits twice as long, and meanwhile no smaller
task takes what it waits for: so it starts somewhere. Its task is not claimed yet, and can be cancelled.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from celeriac.task.amounts import NOTHING, Amounts, milli, missing
from celeriac.worker.machine import Machine
from celeriac.worker.share import GpuPool

POLL_INTERVAL = 0.2  # seconds in which a waiting thread notices the shutdown of the worker
FIRST_PATIENCE = 0.25  # seconds that a task waits at a worker before it is handed back; doubled each time
MAX_PATIENCE = 60.0  # seconds
FIRST_PATIENCE_IN_VAIN, MAX_PATIENCE_IN_VAIN = 0.02, 5.0  # seconds; the same if the worker will never have enough
MAX_REMEMBERED = 1_000  # tasks that were handed back


class ResourceRoom:
    """The resources of one worker, for its commands. Threads share it."""

    def __init__(self, machine: Machine) -> None:
        self.total = machine.amounts
        self._gpus = GpuPool(machine.gpus)
        self._change = threading.Condition()
        self._free = machine.amounts
        self._waiting: dict[object, tuple[str, Amounts]] = {}
        """The task of each waiting thread, and what it needs, in the order of their arrival. Several messages may have
        the same task."""

        self._handed_back: OrderedDict[str, int] = OrderedDict()
        """How often each task was handed back."""

    @property
    def waiting(self) -> tuple[str, ...]:
        """The ids of the tasks that wait for their start."""
        with self._change:
            return tuple(task_id for task_id, _ in self._waiting.values())

    @contextmanager
    def turn(self, task_id: str, needs: Amounts, takes_no_more: Callable[[], bool]) -> Iterator[tuple[str, ...] | None]:
        """Wait until there is enough for a command, and take it until the end of the block. Yield its GPUs; None if it
        has to be handed back."""
        if needs == NOTHING:
            yield ()
            return
        gpus = self._wait(task_id, needs, takes_no_more)
        try:
            yield gpus
        finally:
            if gpus is not None:
                with self._change:
                    self._free = self._free.plus(needs)
                    self._gpus.give_back(gpus)
                    self._change.notify_all()

    def _wait(self, task_id: str, needs: Amounts, takes_no_more: Callable[[], bool]) -> tuple[str, ...] | None:
        place = object()
        with self._change:
            self._waiting[place] = (task_id, needs)
            give_up_at = time.monotonic() + self._patience(task_id, in_vain=bool(missing(needs, self.total)))
            try:
                while not takes_no_more():
                    if not missing(needs, self._left_for(place)):
                        self._free = self._free.minus(needs)
                        return self._gpus.take(needs.gpus)
                    if (seconds_left := give_up_at - time.monotonic()) <= 0:
                        self._remember(task_id)
                        break
                    self._change.wait(min(POLL_INTERVAL, seconds_left))
            finally:
                del self._waiting[place]
                self._change.notify_all()
        return None

    def _left_for(self, place: object) -> Amounts:
        """Return what is free for a thread: those that came before it keep what they need, if it is there at all."""
        left = self._free
        for other, (_, needs) in self._waiting.items():
            if other is place:
                break
            if not missing(needs, self.total):
                left = left.minus(needs)
        return left

    def _patience(self, task_id: str, *, in_vain: bool) -> float:
        first, longest = (FIRST_PATIENCE_IN_VAIN, MAX_PATIENCE_IN_VAIN) if in_vain else (FIRST_PATIENCE, MAX_PATIENCE)
        return min(longest, first * 2.0 ** min(10, self._handed_back.get(task_id, 0)))

    def _remember(self, task_id: str) -> None:
        self._handed_back[task_id] = self._handed_back.pop(task_id, 0) + 1
        if len(self._handed_back) > MAX_REMEMBERED:
            self._handed_back.popitem(last=False)


def needs_of(message: Mapping[str, Any]) -> Amounts:
    """Return what the command of a message needs."""
    return Amounts(milli(message.get("cpus") or 0), message.get("memory") or 0, message.get("gpus") or 0)
