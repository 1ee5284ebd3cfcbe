"""A worker's way to go, and the look at its connection while it stays.

TERM ─► Warden ─► nothing more is taken ─► what runs ends, or is ended at the deadline ─► the event loop stops
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from celery import signals
from celery.worker import state as worker_state

from celeriac.worker.lease_manager import LeaseManager
from celeriac.worker.log import log_event, logger
from celeriac.worker.pool import CommandPool
from celeriac.worker.pool_control import PoolControl

if TYPE_CHECKING:
    from celeriac.worker.consumer import Worker

TICK = 1.0  # seconds between two looks at the connection
GOING_TICK = 0.1  # seconds between two looks whether all that ran has ended
LAST_PATIENCE = 10.0  # seconds for results and acknowledgements, once the commands have been ended


class ShutdownCoordinator:
    """A thread beside the event loop: looks whether the broker lives, and sees the worker out when it must go."""

    def __init__(self, hands: PoolControl, grace: float, keeper: LeaseManager | None = None) -> None:
        self._hands, self._grace, self._keeper = hands, grace, keeper
        self._asked: SimpleQueue[None] = SimpleQueue()
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)
        self._woken.setblocking(False)
        self.is_going = False

    def request_shutdown(self) -> None:
        """Once: finish what runs. Twice: at once. Safe in a signal handler."""
        self._asked.put(None)

    def watch(self, worker: Worker) -> None:
        if isinstance(worker.pool, CommandPool):
            worker.pool.wake = self.wake
        signals.task_revoked.connect(self._on_revoked, weak=False)
        threading.Thread(target=self._run, args=(worker,), name="celeriac-warden", daemon=True).start()

    def wake(self) -> None:
        """Make the event loop look at what waits for it."""
        with contextlib.suppress(BlockingIOError):  # woken often enough already
            self._waker.send(b"!")

    def register_with(self, hub: Any) -> None:
        hub.add_reader(self._woken.fileno(), self._on_wake)

    def _on_revoked(self, **_: Any) -> None:
        """Its acknowledgement waits in the event loop, and with RabbitMQ so would the next message: a second each."""
        self.wake()

    def _on_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(4096)

    def _run(self, worker: Worker) -> None:
        while not self._was_asked(TICK):
            worker.watchdog.look(worker.hub)
        self.is_going = True
        self._hands.take_no_more()
        if self._keeper is not None:
            self._keeper.drain()
        deadline = time.monotonic() + self._grace
        while time.monotonic() < deadline and not self._was_asked(GOING_TICK):
            self._see_out(worker)
        log_event("going: what runs is ended")
        self._hands.end()
        deadline = time.monotonic() + LAST_PATIENCE
        while time.monotonic() < deadline:
            self._see_out(worker)
            time.sleep(GOING_TICK)  # the event loop ends the process when it is done: there is nothing to await
        logger.error("the worker could not hand back its last messages: the broker will deliver them again")
        self._hands.close()
        if self._keeper is not None:
            self._keeper.end_lease()
        os._exit(0)  # threads that wait for a result backend that is away cannot be ended otherwise

    def _was_asked(self, timeout: float) -> bool:
        try:
            self._asked.get(timeout=timeout)
        except Empty:
            return False
        return True

    def _see_out(self, worker: Worker) -> None:
        """Take no more messages; stop once nothing runs. What is left to acknowledge comes first."""
        if worker.consumer.connection is None:
            if not worker.is_busy:
                worker_state.should_stop = 0
            return
        worker.hub.call_soon(partial(self._step_out, worker))
        self.wake()

    def _step_out(self, worker: Worker) -> None:
        consumer = worker.consumer
        if queues := list(consumer.app.amqp.queues.consume_from):
            for queue in queues:
                consumer.cancel_task_queue(queue)
            log_event("going: nothing more is taken", running=len(worker_state.active_requests))
        if not worker.is_busy:
            worker.hub.call_soon(stop)
            self.wake()


def stop() -> None:
    worker_state.should_stop = 0
