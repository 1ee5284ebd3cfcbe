"""A broker, workers and a result backend in memory, and a clock that moves when told to: to test a scheduler without
Celery, without a server and without sleeping.

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
    """Seconds that pass only when told to. Called, it tells the time."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now
        self._plans: list[tuple[float, int, Callable[[], object]]] = []
        self._order = count()

    def __call__(self) -> float:
        return self.now

    def after(self, seconds: float, action: Callable[[], object]) -> None:
        """Call `action` once that much time has passed."""
        heapq.heappush(self._plans, (self.now + seconds, next(self._order), action))

    def advance(self, seconds: float, *, until: Callable[[], bool] = lambda: False) -> None:
        """Let time pass, and what was planned happen in its turn; stop early when `until` has become true."""
        end = self.now + seconds
        while not until() and self._plans and self._plans[0][0] <= end:
            self.now, _, action = heapq.heappop(self._plans)
            action()
        if not until():
            self.now = end


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong when a task is sent."""

    receipt: Callable[[Task], Receipt]
    delivered: bool = False
    """Whether the message arrives all the same."""


class InMemoryBroker:
    """Publisher, Revoker and ResultReader over plain dicts. Nothing runs: the test says how each command ends."""

    def __init__(self, clock: ManualClock | None = None) -> None:
        """With a clock, `wait` lets its time pass; without one, it returns at once."""
        self.batches: list[list[Task]] = []
        """What was handed to `publish`, call by call, whether it arrived or not."""

        self.messages: list[Task] = []
        """What arrived, in order; a message that was sent twice is there twice."""

        self.results: dict[str, Result | Unreadable] = {}
        """What the result backend holds, by message id."""

        self.revoked: list[str] = []
        """The message ids that were revoked, in order."""

        self.obeys_revokes = True
        """Whether what is revoked ends as REVOKED by itself, as with live workers."""

        self.pushes = False
        self.answered = True
        """Whether the executor may trust that every change is hinted at."""

        self.forgotten: list[str] = []
        """The message ids whose results were given up, in order."""

        self.is_durable = False
        """Whether revokes reach workers that come up later."""

        self._clock = clock
        self._hints: list[str] = []
        self._fault: Fault | None = None
        self._fault_by_key: dict[TaskKey, Fault] = {}

    # — what workers do, by the key of the task —

    def start(self, key: TaskKey) -> None:
        """A worker has started it."""
        self.put(self.message(key).message_id, Result(State.RUNNING, execution=Execution(host=HOST)))

    def succeed(self, key: TaskKey) -> None:
        """Its command has ended well."""
        ended = Execution(host=HOST, exit_code=0)
        self.put(self.message(key).message_id, Result(State.SUCCESS, execution=ended))

    def fail(self, key: TaskKey, exit_code: int = 1) -> None:
        """Its command has ended badly."""
        ended = Execution(host=HOST, exit_code=exit_code)
        detail = f"exit code {exit_code}"
        self.put(self.message(key).message_id, Result(State.FAILED, Reason.EXIT_CODE, detail, ended))

    def message(self, key: TaskKey) -> Task:
        """The last message that arrived for this key. Raises `LookupError` if none did."""
        for task in reversed(self.messages):
            if task.key == key:
                return task
        raise LookupError(f"no message of task {key!r} has arrived; has the executor had a heartbeat?")

    @property
    def unfinished(self) -> list[Task]:
        """What arrived and has not ended, in the order it arrived; each message once."""
        arrived = {task.message_id: task for task in self.messages}
        return [task for task in arrived.values() if not self._has_ended(task.message_id)]

    # — what goes wrong on the way out, for the named tasks or, with no key, for all —

    def refuse(self, *keys: TaskKey, transient: bool = True, error: Exception | None = None) -> None:
        """From now on, say that they were not sent: for an outage, or (`transient=False`) for good."""
        reason = error or (ConnectionError("the broker is away") if transient else ValueError("it cannot be encoded"))
        self._set_fault(keys, Fault(lambda task: NotSent(task, reason, transient)))

    def leave_unsure(self, *keys: TaskKey, delivered: bool, error: Exception | None = None) -> None:
        """From now on, do not say whether they arrived: the connection breaks after the write."""
        reason = error or ConnectionError("the connection broke")
        self._set_fault(keys, Fault(lambda task: Unsure(task, reason), delivered))

    def heal(self, *keys: TaskKey) -> None:
        """Send them as usual again."""
        for key in keys:
            self._fault_by_key.pop(key, None)
        if not keys:
            self._fault = None
            self._fault_by_key.clear()

    # — what the result backend holds, raw —

    def put(self, message_id: str, result: Result | Unreadable, *, hint: bool = True) -> None:
        """Store any result under any id: late, doubled, out of order, `Unreadable`, of an old attempt, of nobody.

        Without a hint, the executor finds it when it next looks by itself.
        """
        self.results[message_id] = result
        if hint:
            self._hints.append(message_id)

    def lose(self, message_id: str) -> None:
        """Forget its result, as a backend does that lost its memory."""
        self.results.pop(message_id, None)

    # — the doors —

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
    """Where a test asks things of an executor; answered at its next `sync`."""

    def __init__(self) -> None:
        self._asked: list[PendingRequest] = []
        self._answers: dict[PendingRequest, list[Reply]] = {}

    def ask(self, request: Request) -> list[Reply]:
        """Answers the list that the answers will be in."""
        asked = PendingRequest(request)
        self._asked.append(asked)
        return self._answers.setdefault(asked, [])

    # — the door —

    def take_requests(self) -> list[PendingRequest]:
        asked, self._asked = self._asked, []
        return asked

    def reply(self, asked: PendingRequest, reply: Reply) -> None:
        self._answers[asked].append(reply)
