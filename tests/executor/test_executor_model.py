"""`CeleryExecutor` over in-memory doors, against a model of it: one random history after another.

The doors tell the model what they were given and what they answered. From that it foretells the next batch, by sorting
everything, and every event. `CELERIAC_LONG=1` makes the histories many and long.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import NamedTuple

import pytest
from hypothesis import event, note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from celeriac.config.executor_config import Config
from celeriac.errors import ExecutorEnded, InvalidTask, InvalidTransition, TaskAlreadyQueued, UnknownTask
from celeriac.executor.executor import CeleryExecutor
from celeriac.executor.interfaces import LostTask, NotSent, Receipt, Sent, Unreadable, Unsure
from celeriac.executor.requests import WaitReason
from celeriac.task.event import Event
from celeriac.task.result import Reason, Result
from celeriac.task.state import TRANSITIONS, State
from celeriac.task.task import OnNeedFailed, OnWorkerLost, Task, TaskKey
from celeriac.testing import InMemoryBroker, ManualClock

pytestmark = pytest.mark.long

WAITING, PUBLISHING, QUEUED, RUNNING = State.WAITING, State.PUBLISHING, State.QUEUED, State.RUNNING
SUCCESS, FAILED, REVOKED, SKIPPED = State.SUCCESS, State.FAILED, State.REVOKED, State.SKIPPED

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
MAY_FOLLOW_A_REPORT = {PUBLISHING: {QUEUED, RUNNING}, QUEUED: {RUNNING}, RUNNING: {QUEUED}}
"""Besides an end, which may always be reported."""


UNREADABLE = Reason.OUTPUT
"""Stands for a loss that is no lost worker: a result that nobody can read."""


class NoJitter(Random):
    """So that the model can foretell every back-off."""

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


class Told(NamedTuple):
    """What an event must say."""

    key: TaskKey
    state: State
    id: str
    reason: Reason | None = None
    retry_in: float | None = None


@dataclass(slots=True)
class Modelled:
    """A task that is waiting or out."""

    task: Task
    order: int
    state: State = WAITING
    open: set[TaskKey] = field(default_factory=set)
    """What it still waits for."""

    due: float = 0.0
    tries: int = 0
    first_failed: float | None = None
    revoking: bool = False
    withdrawn: bool = False
    unreadable_since: float | None = None
    looked_at: float = 0.0
    moved_at: float = float("-inf")


class Model:
    def __init__(self, config: Config, clock: ManualClock) -> None:
        self.config, self.clock = config, clock
        self.alive: dict[TaskKey, Modelled] = {}
        self.ended: dict[TaskKey, State] = {}
        self.unsure: list[Modelled] = []
        self.told: list[Told] = []
        self.arrivals = 0
        self.failures_in_a_row = 0
        self.paused_until = 0.0
        self.draining = False
        self.missing: dict[str, LostTask] = {}
        self.reached: Counter[str] = Counter()

    @property
    def waiting(self) -> list[Modelled]:
        return [it for it in self.alive.values() if it.state is WAITING]

    @property
    def out(self) -> list[Modelled]:
        return [it for it in self.alive.values() if it.state is not WAITING]

    @property
    def ready(self) -> list[Modelled]:
        now = self.clock.now
        ready = (it for it in self.waiting if it.due <= now and not it.open)
        return sorted(ready, key=lambda it: (-it.task.priority, it.order))

    def slots_out(self, queue: str | None = None) -> int:
        return sum(it.task.slots for it in self.out if queue in (None, it.task.queue))

    def expected_batch(self, open_slots: int, *, after_the_pause: bool = False) -> list[Modelled]:
        if self.clock.now < self.paused_until and not after_the_pause:
            return []
        batch = [it for it in self.unsure if it.due <= self.clock.now]
        taken = {queue: self.slots_out(queue) for queue in QUEUES}
        open_slots = min(open_slots, self.config.parallelism - self.slots_out())
        full = set()
        for it in [] if self.draining else self.ready:
            queue, slots = it.task.queue, it.task.slots
            if taken[queue] + slots > self.config.queue_limits.get(queue, 1_000):
                full.add(queue)
            if queue in full:
                continue
            if slots > open_slots:
                break
            open_slots -= slots
            taken[queue] += slots
            batch.append(it)
        return batch

    def queue(self, *tasks: Task) -> None:
        for task in tasks:
            self.alive[task.key] = Modelled(task, self.arrivals)
            self.arrivals += 1
        new = [self.alive[task.key] for task in tasks]
        for it in new:
            it.open = {need for need in it.task.needs if need in self.alive}
        ended_before = dict(self.ended)
        for it in new:
            failed = any(ended_before.get(need, SUCCESS) is not SUCCESS for need in set(it.task.needs) - it.open)
            if it.task.key in self.alive and failed and it.task.on_need_failed is OnNeedFailed.SKIP:
                self.skip(it)
            elif it.task.needs and not it.open:
                self.reached["needs were met before"] += 1

    def skip(self, it: Modelled) -> None:
        it.open = set()
        self.move(it, SKIPPED, Reason.NEED_FAILED)

    def free_dependants(self, key: TaskKey, state: State) -> None:
        for it in list(self.alive.values()):
            if key not in it.open or it.task.key not in self.alive:
                continue
            it.open.discard(key)
            if state is not SUCCESS and it.task.on_need_failed is OnNeedFailed.SKIP:
                self.reached[f"skipped because of {state}"] += 1
                self.skip(it)
            elif not it.open:
                self.reached[f"freed by {state}"] += 1

    def revoke_waiting(self, queue: str | None = None) -> None:
        """None is skipped for another one."""
        waiting = [it for it in self.waiting if queue in (None, it.task.queue)]
        for it in waiting:
            it.open = set()
        for it in waiting:
            self.move(it, REVOKED, Reason.REVOKED)

    def may_be_queued(self, tasks: Sequence[Task]) -> bool:
        """As far as their needs go."""
        together = {task.key: set(task.needs) for task in tasks}
        known = together.keys() | self.alive.keys() | self.ended.keys()
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
            it = self.alive[receipt.task.key]
            it.state = PUBLISHING
            if it not in self.unsure:
                it.looked_at, it.moved_at = now, float("-inf")
            self.apply_receipt(it, receipt, pause)

    def apply_receipt(self, it: Modelled, receipt: Receipt, pause: float | None) -> None:
        now = self.clock.now
        if isinstance(receipt, Sent):
            self.reached["confirmed later"] += it in self.unsure
            self.move(it, QUEUED)
            return
        if isinstance(receipt, NotSent) and not receipt.transient:
            self.reached["permanent error"] += 1
            self.move(it, FAILED, Reason.PUBLISH_ERROR)
            return
        it.tries += 1
        it.first_failed = now if it.first_failed is None else it.first_failed
        most = self.config.task_publish_max_retries
        if now - it.first_failed >= self.config.publish_deadline or (most is not None and it.tries > most):
            self.reached["gave up publishing"] += 1
            self.move(it, FAILED, Reason.PUBLISH_ERROR)
        elif it in self.unsure:
            it.due = now + (self.publish_delay(it.tries) if pause is None else pause)
        elif isinstance(receipt, Unsure):
            it.due = now + (self.publish_delay(it.tries) if pause is None else pause)
            self.unsure.append(it)
            self.tell(it, PUBLISHING, Reason.PUBLISH_ERROR)
            self.reached["unsure"] += 1
        else:
            self.reached["transient error"] += 1
            delay = self.publish_delay(it.tries)
            it.state, it.due = WAITING, (now + delay if pause is None else 0.0)
            self.tell(it, WAITING, Reason.PUBLISH_ERROR, delay if pause is None else pause)

    def publish_delay(self, tries: int) -> float:
        return min(self.config.publish_backoff * 2.0 ** (tries - 1), self.config.publish_backoff_max)

    def read(self, message_id: str, result: Result | Unreadable) -> None:
        it = next((it for it in self.out if it.task.message_id == message_id), None)
        if it is None:
            self.reached["result of nobody"] += 1
            return
        if isinstance(result, Unreadable):
            self.reached["corrupt"] += 1
            it.unreadable_since = self.clock.now if it.unreadable_since is None else it.unreadable_since
            if self.clock.now - it.unreadable_since < self.config.result_unreadable_timeout:
                return
            self.reached["corrupt for too long"] += 1
            result = Result(FAILED, UNREADABLE)
        it.unreadable_since = None
        state = REVOKED if result.state is FAILED and it.revoking else result.state
        self.reached["result before receipt"] += it in self.unsure
        reason = Reason.LOST if result.reason is UNREADABLE else result.reason
        counted = it.task.attempt - it.task.lost
        if state is FAILED and result.reason is Reason.LOST:
            self.lose(it)
        elif state is FAILED and counted <= it.task.retries and not self.draining:
            self.reached["retry"] += 1
            delay = min(it.task.retry_delay * 2 ** (counted - 1), self.config.retry_delay_max)
            self.again(it, reason, delay)
        elif state in (SUCCESS, FAILED, REVOKED) or state in MAY_FOLLOW_A_REPORT[it.state]:
            self.move(it, state, reason)

    def lose(self, it: Modelled) -> None:
        if self.draining or it.task.on_worker_lost is OnWorkerLost.FAIL:
            self.move(it, FAILED, Reason.LOST)
        elif it.task.lost + 1 >= it.task.max_lost:
            self.move(it, FAILED, Reason.POISON)
        else:
            self.reached["run again after a loss"] += 1
            self.again(it, Reason.LOST, 0.0, lost=1)

    def again(self, it: Modelled, reason: Reason | None, delay: float, *, lost: int = 0) -> None:
        self.tell(it, WAITING, reason, delay)
        self.sure(it)
        task = replace(it.task, attempt=it.task.attempt + 1, lost=it.task.lost + lost)
        self.alive[it.task.key] = Modelled(task, it.order, due=self.clock.now + delay if delay else 0.0)

    def take_missing(self) -> None:
        missing, self.missing = self.missing, {}
        for message_id, found in missing.items():
            it = next((it for it in self.out if it.task.message_id == message_id), None)
            if it is None or it.state is PUBLISHING:
                continue
            if found.requested_at is not None and it.moved_at > found.requested_at:
                self.reached["moved since it was looked for"] += 1
                continue
            if it.revoking or (it.withdrawn and it.state is QUEUED):
                self.reached["missing while called back"] += 1
                self.move(it, REVOKED, Reason.REVOKED)
            elif found.was_claimed or it.state is RUNNING:
                self.lose(it)
            elif self.draining:
                self.move(it, FAILED, Reason.LOST)
            else:
                self.reached["sent again"] += 1
                self.move(it, PUBLISHING, Reason.LOST)
                it.due = self.clock.now
                self.unsure.append(it)

    def move(self, it: Modelled, state: State, reason: Reason | None = None) -> None:
        self.sure(it)
        it.state, it.tries, it.first_failed, it.moved_at = state, 0, None, self.clock.now
        self.tell(it, state, reason)
        if state in (SUCCESS, FAILED, REVOKED, SKIPPED):
            self.reached[f"{state} by {reason}"] += 1
            del self.alive[it.task.key]
            self.ended[it.task.key] = state
            self.free_dependants(it.task.key, state)

    def sure(self, it: Modelled) -> None:
        self.unsure = [other for other in self.unsure if other is not it]

    def tell(self, it: Modelled, state: State, reason: Reason | None, retry_in: float | None = None) -> None:
        self.told.append(Told(it.task.key, state, it.task.message_id, reason, retry_in))


class Doors(InMemoryBroker):
    """Tells the model what passes through, and has a few more faults. It is a `Whereabouts` too."""

    is_scanning = has_news = False

    model: Model
    open_slots = 1_000
    mute_after = 1_000
    """How many receipts of a batch are given; for the others, nothing is said."""

    results_away = False
    published = False
    to_be_missed: tuple[LostTask, ...] = ()

    def scan(self, tasks: Iterable[Task], *, requested_at: float, urgent: bool = False) -> None:
        """What is missing, the test says."""

    def take_lost(self) -> Collection[LostTask]:
        said, self.to_be_missed = self.to_be_missed, ()
        self.model.missing.update((each.id, each) for each in said)
        return said

    def publish(self, tasks: Sequence[Task], *, timeout: float) -> list[Receipt]:
        self.published = True
        expected = [it.task for it in self.model.expected_batch(self.open_slots)]
        assert list(tasks) == expected, "the most urgent that are allowed, in order"
        receipts = super().publish(tasks, timeout=timeout)
        given = receipts[: self.mute_after]
        silence = RuntimeError("no answer")
        self.model.published([*given, *(Unsure(task, silence) for task in tasks[self.mute_after :])])
        return given

    def read(self, ids: Collection[str]) -> Mapping[str, Result | Unreadable]:
        for it in self.model.out:
            if it.task.message_id in ids:
                it.looked_at = self.clock.now
        self.answered = not self.results_away
        if self.results_away:
            return {}
        results = {**super().read(ids), "uninvited": Result(SUCCESS)}
        for message_id, result in results.items():
            self.model.read(message_id, result)
        if self.model.missing and set(ids) == self.model.missing.keys():
            self.model.take_missing()
        return results

    @property
    def clock(self) -> ManualClock:
        return self.model.clock

    @property
    def hinted(self) -> set[str]:
        return set(self._hints)


def by_key(told: list[Told]) -> list[Told]:
    """Each task's events in their order; between tasks that move at once no order is promised."""
    return sorted(told, key=lambda it: str(it.key))


