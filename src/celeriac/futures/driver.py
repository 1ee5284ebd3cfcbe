"""The thread that owns a `CeleryExecutor`: it takes requests, sends heartbeats and ends futures.

    inbox ─► queue or revoke a task
             heartbeat ─► events ─► the final one of a task ends its future; all of them go to the listeners
             wait, until something may have changed

An unexpected exception is logged, and the next round follows. If rounds keep failing, or the ledger is lost, the driver
ends, and all futures get the exception.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Future
from functools import partial
from typing import Protocol
from weakref import WeakSet

from celeriac.errors import LedgerBroken, LedgerLost, TaskAlreadyQueued, describe_error
from celeriac.executor.executor import MAX_WAIT, CeleryExecutor
from celeriac.executor.traced import with_caller
from celeriac.futures.future import TaskFuture
from celeriac.surviving_loop import SurvivingLoop
from celeriac.task.event import Event
from celeriac.task.result import Result
from celeriac.task.task import Task, TaskKey

THREAD = "celeriac-futures"
PART = 1_000  # requests between two heartbeats; each takes about 10 µs
MAX_FAILURES = 8  # rounds in a row that may fail
END_TIMEOUT = 60.0  # seconds for revoked tasks to end, before they are given up


class Listener(Protocol):
    """Receives events, in the driver's thread."""

    def put(self, events: Sequence[Event] | None) -> None:
        """Take events. None says that no more follow."""
        ...


