"""Test a scheduler without Celery, servers or sleeping: with a broker, workers and a result backend in memory.

The clock moves only when the test advances it:

    clock = ManualClock()
    broker = InMemoryBroker(clock)
    executor = CeleryExecutor(
        Config(parallelism=2), publisher=broker, results=broker, revoker=broker, clock=clock, wall_clock=clock
    )
    executor.queue_command("a", "gzip -k data.csv")
    executor.heartbeat()
    broker.fail("a", exit_code=2)
    executor.heartbeat()
    assert [event.state for event in executor.get_event_buffer()] == [State.QUEUED, State.FAILED]
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from celeriac.executor.interfaces import NotSent, PendingRequest, Receipt, Sent, Unreadable, Unsure
from celeriac.executor.requests import Reply, Request
from celeriac.task.result import Execution, Reason, Result
from celeriac.task.state import State
from celeriac.task.task import Task, TaskKey

HOST = "in-memory"


class ManualClock:
    """A clock that stands still until `advance` is called. Calling the object returns the time."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now
        """The time in seconds."""

        self._plans: list[tuple[float, int, Callable[[], object]]] = []
        self._order = count()

    def __call__(self) -> float:
        return self.now

    def after(self, seconds: float, action: Callable[[], object]) -> None:
        """Call `action` when `seconds` have passed."""
        heapq.heappush(self._plans, (self.now + seconds, next(self._order), action))

    def advance(self, seconds: float, *, until: Callable[[], bool] = lambda: False) -> None:
        """Move the clock, and call the planned actions at their times. Stop early when `until` returns True."""
        end = self.now + seconds
        while not until() and self._plans and self._plans[0][0] <= end:
            self.now, _, action = heapq.heappop(self._plans)
            action()
        if not until():
            self.now = end


@dataclass(frozen=True, slots=True)
class Fault:
    """A failure when a task is sent."""

    receipt: Callable[[Task], Receipt]
    delivered: bool = False
    """Whether the message arrives in spite of the failure."""