class ExecutorModel(RuleBasedStateMachine):
    @initialize(parallelism=st.integers(1, 4), limit=st.integers(1, 3), most=st.sampled_from([None, None, 0, 2]))
    def begin(self, parallelism: int, limit: int, most: int | None) -> None:
        config = Config(
            parallelism=parallelism,
            queue_limits={"narrow": limit},
            task_publish_max_retries=most,
            publish_backoff_max=4.0,
            publish_deadline=30.0,
            retry_delay_max=8.0,
            first_look=0.125,
            result_unreadable_timeout=10.0,
        )
        clock = ManualClock()
        self.doors, self.model = Doors(clock), Model(config, clock)
        self.doors.model = self.model
        self.clock = clock
        self.tasks = 0
        self.last_told: dict[str, State] = {}
        self.not_pushed_since: float | None = clock.now
        self.make_executor()

    def make_executor(self) -> None:
        doors, clock = self.doors, self.clock
        self.executor = CeleryExecutor(
            self.model.config,
            publisher=doors,
            results=doors,
            revoker=doors,
            lost_task_detector=doors,
            clock=clock,
            wall_clock=clock,
            random=NoJitter(0),
        )

    # — what the caller asks for —

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
    ) -> None:
        self.tasks += 1
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
            id=f"t{self.tasks}",
        )
        config = self.model.config
        refusal: type[Exception] | None = None
        if not self.model.may_be_queued([task]):
            refusal = InvalidTask
        if key in self.model.alive:
            refusal = TaskAlreadyQueued
        if slots > min(config.parallelism, config.queue_limits.get(queue, slots)):
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
            st.tuples(st.sampled_from(KEYS), st.sampled_from(QUEUES), st.integers(-1, 2), st.integers(0, 2)), min_size=2
        )
    )
    def queue_many(self, tasks: list[tuple[str, str, int, int]]) -> None:
        for key, queue, priority, retries in tasks:
            self.queue_task(key, queue, priority, 1, retries, 0.0)

    @rule(
        batch=st.lists(
            st.tuples(
                st.sampled_from(KEYS),
                st.sampled_from(QUEUES),
                st.integers(-1, 2),
                st.sets(st.sampled_from(KEYS), max_size=2),
                st.sampled_from(OnNeedFailed),
            ),
            min_size=1,
        ),
        is_right=st.sampled_from([True, True, True, False]),
    )
    def queue_at_once(self, batch: list[tuple[str, str, int, set[str], OnNeedFailed]], is_right: bool) -> None:
        """In any order of what they need; now and then with whatever may be wrong."""
        tasks: list[Task] = []
        for key, queue, priority, needs, policy in batch:
            self.tasks += 1
            task = Task(
                key=key,
                command="true",
                queue=queue,
                priority=priority,
                needs=tuple(sorted(needs - {key})),
                on_need_failed=policy,
                id=f"t{self.tasks}",
            )
            is_new = key not in self.model.alive and all(task.key != key for task in tasks)
            if not is_right or (is_new and self.model.may_be_queued([*tasks, task])):
                tasks.append(task)
        tasks.reverse()
        refusal: type[Exception] | None = None
        if not self.model.may_be_queued(tasks):
            refusal = InvalidTask
        if len({task.key for task in tasks} - self.model.alive.keys()) < len(tasks):
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
        it = self.model.alive.get(key)
        if it is None or it.state is not WAITING:
            with pytest.raises(UnknownTask):
                self.executor.reprioritise(key, priority)
        else:
            self.model.reached["reprioritised"] += 1
            self.executor.reprioritise(key, priority)
            it.task = replace(it.task, priority=priority)

    @rule(key=st.sampled_from(KEYS))
    def revoke(self, key: str) -> None:
        it = self.model.alive.get(key)
        if it is None:
            with pytest.raises(UnknownTask):
                self.executor.revoke_task(key)
            return
        self.model.reached[f"revoke while {it.state}"] += 1
        self.executor.revoke_task(key)
        self.model_revokes(it)

    def model_revokes(self, it: Modelled) -> None:
        it.revoking = True
        if it.state in (WAITING, PUBLISHING):
            self.model.move(it, REVOKED, Reason.REVOKED)

    @rule(queue=st.sampled_from(QUEUES))
    def revoke_queue(self, queue: str) -> None:
        out = [it for it in self.model.out if it.task.queue == queue]
        waiting = [it.task.key for it in self.model.waiting if it.task.queue == queue]
        assert {*self.executor.revoke_tasks(queue=queue)} == {*waiting, *(it.task.key for it in out)}
        self.model.revoke_waiting(queue)
        for it in out:
            self.model_revokes(it)

    @rule()
    def withdraw(self) -> None:
        self.model.reached["withdraw"] += 1
        self.executor.cancel_unstarted()
        for it in self.model.out:
            it.withdrawn = it.withdrawn or it.state is not RUNNING
            if it.state is PUBLISHING:
                self.model.move(it, REVOKED, Reason.REVOKED)

    @rule(key=st.sampled_from(KEYS), state=st.sampled_from(State))
    def change_state(self, key: str, state: State) -> None:
        it = self.model.alive.get(key)
        if it is None:
            with pytest.raises(UnknownTask):
                self.executor.change_state(key, state)
        elif state in (SUCCESS, FAILED) or (it.state is not WAITING and state in MAY_FOLLOW_A_REPORT[it.state]):
            self.executor.change_state(key, state)
            self.model.move(it, state, Reason.CALLER)
        else:
            with pytest.raises(InvalidTransition):
                self.executor.change_state(key, state)

    # — the heartbeat —

    @rule()
    def heartbeat(self) -> None:
        self.trigger(self.model.config.parallelism)
        self.sync()

    @rule(open_slots=st.integers(0, 5))
    def trigger(self, open_slots: int) -> None:
        expected = self.model.expected_batch(open_slots)
        self.doors.open_slots, self.doors.published = open_slots, False
        self.executor.trigger_tasks(open_slots)
        self.doors.open_slots = 1_000
        assert self.doors.published == bool(expected)

    @rule()
    def sync(self) -> None:
        hinted, now, config = self.doors.hinted, self.clock.now, self.model.config
        if self.doors.pushes:
            self.not_pushed_since = None
        elif self.not_pushed_since is None:
            self.not_pushed_since = now
        must_look = []
        for it in self.model.out:
            waited = now - it.looked_at
            waited_in_vain = 0.0 if self.not_pushed_since is None else now - max(it.looked_at, self.not_pushed_since)
            if (
                it.task.message_id in hinted
                or waited >= config.reconcile_interval_pushed
                or waited_in_vain >= config.reconcile_interval
            ):
                must_look.append(it)
        self.executor.sync()
        for it in must_look:
            assert it.looked_at == now or it not in self.model.out

    @rule(seconds=st.sampled_from([0.25, 1.0, 4.0, 20.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(seconds=st.sampled_from([1.0, 15.0, 60.0]))
    def live(self, seconds: float) -> None:
        """Beat and wait, as callers do: never past the moment when something may be sent, and never in a spin."""
        until = self.clock.now + seconds
        beats = 0
        while self.clock.now < until:
            self.heartbeat()
            earliest = self.next_batch_after_waiting()
            self.executor.wait(until - self.clock.now)
            assert self.clock.now <= earliest
            beats += 1
            assert beats < 500

    def next_batch_after_waiting(self) -> float:
        model = self.model
        can_start = not model.draining and model.slots_out() < model.config.parallelism
        times = [it.due for it in model.waiting if can_start and not it.open] + [it.due for it in model.unsure]
        blocked = not model.expected_batch(1_000, after_the_pause=True)
        times = [
            max(time, model.paused_until, model.clock.now)
            for time in times
            if not (blocked and time <= model.clock.now)
        ]
        return min(times, default=float("inf"))

    @rule(data=st.data(), some=st.booleans())
    def collect(self, data: st.DataObject, some: bool) -> None:
        keys = data.draw(st.sets(st.sampled_from(KEYS), min_size=1)) if some else None
        expected = [told for told in self.model.told if keys is None or told.key in keys]
        self.model.told = [told for told in self.model.told if keys is not None and told.key not in keys]
        events = self.executor.get_event_buffer(keys)
        assert by_key([Told(e.key, e.state, e.id, e.reason, e.retry_in) for e in events]) == by_key(expected)
        for each in events:
            self.follow(each)

    def follow(self, event: Event) -> None:
        """Each life of a key has one end, and only allowed moves lead there."""
        task_id = event.id.partition(".")[0]
        last = self.last_told.get(task_id, WAITING)
        allowed = set(TRANSITIONS[last])
        if last is WAITING:  # PUBLISHING is silent when the broker answers at once
            allowed |= set(TRANSITIONS[PUBLISHING])
        assert event.state in allowed, f"{event.key}: {last} -> {event.state}"
        self.last_told[task_id] = event.state

    # — what workers and the result backend do —

    def message_ids(self) -> list[str]:
        """Those that arrived and are waited for, several times over, and all that ever were."""
        current = [it.task.message_id for it in self.model.out]
        return current * 4 + [task.message_id for task in self.doors.messages] + ["nobody"]

    @rule(data=st.data(), report=st.sampled_from(list(REPORTS)), hints=st.sampled_from([1, 1, 0, 2]))
    def report(self, data: st.DataObject, report: str, hints: int) -> None:
        """Any result for anything, at any time: late without a hint, doubled, out of order, of old attempts."""
        message_id: str = data.draw(st.sampled_from(self.message_ids()))
        self.doors.put(message_id, REPORTS[report], hint=hints > 0)
        if hints > 1:
            self.doors.put(message_id, REPORTS[report])

    @precondition(lambda self: self.doors.unfinished)
    @rule(data=st.data(), ends=st.sampled_from(["start", "succeed", "fail"]))
    def work(self, data: st.DataObject, ends: str) -> None:
        key = data.draw(st.sampled_from(self.doors.unfinished)).key
        getattr(self.doors, ends)(key)

    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        self.doors.lose(data.draw(st.sampled_from(self.message_ids())))

    # — what goes wrong —

    @precondition(lambda self: self.model.out)
    @rule(data=st.data(), was_claimed=st.booleans(), ago=st.sampled_from([0.0, 0.5, 20.0]))
    def miss(self, data: st.DataObject, was_claimed: bool, ago: float) -> None:
        """Its worker is dead, or its message is in no place, or was in none some seconds ago."""
        message_id = data.draw(st.sampled_from(self.message_ids()))
        found = LostTask(message_id, "gone", was_claimed, requested_at=None if was_claimed else self.clock.now - ago)
        self.doors.to_be_missed = (*self.doors.to_be_missed, found)

    @rule(keys=st.sets(st.sampled_from(KEYS), max_size=3), transient=st.booleans())
    def refuse(self, keys: set[str], transient: bool) -> None:
        self.doors.refuse(*sorted(keys), transient=transient)

    @rule(keys=st.sets(st.sampled_from(KEYS), max_size=3), delivered=st.booleans())
    def leave_unsure(self, keys: set[str], delivered: bool) -> None:
        self.doors.leave_unsure(*sorted(keys), delivered=delivered)

    @rule(after=st.integers(0, 2))
    def mute(self, after: int) -> None:
        self.doors.mute_after = after

    @rule(results=st.booleans(), revokes=st.booleans(), pushes=st.booleans())
    def change_the_weather(self, results: bool, revokes: bool, pushes: bool) -> None:
        self.doors.results_away, self.doors.obeys_revokes, self.doors.pushes = not results, revokes, pushes

    @rule()
    def heal(self) -> None:
        self.doors.heal()
        self.doors.mute_after = 1_000
        self.doors.results_away = False

    # — the end —

    @rule(how=st.sampled_from([None] * 15 + ["drain", "terminate"]))
    def stop(self, how: str | None) -> None:
        """Now and then: after it, nothing starts until the end."""
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
        for it in self.model.out:
            it.withdrawn = True
            if not it.revoking:
                self.model_revokes(it)

    @precondition(lambda self: self.model.draining)
    @rule(timeout=st.sampled_from([0.0, 5.0]))
    def end(self, timeout: float) -> None:
        """What has not ended by then is given up by the caller; then a new executor takes over."""
        assert self.executor.end(timeout) == (not self.model.out)
        self.model.revoke_waiting()
        for it in self.model.out:
            self.executor.fail(it.task.key)
            self.model.move(it, FAILED, Reason.CALLER)
        self.everything_has_ended()
        self.model.ended = {}
        self.model.draining, self.model.failures_in_a_row, self.model.paused_until = False, 0, 0.0
        self.model.missing, self.doors.to_be_missed = {}, ()
        self.make_executor()

    def everything_has_ended(self) -> None:
        self.collect_all()
        assert not self.model.alive
        assert self.executor.slots_occupied == self.executor.tasks_in_flight == self.executor.tasks_waiting == 0
        assert all(state.is_final for state in self.last_told.values())

    def collect_all(self) -> None:
        expected, self.model.told = self.model.told, []
        events = self.executor.get_event_buffer()
        assert by_key([Told(e.key, e.state, e.id, e.reason, e.retry_in) for e in events]) == by_key(expected)
        for each in events:
            self.follow(each)

    # — what always holds —

    @invariant()
    def never_more_out_than_allowed(self) -> None:
        config = self.model.config
        assert self.executor.slots_occupied == self.model.slots_out() <= config.parallelism
        assert self.executor.slots_available == config.parallelism - self.model.slots_out()
        assert all(self.model.slots_out(queue) <= limit for queue, limit in config.queue_limits.items())

    @invariant()
    def the_executor_knows_what_is_alive_and_nothing_else(self) -> None:
        model = self.model
        assert [key for key in KEYS if self.executor.has_task(key)] == [key for key in KEYS if key in model.alive]
        assert (self.executor.tasks_waiting, self.executor.tasks_in_flight) == (len(model.waiting), len(model.out))
        assert self.executor.stats().task_publish_retries == {
            it.task.key: it.tries for it in model.alive.values() if it.tries
        }

    @invariant()
    def the_executor_can_explain_all_that_is_alive(self) -> None:
        for key, it in self.model.alive.items():
            told = self.executor.explain(key)
            assert (told.state, told.id, told.priority) == (it.state, it.task.message_id, it.task.priority)
            waits_for = told.now.waits_for
            assert (waits_for is WaitReason.RETRY) == (
                not self.model.draining and it.state is WAITING and it.due > self.clock.now
            )
            assert (waits_for is WaitReason.NEEDS) == (not self.model.draining and bool(it.open))

    def teardown(self) -> None:
        """With all faults healed and time to go on, every task comes to its one end."""
        if not hasattr(self, "model"):
            return
        note("teardown")
        self.heal()
        for _ in range(100):
            if self.model.draining:
                self.end(5.0)
            if not self.model.alive:
                break
            self.live(15.0)
            self.settle()
        self.everything_has_ended()
        for what, times in self.model.reached.items():
            if times:
                event(what)

    def settle(self) -> None:
        """Workers succeed at what they have; what they never got an end for is lost, and the caller says so."""
        for it in self.model.out:
            arrived = any(task.message_id == it.task.message_id for task in self.doors.messages)
            if arrived and it.task.message_id not in self.doors.results:
                self.doors.succeed(it.task.key)
            else:
                self.model.reached["lost"] += 1
                self.executor.fail(it.task.key)
                self.model.move(it, FAILED, Reason.CALLER)


TestExecutorModel = ExecutorModel.TestCase