class Driver:
    """Only the methods in the first part may be called from other threads."""

    def __init__(
        self,
        executor: CeleryExecutor,
        *,
        wake: Callable[[], None],
        close: Callable[[], None] | None,
        forget: Callable[[], None] | None,
    ) -> None:
        """`wake` ends the executor's wait. `close` closes what this driver owns, and `forget` does so in a child."""
        self._executor, self._wake, self._close, self._forget = executor, wake, close, forget
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._futures: dict[TaskKey, TaskFuture] = {}
        """The futures of the tasks that have not ended. Only `submit` adds to it, with the lock."""

        self._inbox: deque[Callable[[], None]] = deque()
        self._is_notified = self._is_shut_down = self._is_terminated = False
        self._error: BrokenExecutor | None = None
        self._listeners: WeakSet[Listener] = WeakSet()
        self._give_up_at: float | None = None
        self._failures = self._last_number = 0
        self.has_ended: Future[None] = Future()
        """Done when all tasks have ended and everything is closed."""

        self.has_ended.set_running_or_notify_cancel()  # a waiter that is cancelled must not cancel it
        self._executor.intake.ask_before_sending(self._may_send)
        self._loop = SurvivingLoop(THREAD, self._run_round)

    # — any thread —

    def start(self) -> None:
        self._loop.start()

    def submit(self, task: Task) -> TaskFuture:
        """Queue a task. Raise `InvalidTask`, `TaskAlreadyQueued`, `BrokenExecutor`, or `RuntimeError` after the end."""
        if not self.is_mine:
            raise RuntimeError("this executor belongs to the process that made it; create a new one in each process")
        if (traces := self._executor.telemetry.traces) is not None:
            task = with_caller(task, traces)  # the driver's thread does not know the span of this one
        future = TaskFuture(task.key, self.revoke)
        with self._lock:
            if self._error is not None:
                raise BrokenExecutor(str(self._error)) from self._error.__cause__
            if self._is_shut_down:
                raise RuntimeError("cannot submit a task after shutdown; create a new executor")
            if task.key in self._futures:
                raise TaskAlreadyQueued(task.key)
            self._executor.intake.check(task, self._futures)
            self._futures[task.key] = future
            self._inbox.append(partial(self._queue, task, future))
        self._notify()
        return future

    def revoke(self, future: TaskFuture) -> None:
        """Revoke the task of a future, if it has not ended."""
        self._inbox.append(partial(self._revoke, future))
        self._notify()

    def shut_down(self, *, cancel_futures: bool = False) -> None:
        """Accept no more tasks, and end when all have ended. With `cancel_futures`, cancel those that were not sent.

        Do nothing in a child process: it may have inherited the lock while another thread held it."""
        if not self.is_mine:
            return
        with self._lock:
            self._is_shut_down = True
            waiting = list(self._futures.values()) if cancel_futures else []
        for future in waiting:
            future.cancel()
        self._notify()

    def terminate(self) -> None:
        """End all tasks: cancel those that were not sent, and revoke the others."""
        self.shut_down(cancel_futures=True)
        self._is_terminated = True
        self._notify()

    def abandon(self) -> None:
        """Shut down. The garbage collector may call this at any moment, so it takes no lock."""
        self._is_shut_down = True
        self._notify()

    def join(self) -> None:
        """Wait until the thread has ended. Return at once in a child process."""
        if self.is_mine:
            self._loop.join()

    def listen(self, listener: Listener) -> None:
        """Send a listener all events from now on, for as long as somewhere else refers to it."""
        with self._lock:
            if not self.has_ended.done():
                self._listeners.add(listener)
                return
        listener.put(None)

    def forget(self) -> None:
        """Close what a child process has inherited."""
        if self._forget is not None:
            self._forget()

    @property
    def is_mine(self) -> bool:
        """Whether this is the process that started the driver."""
        return self._pid == os.getpid()

    def _notify(self) -> None:
        if not self._is_notified and self.is_mine:
            self._is_notified = True
            self._wake()

    # — the driver's thread —

    def adopt(self) -> Mapping[TaskKey, TaskFuture]:
        """Take over the tasks that the executor has recovered, before `start`. Return their futures, by key."""
        for task in self._executor.tasks():
            self._futures[task.key] = TaskFuture(task.key, self.revoke)
            self._futures[task.key].start()  # it may have been sent
        recovered = dict(self._futures)
        for event in self._executor.get_event_buffer():
            if event.state.is_final:
                recovered[event.key] = TaskFuture(event.key, self.revoke)
                recovered[event.key].resolve(result_of(event))
        return recovered

    def _run_round(self) -> bool:
        if self.has_ended.done():
            return False
        try:
            goes_on = self._beat()
        except (LedgerLost, LedgerBroken) as error:
            self._break(error)
            return False
        except Exception as error:
            self._failures += 1
            if self._failures < MAX_FAILURES:
                raise
            self._break(error)
            return False
        except BaseException as error:  # a callback of a future has ended the thread
            self._break(error)
            raise
        self._failures = 0
        return goes_on

    def _beat(self) -> bool:
        """Return whether another round follows."""
        self._is_notified = False
        for _ in range(min(PART, len(self._inbox))):
            self._inbox.popleft()()
        if self._is_terminated and self._give_up_at is None:
            self._give_up_at = time.monotonic() + END_TIMEOUT
            self._executor.terminate()
        self._executor.heartbeat()
        if self._give_up_at is not None and time.monotonic() >= self._give_up_at:
            self._executor.end(0, abandon=True)
        self._apply(self._executor.get_event_buffer())
        if self._inbox or self._is_notified:
            return True
        with self._lock:
            is_done = self._is_shut_down and not self._futures
        if is_done:
            self._finish()
            return False
        self._executor.wait(MAX_WAIT if self._give_up_at is None else self._give_up_at - time.monotonic())
        return True

    def _queue(self, task: Task, future: TaskFuture) -> None:
        try:
            self._executor.queue_task(task)  # if it was cancelled meanwhile, `_revoke` follows
        except Exception as error:  # noqa: BLE001 - its caller gets it
            self._futures.pop(task.key, None)
            future.resolve(error)

    def _revoke(self, future: TaskFuture) -> None:
        if self._futures.get(future.key) is future:
            self._executor.revoke_tasks([future.key])

    def _may_send(self, key: TaskKey) -> bool:
        future = self._futures.get(key)
        return future is None or future.start()

    def _apply(self, events: Sequence[Event]) -> None:
        if not events:
            return
        self._last_number = events[-1].number
        self._tell(events)
        for event in events:
            if event.state.is_final and (future := self._futures.pop(event.key, None)) is not None:
                future.resolve(result_of(event))

    def _tell(self, events: Sequence[Event] | None) -> None:
        with self._lock:
            listeners = list(self._listeners)
        for listener in listeners:
            listener.put(events)

    def _finish(self) -> None:
        """Write the ledger, close what this driver owns, and tell those who wait for it."""
        try:
            self._executor.acknowledge(self._last_number)
            self._executor.end(0)
        finally:
            self._end()

    def _end(self) -> None:
        if self.has_ended.done():
            return
        try:
            if self._close is not None:
                self._close()
        finally:
            with self._lock:
                self.has_ended.set_result(None)
            self._tell(None)

    def _break(self, error: BaseException) -> None:
        """Give all futures the exception, and end. What was sent may go on, unless this driver owns the cluster."""
        reason = f"the executor cannot go on: {describe_error(error)}"
        with self._lock:
            self._error = BrokenExecutor(reason)
            self._error.__cause__ = error
            futures = list(self._futures.values())
            self._futures.clear()
        for future in futures:
            broken = BrokenExecutor(reason)
            broken.__cause__ = error
            future.resolve(broken)
        self._end()


def result_of(event: Event) -> Result:
    """Return the result of the task that ended with this event."""
    return Result(event.state, event.reason, event.detail, event.execution)