class InMemoryBroker:
    """A Publisher, Revoker and ResultReader in memory. It runs no commands: the test ends each task."""

    def __init__(self, clock: ManualClock | None = None) -> None:
        """With a clock, `wait` advances it; without one, `wait` returns at once."""
        self.batches: list[list[Task]] = []
        """The tasks of each call of `publish`, whether they arrived or not."""

        self.messages: list[Task] = []
        """The tasks that arrived, in order. A task that was sent twice is in it twice."""

        self.results: dict[str, Result | Unreadable] = {}
        """The contents of the result backend, by Celery id."""

        self.revoked: list[str] = []
        """The Celery ids that were revoked, in order."""

        self.obeys_revokes = True
        """Whether revoked tasks end as REVOKED without a call of the test, as with live workers."""

        self.pushes = False
        """Whether `changed` names every change: see `ResultReader.pushes`."""

        self.answered = True
        """Whether the result backend answers: see `ResultReader.answered`."""

        self.forgotten: list[str] = []
        """The Celery ids whose results were deleted, in order."""

        self.is_durable = False
        """Whether revokes reach workers that start later."""

        self._clock = clock
        self._hints: list[str] = []
        self._fault: Fault | None = None
        self._fault_by_key: dict[TaskKey, Fault] = {}

    # — the actions of workers, by the key of the task —

    def start(self, key: TaskKey) -> None:
        """Report the task as running."""
        self.put(self.message(key).message_id, Result(State.RUNNING, execution=Execution(host=HOST)))

    def succeed(self, key: TaskKey) -> None:
        """Report that its command succeeded."""
        execution = Execution(host=HOST, exit_code=0)
        self.put(self.message(key).message_id, Result(State.SUCCESS, execution=execution))

    def fail(self, key: TaskKey, exit_code: int = 1) -> None:
        """Report that its command failed."""
        execution = Execution(host=HOST, exit_code=exit_code)
        detail = f"exit code {exit_code}"
        self.put(self.message(key).message_id, Result(State.FAILED, Reason.EXIT_CODE, detail, execution))

    def message(self, key: TaskKey) -> Task:
        """Return the last message that arrived for this key. Raise `LookupError` if none did."""
        for task in reversed(self.messages):
            if task.key == key:
                return task
        raise LookupError(f"no message of task {key!r} has arrived; has the executor had a heartbeat?")

    @property
    def unfinished(self) -> list[Task]:
        """The tasks that arrived and have not ended, in order, each message once."""
        arrived = {task.message_id: task for task in self.messages}
        return [task for task in arrived.values() if not self._has_ended(task.message_id)]

    # — failures to send: of the tasks of these keys or, without a key, of all tasks —

    def refuse(self, *keys: TaskKey, transient: bool = True, error: Exception | None = None) -> None:
        """From now on, return `NotSent`: as in an outage, or with `transient=False` as a permanent error."""
        if error is None:
            error = ConnectionError("connection refused") if transient else ValueError("it cannot be encoded")
        self._set_fault(keys, Fault(lambda task: NotSent(task, error, transient)))

    def leave_unsure(self, *keys: TaskKey, delivered: bool, error: Exception | None = None) -> None:
        """From now on, return `Unsure`, as if the connection broke after the write."""
        reason = error or ConnectionError("the connection broke")
        self._set_fault(keys, Fault(lambda task: Unsure(task, reason), delivered))

    def heal(self, *keys: TaskKey) -> None:
        """End the failures of these tasks or, without a key, all failures."""
        for key in keys:
            self._fault_by_key.pop(key, None)
        if not keys:
            self._fault = None
            self._fault_by_key.clear()

    # — the contents of the result backend —

    def put(self, message_id: str, result: Result | Unreadable, *, hint: bool = True) -> None:
        """Store any result under any id: late, repeated, out of order, `Unreadable`, of an earlier or unknown attempt.

        Without a hint, the executor finds it with its next regular read.
        """
        self.results[message_id] = result
        if hint:
            self._hints.append(message_id)

    def lose(self, message_id: str) -> None:
        """Drop a result, as if the result backend had lost its data."""
        self.results.pop(message_id, None)

    # — the interfaces of the executor —

    def publish(self, tasks: Sequence[Task], *, timeout: float) -> list[Receipt]:
        self.batches.append(list(tasks))
        return [self._send(task) for task in tasks]

    def revoke(self, ids: Collection[str], *, unless_started: bool = False) -> None:
        self.revoked += ids
        if self.obeys_revokes:
            arrived = {task.message_id for task in self.messages}
            for message_id in ids:
                if message_id in arrived and not (unless_started and message_id in self.results):
                    self._end_revoked(message_id)

    def changed(self) -> Collection[str]:
        hints, self._hints = self._hints, []
        return hints

    def read(self, ids: Collection[str]) -> Mapping[str, Result | Unreadable]:
        return {message_id: self.results[message_id] for message_id in ids if message_id in self.results}

    def forget(self, ids: Collection[str]) -> None:
        self.forgotten += ids
        for message_id in ids:
            self.lose(message_id)

    def wait(self, timeout: float) -> None:
        if self._clock is not None:
            self._clock.advance(timeout, until=lambda: bool(self._hints))

    def _send(self, task: Task) -> Receipt:
        fault = self._fault_by_key.get(task.key, self._fault)
        if fault is None or fault.delivered:
            self.messages.append(task)
            if self.obeys_revokes and task.message_id in self.revoked:
                self._end_revoked(task.message_id)
        return fault.receipt(task) if fault else Sent(task)

    def _set_fault(self, keys: tuple[TaskKey, ...], fault: Fault) -> None:
        self._fault_by_key.update(dict.fromkeys(keys, fault))
        if not keys:
            self._fault = fault

    def _end_revoked(self, message_id: str) -> None:
        if not self._has_ended(message_id):
            self.put(message_id, Result(State.REVOKED, Reason.REVOKED, "revoked"))

    def _has_ended(self, message_id: str) -> bool:
        result = self.results.get(message_id)
        return isinstance(result, Unreadable) or (result is not None and result.state.is_final)


class InMemoryControlChannel:
    """A control channel for the requests of a test. The executor replies in its next `sync`."""

    def __init__(self) -> None:
        self._pending: list[PendingRequest] = []
        self._replies: dict[PendingRequest, list[Reply]] = {}

    def ask(self, request: Request) -> list[Reply]:
        """Send a request. Return the list to which the replies will be added."""
        pending = PendingRequest(request)
        self._pending.append(pending)
        return self._replies.setdefault(pending, [])

    # — the interface of the executor —

    def take_requests(self) -> list[PendingRequest]:
        pending, self._pending = self._pending, []
        return pending

    def reply(self, pending: PendingRequest, reply: Reply) -> None:
        self._replies[pending].append(reply)
