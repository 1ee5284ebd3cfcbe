"""Shut a worker down, and watch its connection until then.

TERM ─► ShutdownCoordinator ─► no more messages ─► tasks finish, or are ended at the deadline ─► the event loop stops
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from celery import signals

from celeriac.broker.wakeup import Wakeup
from celeriac.surviving_loop import SurvivingLoop
from celeriac.worker.celery_internals import accepted_tasks, active_requests, stop_event_loop
from celeriac.worker.idle import IDLE_EXIT, IdleTimer
from celeriac.worker.lease_manager import LeaseManager
from celeriac.worker.log import log_event, logger
from celeriac.worker.pool import CommandPool
from celeriac.worker.pool_control import PoolControl
from celeriac.worker.shutdown_steps import Request, ShutdownSteps, Step

if TYPE_CHECKING:
    from celeriac.worker.consumer import Worker

WATCH_INTERVAL = 1.0  # seconds between two checks of the connection
MAX_ROUND_DELAY = 1.0  # seconds after an unexpected exception until the next look
SHUTDOWN_POLL_INTERVAL = 0.1  # seconds between two checks whether all tasks have ended


class ShutdownCoordinator:
    """A thread beside the event loop: it watches the connection to the broker, and carries out a shutdown."""

    def __init__(
        self,
        pool_control: PoolControl,
        grace: float,
        lease_manager: LeaseManager | None = None,
        *,
        idle_exit: float | None = None,
    ) -> None:
        """`grace` is the time, in seconds, that running tasks get to finish. After `idle_exit` seconds without a task
        the worker shuts down by itself."""
        self._pool_control, self._lease_manager = pool_control, lease_manager
        self._idle_timer = IdleTimer(idle_exit)
        self._steps = ShutdownSteps(grace)
        self._requests: SimpleQueue[Request] = SimpleQueue()
        self._wakeup = Wakeup()
        self._asked_by: str | None = None

    @property
    def is_shutting_down(self) -> bool:
        return self._steps.step is not Step.RUN

    def request(self, request: Request, asked_by: str | None = None) -> None:
        """Let the worker shut down. `asked_by` is who asks from elsewhere. Safe in a signal handler."""
        self._asked_by = self._asked_by or asked_by
        self._requests.put(request)

    def watch(self, worker: Worker) -> None:
        """Start the thread."""
        if isinstance(worker.pool, CommandPool):
            worker.pool.on_task_end = self.wake
        signals.task_revoked.connect(self._on_revoked, weak=False)
        SurvivingLoop("celeriac-shutdown", partial(self._run_round, worker), max_delay=MAX_ROUND_DELAY).start()

    def wake(self) -> None:
        """Make the event loop run the calls that wait for it."""
        self._wakeup.notify()

    def register_with(self, hub: Any) -> None:
        """Let the event loop wait for `wake`."""
        hub.add_reader(self._wakeup.fileno(), self._wakeup.clear)

    def _on_revoked(self, **_: Any) -> None:
        """Wake the event loop, so that it acknowledges the message now, and not a second later. RabbitMQ delivers the
        next message only after the acknowledgement."""
        self.wake()

    def _run_round(self, worker: Worker) -> bool:
        self._wait_for_request()
        while self._steps.advance(time.monotonic()):
            self._begin_step()
        if self.is_shutting_down:
            worker.parts.acks.retry()
            self._stop_when_idle(worker)
        else:
            worker.watch_connection()
            self._exit_if_idle(worker)
        return True

    def _exit_if_idle(self, worker: Worker) -> None:
        activity = (worker.was_ready, accepted_tasks())
        if self._idle_timer.is_over(is_busy=worker.is_busy, activity=activity, now=time.monotonic()):
            log_event("shutting down: idle", seconds=self._idle_timer.limit)
            self.request(Request.IDLE, IDLE_EXIT)

    def _wait_for_request(self) -> None:
        with suppress(Empty):
            timeout = SHUTDOWN_POLL_INTERVAL if self.is_shutting_down else WATCH_INTERVAL
            self._steps.request(self._requests.get(timeout=timeout))

    def _begin_step(self) -> None:
        match self._steps.step:
            case Step.DRAIN:
                self._pool_control.take_no_more()
                if self._lease_manager is not None:
                    self._lease_manager.drain(self._asked_by)
            case Step.END:
                log_event("shutting down: ending the running tasks")
                try:
                    self._pool_control.end()
                finally:
                    self._steps.commands_ended(time.monotonic())
            case Step.EXIT:
                self._exit()

    def _exit(self) -> None:
        logger.error("the worker could not acknowledge its last messages: the broker will deliver them again")
        try:
            self._pool_control.close()
            if self._lease_manager is not None:
                self._lease_manager.end_lease()
        finally:
            os._exit(0)  # nothing else ends threads that wait for an unavailable result backend

    def _stop_when_idle(self, worker: Worker) -> None:
        """Accept no more messages; stop the event loop once no task runs and all are acknowledged."""
        if worker.is_waiting_for_broker:
            if self._steps.may_stop(is_busy=worker.is_busy):
                stop_event_loop()
            return
        worker.hub.call_soon(partial(self._in_event_loop, worker))
        self.wake()

    def _in_event_loop(self, worker: Worker) -> None:
        consumer = worker.consumer
        if queues := list(consumer.app.amqp.queues.consume_from):
            for queue in queues:
                consumer.cancel_task_queue(queue)
            log_event("shutting down: no more messages are accepted", running=len(active_requests()))
        if self._steps.may_stop(is_busy=worker.is_busy):
            worker.hub.call_soon(stop_event_loop)
            self.wake()
