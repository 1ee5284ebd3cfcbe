"""Test `CeleryExecutor` in memory against a model of it, with random histories of calls.

The in-memory broker reports to the model what it was given and what it returned. From that the model predicts the next
batch, by sorting all tasks, and every event. `CELERIAC_LONG=1` makes the histories many and long.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from random import Random
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
from hypothesis import event, note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from celeriac.config.executor_config import Config
from celeriac.errors import ExecutorEnded, InvalidConfig, InvalidTask, InvalidTransition, TaskAlreadyQueued, UnknownTask
from celeriac.executor.executor import CeleryExecutor
from celeriac.executor.interfaces import LostTask, NotSent, Receipt, Sent, Unreadable, Unsure
from celeriac.executor.requests import WaitReason
from celeriac.task.amounts import NOTHING, Amounts, amounts_of, missing
from celeriac.task.event import Event
from celeriac.task.result import Reason, Result
from celeriac.task.state import TRANSITIONS, State
from celeriac.task.task import OnNeedFailed, OnWorkerLost, Task, TaskKey
from celeriac.telemetry import metrics
from celeriac.testing import InMemoryBroker, ManualClock

pytestmark = pytest.mark.long

WAITING, PUBLISHING, QUEUED, RUNNING = State.WAITING, State.PUBLISHING, State.QUEUED, State.RUNNING
SUCCESS, FAILED, REVOKED, SKIPPED = State.SUCCESS, State.FAILED, State.REVOKED, State.SKIPPED

EPOCH = 1_800_000_000.0  # seconds by which the wall clock is ahead of the executor's clock at first
KEYS = [f"k{n}" for n in range(8)]
QUEUES = ["wide", "narrow", "other"]
REPORTS: dict[str, Result | Unreadable] = {
    "queued": Result(QUEUED),
    "running": Result(RUNNING),
    "success": Result(SUCCESS),
    "failed": Result(FAILED, Reason.EXIT_CODE),
    "lost": Result(FAILED, Reason.LOST),
    "revoked": Result(REVOKED, Reason.REVOKED),
    "nonsense": Result(WAITING),
    "corrupt": Unreadable(ValueError("no JSON")),
}
MAY_BE_REPORTED = {PUBLISHING: {QUEUED, RUNNING}, QUEUED: {RUNNING}, RUNNING: {QUEUED}}
"""The states that may be reported, besides a final state, which may always be reported."""


MOST_OF_KEY = 2  # tasks with a concurrency key that are in flight, until the limit is changed
TOO_MUCH = [{"cpus": 4.001}, {"memory": 9}, {"gpus": 3}]
FITTING = st.fixed_dictionaries(
    {},
    optional={
        "cpus": st.sampled_from([0.5, 1, 2.5, 4]),
        "memory": st.sampled_from([1, 4, 8]),
        "gpus": st.integers(0, 2),
    },
)
RESOURCES = st.just({}) | FITTING | FITTING | st.sampled_from(TOO_MUCH)
LARGE: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [
        {},
        {"gpus": 2},
        {"gpus": 1, "cpus": 2.5},
        {"cpus": 4},
        {"cpus": 2.5, "memory": 5},
        {"memory": 8},
    ]
)
"""Two of them seldom fit together."""

UNREADABLE_RESULT = Reason.OUTPUT
"""Stands for `Reason.LOST` without a lost worker: the result is unreadable."""


class NoJitter(Random):
    """A random source without jitter, so that the model can predict every delay."""

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


class ExpectedEvent(NamedTuple):
    """The expected content of an event."""

    key: TaskKey
    state: State
    id: str
    reason: Reason | None = None
    retry_in: float | None = None


@dataclass(slots=True)
class ModelTask:
    """A task that is waiting or in flight."""

    task: Task
    order: int
    state: State = WAITING
    open: set[TaskKey] = field(default_factory=set)
    """The unfinished tasks that it needs."""

    due: float = 0.0
    delayed: bool = False
    """Whether it waits for `due`, as far as the executor has looked."""

    scheduled: bool = False
    """Whether it waits for its `not_before`, as far as the executor has looked."""

    overdue: bool = False
    tries: int = 0
    first_failed: float | None = None
    revoking: bool = False
    cancelled: bool = False
    unreadable_since: float | None = None
    read_at: float = 0.0
    moved_at: float = float("-inf")


class Model:
    """A slow and simple executor, which looks at all tasks at every step."""

    def __init__(self, config: Config, clock: ManualClock) -> None:
        self.config, self.clock = config, clock
        self.ahead = EPOCH
        self.unfinished: dict[TaskKey, ModelTask] = {}
        self.ended: dict[TaskKey, State] = {}
        self.unconfirmed: list[ModelTask] = []
        self.expected_events: list[ExpectedEvent] = []
        self.arrivals = 0
        self.failures_in_a_row = 0
        self.paused_until = 0.0
        self.draining = False
        self.begin_unpaused()
        self.lost: dict[str, LostTask] = {}
        self.resources = Amounts(milli_cpus=4_000, memory=8, gpus=2)
        self.reached: Counter[str] = Counter()

    def begin_unpaused(self) -> None:
        """Begin without pauses, and with the limits of the config."""
        self.is_paused = False
        self.paused_queues: set[str] = set()
        self.limits = dict(self.config.queue_limits)
        self.parallelism = self.config.parallelism
        self.most_of_key: float = MOST_OF_KEY

    @property
    def waiting(self) -> list[ModelTask]:
        return [item for item in self.unfinished.values() if item.state is WAITING]

    @property
    def in_flight(self) -> list[ModelTask]:
        return [item for item in self.unfinished.values() if item.state is not WAITING]

    @property
    def ready(self) -> list[ModelTask]:
        now = self.clock.now
        ready = (item for item in self.waiting if item.due <= now and not item.open and not item.scheduled)
        return sorted(ready, key=lambda item: (-item.task.priority, item.order))

    def is_held(self, item: ModelTask) -> bool:
        """Return whether a pause holds a task back."""
        return self.is_paused or item.task.queue in self.paused_queues

    def wall_clock(self) -> float:
        return self.clock.now + self.ahead

    def make_ready(self, item: ModelTask) -> None:
        """Hold a task whose `not_before` is to come. A clock that is set back later does not hold it again."""
        item.scheduled = item.task.not_before is not None and item.task.not_before > self.wall_clock()
        self.reached["scheduled"] += item.scheduled

    def release(self) -> None:
        for item in self.waiting:
            if item.scheduled or (item.delayed and item.due <= self.clock.now):
                item.delayed = False
                self.make_ready(item)

    def is_overdue(self, item: ModelTask, after: float = 0.0) -> bool:
        return item.task.deadline is not None and item.task.deadline <= self.wall_clock() + after

    def end_overdue(self) -> None:
        if self.draining:
            return
        waiting = [item for item in self.waiting if self.is_overdue(item)]
        unstarted = [item for item in self.in_flight if self.is_overdue(item) and item.state is not RUNNING]
        for item in waiting:
            item.open = set()
        for item in waiting:
            self.change_state_of(item, FAILED, Reason.DEADLINE)
        for item in unstarted:
            self.reached[f"overdue while {item.state}"] += not item.overdue
            item.overdue = True
            if not item.cancelled:
                item.cancelled = True
                if item.state is PUBLISHING:
                    self.change_state_of(item, REVOKED, Reason.REVOKED)

    def needs_in_flight(self) -> Amounts:
        total = NOTHING
        for item in self.in_flight:
            total = total.plus(amounts_of(item.task) or NOTHING)
        return total

    def number_of_key(self) -> int:
        return sum(item.task.concurrency_key is not None for item in self.in_flight)

    def slots_in_flight(self, queue: str | None = None) -> int:
        return sum(item.task.slots for item in self.in_flight if queue in (None, item.task.queue))

    def expected_batch(self, open_slots: int, *, after_the_pause: bool = False) -> list[ModelTask]:
        if self.clock.now < self.paused_until and not after_the_pause:
            return []
        batch = [item for item in self.unconfirmed if item.due <= self.clock.now and not self.is_held(item)]
        taken = {queue: self.slots_in_flight(queue) for queue in QUEUES}
        open_slots = min(open_slots, self.parallelism - self.slots_in_flight())
        left = self.resources.minus(self.needs_in_flight())
        keyed = self.number_of_key()
        full: set[str] = set()
        short: set[str] = set()
        for item in [] if self.draining else self.ready:
            queue, slots = item.task.queue, item.task.slots
            if self.is_held(item):
                continue
            if taken[queue] + slots > self.limits.get(queue, 1_000):
                full.add(queue)
            if queue in full:
                continue
            if item.task.concurrency_key is not None and keyed >= self.most_of_key:
                self.reached["waits for the limit of its key"] += open_slots > 0
                continue
            if open_slots <= 0 or slots > open_slots:
                break
            needs = amounts_of(item.task) or NOTHING
            lacks = set(missing(needs, left))
            self.reached["waits for resources"] += bool(lacks)
            if lacks and lacks <= short:
                continue
            short |= lacks
            self.reached["takes what is left beside a larger task"] += bool(short and not lacks)
            open_slots -= slots - bool(lacks)
            left = left.minus(needs)
            if not lacks:
                keyed += item.task.concurrency_key is not None
                taken[queue] += slots
                batch.append(item)
        return batch

    def queue(self, *tasks: Task) -> None:
        for task in tasks:
            self.unfinished[task.key] = ModelTask(task, self.arrivals)
            self.arrivals += 1
        new = [self.unfinished[task.key] for task in tasks]
        for item in new:
            item.open = {need for need in item.task.needs if need in self.unfinished}
        ended_before = dict(self.ended)
        for item in new:
            failed = any(ended_before.get(need, SUCCESS) is not SUCCESS for need in set(item.task.needs) - item.open)
            if item.task.key in self.unfinished and failed and item.task.on_need_failed is OnNeedFailed.SKIP:
                self.skip(item)
            elif item.task.needs and not item.open:
                self.reached["needs were met before"] += 1
            if not item.open:
                self.make_ready(item)

    def skip(self, item: ModelTask) -> None:
        item.open = set()
        self.change_state_of(item, SKIPPED, Reason.NEED_FAILED)

    def unblock_dependants(self, key: TaskKey, state: State) -> None:
        for item in list(self.unfinished.values()):
            if key not in item.open or item.task.key not in self.unfinished:
                continue
            item.open.discard(key)
            if state is not SUCCESS and item.task.on_need_failed is OnNeedFailed.SKIP:
                self.reached[f"skipped because of {state}"] += 1
                self.skip(item)
            elif not item.open:
                self.reached[f"unblocked by {state}"] += 1
                self.make_ready(item)

    def revoke_waiting(self, queue: str | None = None) -> None:
        """Revoke the waiting tasks together, so that none is skipped because of another."""
        waiting = [item for item in self.waiting if queue in (None, item.task.queue)]
        for item in waiting:
            item.open = set()
        for item in waiting:
            self.change_state_of(item, REVOKED, Reason.REVOKED)

    def may_be_queued(self, tasks: Sequence[Task]) -> bool:
        """Return whether the needs of the tasks allow them to be queued."""
        together = {task.key: set(task.needs) for task in tasks}
        known = together.keys() | self.unfinished.keys() | self.ended.keys()
        while free := [key for key, needs in together.items() if needs <= known and not needs & together.keys()]:
            for key in free:
                del together[key]
        return not together

    def published(self, receipts: Sequence[Receipt]) -> None:
        now, pause = self.clock.now, None
        if any(isinstance(receipt, Sent) for receipt in receipts):
            self.failures_in_a_row, self.paused_until = 0, 0.0
        elif any(isinstance(receipt, Unsure) or receipt.transient for receipt in receipts):  # type: ignore[union-attr]
            self.failures_in_a_row += 1
            pause = self.publish_delay(self.failures_in_a_row)
            self.paused_until = now + pause
            self.reached["pause"] += 1
        for receipt in receipts:
            item = self.unfinished[receipt.task.key]
            item.state = PUBLISHING
            if item not in self.unconfirmed:
                item.read_at, item.moved_at = now, float("-inf")
            self.apply_receipt(item, receipt, pause)

    def apply_receipt(self, item: ModelTask, receipt: Receipt, pause: float | None) -> None:
        now = self.clock.now
        if isinstance(receipt, Sent):
            self.reached["confirmed later"] += item in self.unconfirmed
            self.change_state_of(item, QUEUED)
            return
        if isinstance(receipt, NotSent) and not receipt.transient:
            self.reached["permanent error"] += 1
            self.change_state_of(item, FAILED, Reason.PUBLISH_ERROR)
            return
        item.tries += 1
        item.first_failed = now if item.first_failed is None else item.first_failed
        max_retries = self.config.task_publish_max_retries
        if now - item.first_failed >= self.config.publish_deadline or (
            max_retries is not None and item.tries > max_retries
        ):
            self.reached["gave up publishing"] += 1
            self.change_state_of(item, FAILED, Reason.PUBLISH_ERROR)
        elif item in self.unconfirmed:
            item.due = now + (self.publish_delay(item.tries) if pause is None else pause)
        elif isinstance(receipt, Unsure):
            item.due = now + (self.publish_delay(item.tries) if pause is None else pause)
            self.unconfirmed.append(item)
            self.expect(item, PUBLISHING, Reason.PUBLISH_ERROR)
            self.reached["unsure"] += 1
        else:
            self.reached["transient error"] += 1
            delay = self.publish_delay(item.tries)
            item.state, item.due = WAITING, (now + delay if pause is None else 0.0)
            self.queue_again(item)
            self.expect(item, WAITING, Reason.PUBLISH_ERROR, delay if pause is None else pause)

    def publish_delay(self, tries: int) -> float:
        return min(self.config.publish_backoff * 2.0 ** (tries - 1), self.config.publish_backoff_max)

    def read(self, message_id: str, result: Result | Unreadable) -> None:
        item = next((item for item in self.in_flight if item.task.message_id == message_id), None)
        if item is None:
            self.reached["result of an unknown id"] += 1
            return
        if isinstance(result, Unreadable):
            self.reached["corrupt"] += 1
            item.unreadable_since = self.clock.now if item.unreadable_since is None else item.unreadable_since
            if self.clock.now - item.unreadable_since < self.config.result_unreadable_timeout:
                return
            self.reached["corrupt for too long"] += 1
            result = Result(FAILED, UNREADABLE_RESULT)
        item.unreadable_since = None
        state = REVOKED if result.state is FAILED and item.revoking else result.state
        self.reached["result before receipt"] += item in self.unconfirmed
        reason = Reason.LOST if result.reason is UNREADABLE_RESULT else result.reason
        counted = item.task.attempt - item.task.lost
        if state is FAILED and result.reason is Reason.LOST:
            self.lose(item)
        elif state is FAILED and counted <= item.task.retries and not self.draining:
            delay = min(item.task.retry_delay * 2 ** (counted - 1), self.config.retry_delay_max)
            if self.is_overdue(item, after=delay):
                self.reached["too late for a retry"] += 1
                self.change_state_of(item, FAILED, reason)
                return
            self.reached["retry"] += 1
            self.retry(item, reason, delay)
        elif state in (SUCCESS, FAILED, REVOKED) or state in MAY_BE_REPORTED[item.state]:
            self.change_state_of(item, state, reason)

    def lose(self, item: ModelTask) -> None:
        if self.draining or self.is_overdue(item) or item.task.on_worker_lost is OnWorkerLost.FAIL:
            self.change_state_of(item, FAILED, Reason.LOST)
        elif item.task.lost + 1 >= item.task.max_lost:
            self.change_state_of(item, FAILED, Reason.POISON)
        else:
            self.reached["run again after a loss"] += 1
            self.retry(item, Reason.LOST, 0.0, lost=1)

    def retry(self, item: ModelTask, reason: Reason | None, delay: float, *, lost: int = 0) -> None:
        self.expect(item, WAITING, reason, delay)
        self.settle_unconfirmed(item)
        task = replace(item.task, attempt=item.task.attempt + 1, lost=item.task.lost + lost)
        new = ModelTask(task, item.order, due=self.clock.now + delay if delay else 0.0)
        self.unfinished[item.task.key] = new
        self.queue_again(new)

    def queue_again(self, item: ModelTask) -> None:
        item.delayed = item.due > 0.0
        if not item.delayed:
            self.make_ready(item)

    def take_lost_tasks(self) -> None:
        lost, self.lost = self.lost, {}
        for message_id, lost_task in lost.items():
            item = next((item for item in self.in_flight if item.task.message_id == message_id), None)
            if item is None or item.state is PUBLISHING:
                continue
            if lost_task.requested_at is not None and item.moved_at > lost_task.requested_at:
                self.reached["changed since the scan"] += 1
                continue
            if item.revoking or (item.cancelled and item.state is QUEUED):
                self.reached["lost while being cancelled"] += 1
                self.change_state_of(item, REVOKED, Reason.REVOKED)
            elif lost_task.was_claimed or item.state is RUNNING:
                self.lose(item)
            elif self.draining:
                self.change_state_of(item, FAILED, Reason.LOST)
            else:
                self.reached["re-sent"] += 1
                self.change_state_of(item, PUBLISHING, Reason.LOST)
                item.due = self.clock.now
                self.unconfirmed.append(item)

    def change_state_of(self, item: ModelTask, state: State, reason: Reason | None = None) -> None:
        self.settle_unconfirmed(item)
        if state is REVOKED and item.overdue and not item.revoking:
            state, reason = FAILED, Reason.DEADLINE
        item.state, item.tries, item.first_failed, item.moved_at = state, 0, None, self.clock.now
        self.expect(item, state, reason)
        if state in (SUCCESS, FAILED, REVOKED, SKIPPED):
            self.reached[f"{state} by {reason}"] += 1
            del self.unfinished[item.task.key]
            self.ended[item.task.key] = state
            self.unblock_dependants(item.task.key, state)

    def settle_unconfirmed(self, item: ModelTask) -> None:
        self.unconfirmed = [other for other in self.unconfirmed if other is not item]

    def expect(self, item: ModelTask, state: State, reason: Reason | None, retry_in: float | None = None) -> None:
        self.expected_events.append(ExpectedEvent(item.task.key, state, item.task.message_id, reason, retry_in))


class ReportingBroker(InMemoryBroker):
    """Reports every call to the model, and has a few more faults. It is a `LostTaskDetector`, too."""

    is_scanning = has_news = False

    model: Model
    open_slots = 1_000
    max_receipts = 1_000
    """How many receipts `publish` returns; for the other tasks of the batch it returns none."""

    backend_is_unavailable = False
    published = False
    lost_tasks: tuple[LostTask, ...] = ()

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.hinted: set[str] = set()
        self.is_next_read_for_lost = False
        """Whether the executor has just taken its lost tasks, and reads their results next."""

    def scan(self, tasks: Iterable[Task], *, requested_at: float, urgent: bool = False) -> None:
        """Find nothing: the test sets `lost_tasks`."""

    def take_lost(self) -> Collection[LostTask]:
        lost, self.lost_tasks = self.lost_tasks, ()
        self.model.lost.update((each.id, each) for each in lost)
        self.is_next_read_for_lost = bool(self.model.lost)
        return lost

    def is_held(self, message_id: str) -> bool:
        return False

    def publish(self, tasks: Sequence[Task], *, timeout: float) -> list[Receipt]:
        self.published = True
        expected = [item.task for item in self.model.expected_batch(self.open_slots)]
        assert list(tasks) == expected, "the most urgent tasks that are allowed, in order"
        receipts = super().publish(tasks, timeout=timeout)
        given = receipts[: self.max_receipts]
        no_receipt = RuntimeError("no receipt")
        self.model.published([*given, *(Unsure(task, no_receipt) for task in tasks[self.max_receipts :])])
        return given

    def read(self, ids: Collection[str]) -> Mapping[str, Result | Unreadable]:
        is_for_lost, self.is_next_read_for_lost = self.is_next_read_for_lost, False
        for item in self.model.in_flight:
            if item.task.message_id in ids:
                item.read_at = self.clock.now
        self.answered = not self.backend_is_unavailable
        if self.backend_is_unavailable:
            return {}
        results = {**super().read(ids), "uninvited": Result(SUCCESS)}
        for message_id, result in results.items():
            self.model.read(message_id, result)
        if is_for_lost:
            assert set(ids) == self.model.lost.keys()
            self.model.take_lost_tasks()
        return results

    @property
    def clock(self) -> ManualClock:
        return self.model.clock

    def put(self, message_id: str, result: Result | Unreadable, *, hint: bool = True) -> None:
        if hint:
            self.hinted.add(message_id)
        super().put(message_id, result, hint=hint)

    def changed(self) -> Collection[str]:
        self.hinted = set()
        return super().changed()


def by_key(events: list[ExpectedEvent]) -> list[ExpectedEvent]:
    """Return the events of each task in their order. The order between different tasks is not promised."""
    return sorted(events, key=lambda each: str(each.key))


class ExecutorModel(RuleBasedStateMachine):
    """Call the executor and the model in the same way, and compare them."""

    @initialize(parallelism=st.integers(1, 4), limit=st.integers(1, 3), max_retries=st.sampled_from([None, None, 0, 2]))
    def begin(self, parallelism: int, limit: int, max_retries: int | None) -> None:
        config = Config(
            parallelism=parallelism,
            queue_limits={"narrow": limit},
            concurrency_limits={"db": MOST_OF_KEY},
            task_publish_max_retries=max_retries,
            publish_backoff_max=4.0,
            publish_deadline=30.0,
            retry_delay_max=8.0,
            first_look=0.125,
            result_unreadable_timeout=10.0,
        )
        clock = ManualClock()
        self.broker, self.model = ReportingBroker(clock), Model(config, clock)
        self.broker.model = self.model
        self.clock = clock
        self.tasks = 0
        self.last_states: dict[str, State] = {}
        self.not_pushed_since: float | None = clock.now
        self.make_executor()

    def make_executor(self) -> None:
        broker, clock = self.broker, self.clock
        self.executor = CeleryExecutor(
            self.model.config,
            publisher=broker,
            results=broker,
            revoker=broker,
            lost_task_detector=broker,
            clock=clock,
            wall_clock=self.model.wall_clock,
            random=NoJitter(0),
        )
        self.executor.adjustments.limit_resources(lambda: self.model.resources)

    # — the calls of the caller —

    @rule(
        key=st.sampled_from(KEYS),
        queue=st.sampled_from(QUEUES),
        priority=st.integers(-1, 2),
        slots=st.sampled_from([1, 1, 1, 2, 3]),
        retries=st.integers(0, 2),
        retry_delay=st.sampled_from([0.0, 1.0]),
        on_worker_lost=st.sampled_from(["retry", "retry", "fail"]),
        max_lost=st.integers(1, 3),
        needs=st.just(set()) | st.sets(st.sampled_from(KEYS), max_size=3),
        on_need_failed=st.sampled_from(["skip", "run"]),
        starts_in=st.sampled_from([None, None, None, -5.0, 1.0, 5.0, 30.0]),
        is_late_after=st.sampled_from([None, None, None, 0.5, 2.0, 20.0]),
        resources=RESOURCES,
        concurrency_key=st.sampled_from([None, None, "db"]),
    )
    def queue_task(
        self,
        key: str,
        queue: str,
        priority: int,
        slots: int,
        retries: int,
        retry_delay: float,
        on_worker_lost: str = "retry",
        max_lost: int = 3,
        needs: Collection[str] = (),
        on_need_failed: str = "skip",
        starts_in: float | None = None,
        is_late_after: float | None = None,
        resources: Mapping[str, Any] = MappingProxyType({}),
        concurrency_key: str | None = None,
    ) -> None:
        self.tasks += 1
        now = self.model.wall_clock()
        not_before = None if starts_in is None else now + starts_in
        task = Task(
            key=key,
            command="true",
            queue=queue,
            priority=priority,
            slots=slots,
            retries=retries,
            retry_delay=retry_delay,
            on_worker_lost=OnWorkerLost(on_worker_lost),
            max_lost=max_lost,
            needs=tuple(sorted({*needs} - {key})),
            on_need_failed=OnNeedFailed(on_need_failed),
            not_before=not_before,
            deadline=None if is_late_after is None else (not_before or now) + is_late_after,
            id=f"t{self.tasks}",
            concurrency_key=concurrency_key,
            **resources,
        )
        model = self.model
        refusal: type[Exception] | None = None
        if not self.model.may_be_queued([task]):
            refusal = InvalidTask
        if key in self.model.unfinished:
            refusal = TaskAlreadyQueued
        if slots > min(model.parallelism, model.limits.get(queue, slots)) or resources in TOO_MUCH:
            refusal = InvalidTask
        if self.model.draining:
            refusal = ExecutorEnded
        if refusal is None:
            self.executor.queue_task(task)
            self.model.queue(task)
        else:
            with pytest.raises(refusal):
                self.executor.queue_task(task)

    @rule(
        tasks=st.lists(
            st.tuples(st.sampled_from(KEYS), st.sampled_from(QUEUES), st.integers(-1, 2), st.integers(0, 2), LARGE),
            min_size=2,
        )
    )
    def queue_many(self, tasks: list[tuple[str, str, int, int, dict[str, Any]]]) -> None:
        for key, queue, priority, retries, resources in tasks:
            self.queue_task(key, queue, priority, 1, retries, 0.0, resources=resources)

    @rule(
        batch=st.lists(
            st.tuples(
                st.sampled_from(KEYS),
                st.sampled_from(QUEUES),
                st.integers(-1, 2),
                st.sets(st.sampled_from(KEYS), max_size=2),
                st.sampled_from(OnNeedFailed),
                LARGE,
            ),
            min_size=1,
        ),
        is_valid=st.sampled_from([True, True, True, False]),
    )
    def queue_at_once(
        self, batch: list[tuple[str, str, int, set[str], OnNeedFailed, dict[str, Any]]], is_valid: bool
    ) -> None:
        """Queue tasks together, in any order of their needs; now and then with errors."""
        tasks: list[Task] = []
        for key, queue, priority, needs, policy, resources in batch:
            self.tasks += 1
            task = Task(
                key=key,
                command="true",
                queue=queue,
                priority=priority,
                needs=tuple(sorted(needs - {key})),
                on_need_failed=policy,
                id=f"t{self.tasks}",
                **resources,
            )
            is_new = key not in self.model.unfinished and all(task.key != key for task in tasks)
            if not is_valid or (is_new and self.model.may_be_queued([*tasks, task])):
                tasks.append(task)
        tasks.reverse()
        refusal: type[Exception] | None = None
        if not self.model.may_be_queued(tasks):
            refusal = InvalidTask
        if len({task.key for task in tasks} - self.model.unfinished.keys()) < len(tasks):
            refusal = TaskAlreadyQueued
        if self.model.draining and tasks:
            refusal = ExecutorEnded
        if refusal is None:
            self.model.reached["queued at once"] += len(tasks) > 1
            self.executor.queue_tasks(tasks)
            self.model.queue(*tasks)
        else:
            with pytest.raises(refusal):
                self.executor.queue_tasks(tasks)

    @rule(key=st.sampled_from(KEYS), priority=st.integers(-1, 2))
    def reprioritise(self, key: str, priority: int) -> None:
        item = self.model.unfinished.get(key)
        if item is None or item.state is not WAITING:
            with pytest.raises(UnknownTask):
                self.executor.reprioritise(key, priority)
        else:
            self.model.reached["reprioritised"] += 1
            self.executor.reprioritise(key, priority)
            item.task = replace(item.task, priority=priority)
            if not item.open and not item.delayed:
                self.model.make_ready(item)

    @rule(key=st.sampled_from(KEYS))
    def revoke(self, key: str) -> None:
        item = self.model.unfinished.get(key)
        if item is None:
            with pytest.raises(UnknownTask):
                self.executor.revoke_task(key)
            return
        self.model.reached[f"revoke while {item.state}"] += 1
        self.executor.revoke_task(key)
        self.model_revokes(item)

    def model_revokes(self, item: ModelTask) -> None:
        item.revoking = True
        if item.state in (WAITING, PUBLISHING):
            self.model.change_state_of(item, REVOKED, Reason.REVOKED)

    @rule(queue=st.sampled_from(QUEUES))
    def revoke_queue(self, queue: str) -> None:
        in_flight = [item for item in self.model.in_flight if item.task.queue == queue]
        waiting = [item.task.key for item in self.model.waiting if item.task.queue == queue]
        assert {*self.executor.revoke_tasks(queue=queue)} == {*waiting, *(item.task.key for item in in_flight)}
        self.model.revoke_waiting(queue)
        for item in in_flight:
            self.model_revokes(item)

    @rule()
    def cancel_unstarted(self) -> None:
        self.model.reached["cancel unstarted"] += 1
        self.executor.cancel_unstarted()
        for item in self.model.in_flight:
            item.cancelled = item.cancelled or item.state is not RUNNING
            if item.state is PUBLISHING:
                self.model.change_state_of(item, REVOKED, Reason.REVOKED)

    @rule(key=st.sampled_from(KEYS), state=st.sampled_from(State))
    def change_state(self, key: str, state: State) -> None:
        item = self.model.unfinished.get(key)
        if item is None:
            with pytest.raises(UnknownTask):
                self.executor.change_state(key, state)
        elif state in (SUCCESS, FAILED) or (item.state is not WAITING and state in MAY_BE_REPORTED[item.state]):
            self.executor.change_state(key, state)
            self.model.change_state_of(item, state, Reason.CALLER)
        else:
            with pytest.raises(InvalidTransition):
                self.executor.change_state(key, state)

    # — changes while it runs —

    @rule(queue=st.none() | st.sampled_from(QUEUES))
    def pause(self, queue: str | None) -> None:
        model = self.model
        was_paused = model.is_paused if queue is None else queue in model.paused_queues
        model.reached["pause by a caller"] += 1
        assert self.executor.adjustments.pause(queue, asked_by="a rule") is not was_paused
        if queue is None:
            model.is_paused = True
        else:
            model.paused_queues.add(queue)

    @rule(queue=st.none() | st.sampled_from(QUEUES))
    def resume(self, queue: str | None) -> None:
        model = self.model
        was_paused = model.is_paused if queue is None else queue in model.paused_queues
        assert self.executor.adjustments.resume(queue) is was_paused
        if queue is None:
            model.is_paused = False
        else:
            model.paused_queues.discard(queue)

    @rule(parallelism=st.none() | st.integers(0, 5), limit=st.none() | st.integers(0, 3), queue=st.sampled_from(QUEUES))
    def change_limits(self, parallelism: int | None, limit: int | None, queue: str) -> None:
        """Change the limits. One with which a task could never start is refused."""
        model = self.model
        slots = model.parallelism if parallelism is None else parallelism
        limits = {other: number for other, number in model.limits.items() if other != queue}
        if limit is not None:
            limits[queue] = limit
        too_large = [
            item
            for item in model.unfinished.values()
            if item.task.slots > min(slots, limits.get(item.task.queue, slots))
        ]
        if slots < 1 or limit == 0 or too_large:
            model.reached["limits were refused"] += 1
            with pytest.raises(InvalidConfig):
                self.executor.adjustments.change_limits(parallelism=parallelism, queue_limits={queue: limit})
        else:
            model.reached["limits were changed"] += 1
            self.executor.adjustments.change_limits(parallelism=parallelism, queue_limits={queue: limit})
            model.parallelism, model.limits = slots, limits

    @rule(limit=st.none() | st.integers(1, 3))
    def change_limit_of_key(self, limit: int | None) -> None:
        """Change the limit of the key, or remove it. It is not below what is in flight: that counts at once."""
        model = self.model
        number = None if limit is None else max(limit, model.number_of_key())
        model.reached["the limit of the key was removed"] += number is None
        model.reached["the limit of the key was given again"] += model.most_of_key == inf and number is not None
        self.executor.adjustments.change_limits(shared_limits={"concurrency_limits": {"db": number}})
        model.most_of_key = inf if number is None else number

    # — the heartbeat —

    @rule()
    def heartbeat(self) -> None:
        self.trigger(self.model.parallelism)
        self.sync()

    @rule(open_slots=st.integers(0, 5))
    def trigger(self, open_slots: int) -> None:
        if self.clock.now >= self.model.paused_until and not self.model.is_paused:
            self.model.end_overdue()
            self.model.release()
        expected = self.model.expected_batch(open_slots)
        self.broker.open_slots, self.broker.published = open_slots, False
        self.executor.trigger_tasks(open_slots)
        self.broker.open_slots = 1_000
        assert self.broker.published == bool(expected)

    @rule()
    def sync(self) -> None:
        hinted, now, config = self.broker.hinted, self.clock.now, self.model.config
        if self.broker.pushes:
            self.not_pushed_since = None
        elif self.not_pushed_since is None:
            self.not_pushed_since = now
        must_read = []
        for item in self.model.in_flight:
            waited = now - item.read_at
            waited_without_hints = (
                0.0 if self.not_pushed_since is None else now - max(item.read_at, self.not_pushed_since)
            )
            if (
                item.task.message_id in hinted
                or waited >= config.reconcile_interval_pushed
                or waited_without_hints >= config.reconcile_interval
            ):
                must_read.append(item)
        self.executor.sync()
        self.model.end_overdue()
        for item in must_read:
            assert item.read_at == now or item not in self.model.in_flight

    @rule(seconds=st.sampled_from([0.25, 1.0, 4.0, 20.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(seconds=st.sampled_from([-20.0, -1.0, 1.0, 20.0]))
    def wall_clock_jumps(self, seconds: float) -> None:
        self.model.ahead += seconds

    @rule(seconds=st.sampled_from([1.0, 15.0, 60.0]))
    def heartbeat_and_wait(self, seconds: float) -> None:
        """Call `heartbeat` and `wait` in turn, as callers do. `wait` must return in time and must not spin."""
        until = self.clock.now + seconds
        heartbeats = 0
        while self.clock.now < until:
            self.heartbeat()
            earliest = self.next_batch_after_waiting()
            self.executor.wait(until - self.clock.now)
            assert self.clock.now <= earliest
            heartbeats += 1
            assert heartbeats < 500

    def next_batch_after_waiting(self) -> float:
        model = self.model
        can_start = not model.draining and model.slots_in_flight() < model.parallelism
        waiting = [item for item in model.waiting if can_start and not item.open]
        times = [self.starts_at(item) for item in (*waiting, *model.unconfirmed) if not model.is_held(item)]
        blocked = not model.expected_batch(1_000, after_the_pause=True)
        times = [
            max(time, model.paused_until, model.clock.now)
            for time in times
            if not (blocked and time <= model.clock.now)
        ]
        return min([*times, *self.next_deadlines()], default=float("inf"))

    def starts_at(self, item: ModelTask) -> float:
        return (item.task.not_before or 0.0) - self.model.ahead if item.scheduled else item.due

    def next_deadlines(self) -> list[float]:
        """Return the deadlines that have not passed, on the executor's clock."""
        model = self.model
        deadlines = [item.task.deadline - model.ahead for item in model.unfinished.values() if item.task.deadline]
        return [each for each in deadlines if each > model.clock.now and not model.draining]

    @rule(data=st.data(), by_keys=st.booleans())
    def collect(self, data: st.DataObject, by_keys: bool) -> None:
        keys = data.draw(st.sets(st.sampled_from(KEYS), min_size=1)) if by_keys else None
        expected = [each for each in self.model.expected_events if keys is None or each.key in keys]
        self.model.expected_events = [
            each for each in self.model.expected_events if keys is not None and each.key not in keys
        ]
        events = self.executor.get_event_buffer(keys)
        assert by_key([ExpectedEvent(e.key, e.state, e.id, e.reason, e.retry_in) for e in events]) == by_key(expected)
        for each in events:
            self.check_transition(each)

    def check_transition(self, event: Event) -> None:
        """Check that only allowed transitions lead to the one end of each task."""
        task_id = event.id.partition(".")[0]
        last = self.last_states.get(task_id, WAITING)
        allowed = set(TRANSITIONS[last])
        if last is WAITING:  # there is no event for PUBLISHING if the broker confirms at once
            allowed |= set(TRANSITIONS[PUBLISHING])
        assert event.state in allowed, f"{event.key}: {last} -> {event.state}"
        self.last_states[task_id] = event.state

    # — the actions of workers and of the result backend —

    def message_ids(self) -> list[str]:
        """Return the ids in flight, several times each, and all earlier ones."""
        current = [item.task.message_id for item in self.model.in_flight]
        return current * 4 + [task.message_id for task in self.broker.messages] + ["unknown"]

    @rule(data=st.data(), report=st.sampled_from(list(REPORTS)), hints=st.sampled_from([1, 1, 0, 2]))
    def report(self, data: st.DataObject, report: str, hints: int) -> None:
        """Store any result under any id at any time: without a hint, twice, out of order, of old attempts."""
        message_id: str = data.draw(st.sampled_from(self.message_ids()))
        self.broker.put(message_id, REPORTS[report], hint=hints > 0)
        if hints > 1:
            self.broker.put(message_id, REPORTS[report])

    @precondition(lambda self: self.broker.unfinished)
    @rule(data=st.data(), ends=st.sampled_from(["start", "succeed", "fail"]))
    def work(self, data: st.DataObject, ends: str) -> None:
        key = data.draw(st.sampled_from(self.broker.unfinished)).key
        getattr(self.broker, ends)(key)

    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        self.broker.lose(data.draw(st.sampled_from(self.message_ids())))

    # — faults —

    @precondition(lambda self: self.model.in_flight)
    @rule(data=st.data(), was_claimed=st.booleans(), ago=st.sampled_from([0.0, 0.5, 20.0]))
    def report_lost(self, data: st.DataObject, was_claimed: bool, ago: float) -> None:
        """Report a lost task: its worker is dead, or its message is lost now or was some seconds ago."""
        message_id = data.draw(st.sampled_from(self.message_ids()))
        requested_at = None if was_claimed else self.clock.now - ago
        lost_task = LostTask(message_id, "its worker is dead", was_claimed, requested_at=requested_at)
        self.broker.lost_tasks = (*self.broker.lost_tasks, lost_task)

    @rule(keys=st.sets(st.sampled_from(KEYS), max_size=3), transient=st.booleans())
    def refuse(self, keys: set[str], transient: bool) -> None:
        self.broker.refuse(*sorted(keys), transient=transient)

    @rule(keys=st.sets(st.sampled_from(KEYS), max_size=3), delivered=st.booleans())
    def leave_unsure(self, keys: set[str], delivered: bool) -> None:
        self.broker.leave_unsure(*sorted(keys), delivered=delivered)

    @rule(max_receipts=st.integers(0, 2))
    def mute(self, max_receipts: int) -> None:
        self.broker.max_receipts = max_receipts

    @rule(results=st.booleans(), revokes=st.booleans(), pushes=st.booleans())
    def set_outages(self, results: bool, revokes: bool, pushes: bool) -> None:
        self.broker.backend_is_unavailable, self.broker.obeys_revokes, self.broker.pushes = not results, revokes, pushes

    @rule()
    def heal(self) -> None:
        self.broker.heal()
        self.broker.max_receipts = 1_000
        self.broker.backend_is_unavailable = False

    # — the end —

    @rule(how=st.sampled_from([None] * 15 + ["drain", "terminate"]))
    def stop(self, how: str | None) -> None:
        """Stop now and then: after it no task starts until the end."""
        if how == "drain":
            self.executor.drain()
            self.model.draining = True
        elif how == "terminate":
            self.terminate()

    def terminate(self) -> None:
        self.model.reached["terminate"] += 1
        self.executor.terminate()
        self.model.draining = True
        self.model.revoke_waiting()
        for item in self.model.in_flight:
            item.cancelled = True
            if not item.revoking:
                self.model_revokes(item)

    @precondition(lambda self: self.model.draining)
    @rule(timeout=st.sampled_from([0.0, 5.0]))
    def end(self, timeout: float) -> None:
        """End the executor. The caller fails the tasks that are left; then a new executor starts."""
        assert self.executor.end(timeout) == (not self.model.in_flight)
        self.model.revoke_waiting()
        for item in self.model.in_flight:
            self.executor.fail(item.task.key)
            self.model.change_state_of(item, FAILED, Reason.CALLER)
        self.everything_has_ended()
        self.model.ended = {}
        self.model.draining, self.model.failures_in_a_row, self.model.paused_until = False, 0, 0.0
        self.model.lost, self.broker.lost_tasks = {}, ()
        self.model.begin_unpaused()
        self.make_executor()

    def everything_has_ended(self) -> None:
        self.collect_all()
        assert not self.model.unfinished
        assert self.executor.slots_occupied == self.executor.tasks_in_flight == self.executor.tasks_waiting == 0
        assert all(state.is_final for state in self.last_states.values())

    def collect_all(self) -> None:
        expected, self.model.expected_events = self.model.expected_events, []
        events = self.executor.get_event_buffer()
        assert by_key([ExpectedEvent(e.key, e.state, e.id, e.reason, e.retry_in) for e in events]) == by_key(expected)
        for each in events:
            self.check_transition(each)

    # — invariants —

    @invariant()
    def no_more_tasks_are_in_flight_than_allowed(self) -> None:
        assert self.executor.slots_occupied == self.model.slots_in_flight()
        assert self.executor.slots_available == self.model.parallelism - self.model.slots_in_flight()
        needs = self.model.needs_in_flight()
        assert not missing(needs, self.model.resources)
        assert self.model.number_of_key() <= MOST_OF_KEY
        assert self.executor.adjustments.resources.in_use == needs

    @invariant()
    def the_executor_knows_the_unfinished_tasks_and_no_others(self) -> None:
        model = self.model
        assert [key for key in KEYS if self.executor.has_task(key)] == [key for key in KEYS if key in model.unfinished]
        assert (self.executor.tasks_waiting, self.executor.tasks_in_flight) == (
            len(model.waiting),
            len(model.in_flight),
        )
        assert self.executor.stats().task_publish_retries == {
            item.task.key: item.tries for item in model.unfinished.values() if item.tries
        }

    @invariant()
    def the_executor_can_explain_every_unfinished_task(self) -> None:
        for key, item in self.model.unfinished.items():
            explanation = self.executor.explain(key)
            state, task_id, priority = explanation.state, explanation.id, explanation.priority
            assert (state, task_id, priority) == (item.state, item.task.message_id, item.task.priority)
            waits_for = explanation.now.waits_for
            assert (waits_for is WaitReason.RETRY) == (
                not self.model.draining and item.state is WAITING and item.due > self.clock.now
            )
            assert (waits_for is WaitReason.TIME) == (
                not self.model.draining and item.state is WAITING and item.scheduled and item.due <= self.clock.now
            )
            assert (waits_for is WaitReason.NEEDS) == (not self.model.draining and bool(item.open))

    @invariant()
    def the_numbers_of_each_queue_are_those_of_the_model(self) -> None:
        numbers = {
            family.metric: {labels: value for labels, value in family.numbers if value}
            for family in self.executor.telemetry.read()
        }
        running = [item for item in self.model.in_flight if item.state is RUNNING]
        for metric, items in (
            (metrics.TASKS_WAITING, self.model.waiting),
            (metrics.TASKS_IN_FLIGHT, self.model.in_flight),
            (metrics.TASKS_RUNNING, running),
        ):
            assert numbers.get(metric, {}) == Counter((item.task.queue,) for item in items)

    def teardown(self) -> None:
        """Heal all faults and let time pass: every task must end once."""
        if not hasattr(self, "model"):
            return
        note("teardown")
        self.heal()
        for queue in (None, *QUEUES):
            self.resume(queue)
        for _ in range(100):
            if self.model.draining:
                self.end(5.0)
            if not self.model.unfinished:
                break
            self.heartbeat_and_wait(15.0)
            self.settle()
        self.everything_has_ended()
        for what, times in self.model.reached.items():
            if times:
                event(what)

    def settle(self) -> None:
        """Let workers succeed with the messages they have. The caller fails the tasks whose messages were lost."""
        for item in self.model.in_flight:
            arrived = any(task.message_id == item.task.message_id for task in self.broker.messages)
            if arrived and item.task.message_id not in self.broker.results:
                self.broker.succeed(item.task.key)
            else:
                self.model.reached["lost"] += 1
                self.executor.fail(item.task.key)
                self.model.change_state_of(item, FAILED, Reason.CALLER)


TestExecutorModel = ExecutorModel.TestCase
