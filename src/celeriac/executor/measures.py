"""Count and time what happens to the tasks of one executor.

    lifecycle, dispatcher ─► Measures: counters and histograms ─┐
    lifecycle, slots, queue: the numbers of this moment ────────┴► read_all ─► Telemetry.read, in the reader's thread

Only the executor's thread writes. A count is one addition to an attribute, so that a heartbeat does not become slower.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

from msgspec import Struct, field

from celeriac.executor.history import TaskHistory
from celeriac.executor.priority_queue import Entry
from celeriac.executor.tracker import Tracked
from celeriac.task.event import Event
from celeriac.task.result import Reason, Result
from celeriac.task.state import State
from celeriac.task.task import Task
from celeriac.telemetry import metrics
from celeriac.telemetry.metrics import Metric
from celeriac.telemetry.telemetry import NO_LABELS, Distribution, EndedTask, Labels, Step, Telemetry, Value
from celeriac.telemetry.trace_context import TRACEPARENT

if TYPE_CHECKING:
    from celeriac.executor.lifecycle import TaskLifecycle
    from celeriac.executor.parts import ExecutorParts

NO_REASON = "none"


class QueueMeasures(Struct, eq=False):
    """The counters and histograms of one queue."""

    queued: int = 0
    published: int = 0
    publish_retries: int = 0
    unconfirmed: int = 0
    lost: int = 0
    running: int = 0
    """The tasks of this moment that a worker has started."""

    ends: Counter[tuple[State, Reason | None]] = field(default_factory=Counter)
    retries: Counter[Reason | None] = field(default_factory=Counter)
    waits: Distribution = field(default_factory=lambda: Distribution.of(metrics.WAIT_SECONDS))
    starts: Distribution = field(default_factory=lambda: Distribution.of(metrics.START_SECONDS))
    runs: defaultdict[State, Distribution] = field(
        default_factory=lambda: defaultdict(lambda: Distribution.of(metrics.RUN_SECONDS))
    )


class Measures:
    """The counters and histograms of one executor."""

    def __init__(self, telemetry: Telemetry, *, clock: Callable[[], float], wall_clock: Callable[[], float]) -> None:
        self.telemetry, self.clock, self._wall_clock = telemetry, clock, wall_clock
        self.queues: defaultdict[str, QueueMeasures] = defaultdict(QueueMeasures)
        self.late_results = 0
        self.result_delays = Distribution.of(metrics.RESULT_DELAY)
        self.publishes = Distribution.of(metrics.PUBLISH_SECONDS)
        self.heartbeats = Distribution.of(metrics.HEARTBEAT_SECONDS)
        self.syncs = Distribution.of(metrics.SYNC_SECONDS)
        self.synced_at = clock()
        """When the executor last applied results."""

    # — tasks —

    def queued(self, task: Task) -> None:
        """Count a task that was accepted."""
        self.queues[task.queue].queued += 1

    def moved(self, tracked: Tracked, state: State, result: Result | None) -> None:
        """Count a transition of a task in flight, before it is applied: to `state`, or out of flight."""
        before, name = tracked.state, tracked.entry.task.queue
        queue = self.queues[name]
        if before is State.PUBLISHING and (state is State.QUEUED or state is State.RUNNING):
            self._waited(tracked.entry, queue)
        if state is State.QUEUED:
            queue.published += before is State.PUBLISHING
        elif state is State.RUNNING:
            queue.running += 1
            if before is State.QUEUED:
                self._observe(queue.starts, self.clock() - tracked.moved_at, name)
        if before is State.RUNNING:
            queue.running -= 1
        if result is not None and result.execution is not None and result.execution.duration is not None:
            self._ran(tracked, state, result.execution.started, result.execution.duration)

    def _waited(self, entry: Entry, queue: QueueMeasures) -> None:
        """Time how long a task has waited that the broker has taken now."""
        if entry.task.attempt == 1:
            self._observe(
                queue.waits, self._wall_clock() - max(entry.arrived, entry.task.not_before or 0.0), entry.task.queue
            )

    def adopted(self, task: Task, state: State) -> None:
        """Count a task in flight that another executor sent."""
        self.queues[task.queue].running += state is State.RUNNING

    def _ran(self, tracked: Tracked, state: State, started: float | None, duration: float) -> None:
        """Time a command that has ended."""
        name = tracked.task.queue
        queue = self.queues[name]
        self._observe(queue.runs[state], duration, name, state)
        if tracked.state is State.QUEUED:  # its start was never reported
            self._observe(queue.starts, self.clock() - tracked.moved_at - duration, name)
        if started is not None:
            self._observe(self.result_delays, self._wall_clock() - started - duration)

    def attempt_failed(self, task: Task, reason: Reason | None) -> None:
        """Count an attempt that another one follows."""
        queue = self.queues[task.queue]
        queue.retries[reason] += 1
        queue.lost += reason is Reason.LOST

    def unconfirmed(self, task: Task) -> None:
        """Count a task that was sent without a confirmation."""
        self.queues[task.queue].unconfirmed += 1

    def publish_failed(self, task: Task) -> None:
        """Count a failed attempt to send that another one follows."""
        self.queues[task.queue].publish_retries += 1

    def result_ignored(self) -> None:
        """Count a late result of a lost attempt."""
        self.late_results += 1

    def ended(self, task: Task, event: Event, history: TaskHistory | None) -> None:
        """Count the end of a task. `history` has its events, the last one included."""
        queue = self.queues[task.queue]
        queue.ends[event.state, event.reason] += 1
        queue.lost += event.reason in (Reason.LOST, Reason.POISON)
        if self.telemetry.traces is not None and history is not None:
            self.telemetry.task_ended(partial(ended_task, task, history))

    def revoked_silently(self, number_of: Mapping[str, int]) -> None:
        """Count the ends of tasks that get no event, by queue."""
        for queue, number in number_of.items():
            self.queues[queue].ends[State.REVOKED, Reason.REVOKED] += number

    # — the executor —

    def published(self, seconds: float) -> None:
        """Time the sending of a batch."""
        self._observe(self.publishes, seconds)

    def beat(self, seconds: float) -> None:
        """Time a heartbeat."""
        self._observe(self.heartbeats, seconds)

    def synced(self, begun: float) -> None:
        """Time the application of results, which began at `begun`."""
        self.synced_at = self.clock()
        self._observe(self.syncs, self.synced_at - begun)

    def _observe(self, distribution: Distribution, seconds: float, *labels: str) -> None:
        distribution.add(seconds)
        if (backlog := self.telemetry.observations) is not None:
            backlog.append((distribution.metric, seconds, labels))


def ended_task(task: Task, history: TaskHistory) -> EndedTask:
    sends = [Step(when, State.PUBLISHING, attempt) for when, attempt in history.sends]
    steps = [*sends, *(step_of(event) for event in history.events if event.priority is None)]
    parent = task.env.get(TRACEPARENT)
    return EndedTask(
        name=str(task.key),
        id=task.id,
        parent=None if parent is None else str.__str__(parent),
        queue=task.queue,
        arrived=history.arrived,
        steps=tuple(sorted(steps, key=lambda step: step.when)),
    )


def step_of(event: Event) -> Step:
    return Step(
        when=event.when,
        state=str(event.state),
        attempt=event.attempt,
        reason=None if event.reason is None else str(event.reason),
        started=None if event.execution is None else event.execution.started,
    )


# — reading, in another thread —


OF_A_QUEUE: dict[Metric, Callable[[QueueMeasures], Value]] = {
    metrics.TASKS_QUEUED: lambda queue: queue.queued,
    metrics.PUBLISHES: lambda queue: queue.published,
    metrics.PUBLISH_RETRIES: lambda queue: queue.publish_retries,
    metrics.PUBLISH_UNCONFIRMED: lambda queue: queue.unconfirmed,
    metrics.TASKS_LOST: lambda queue: queue.lost,
    metrics.TASKS_RUNNING: lambda queue: queue.running,
    metrics.WAIT_SECONDS: lambda queue: queue.waits.copy(),
    metrics.START_SECONDS: lambda queue: queue.starts.copy(),
}
"""The values that have no label besides the queue."""


def read_all(
    parts: ExecutorParts, backend_answers: Callable[[], bool]
) -> Iterator[tuple[Metric, Mapping[Labels, Value]]]:
    """Yield all that is measured. Any thread may call this while the executor works: what it reads is one number, or is
    copied in one step."""
    yield from read_measures(parts.lifecycle.measures)
    yield from read_gauges(parts)
    lifecycle, measures = parts.lifecycle, parts.lifecycle.measures
    yield metrics.BROKER_AVAILABLE, {NO_LABELS: float(not lifecycle.publish_retries.is_broker_failing)}
    yield metrics.BACKEND_AVAILABLE, {NO_LABELS: float(backend_answers())}
    if lifecycle.ledger_writer.is_enabled:
        yield metrics.LEDGER_AVAILABLE, {NO_LABELS: float(not lifecycle.ledger_writer.is_failing)}
    if (limits := lifecycle.limits) is not None:
        named = limits.named()
        yield metrics.LIMIT_PLACES, by_label({name: number for name, (number, _) in named.items()})
        yield metrics.LIMIT_PLACES_HELD, by_label({name: held for name, (_, held) in named.items()})
    yield metrics.HEARTBEAT_AGE, {NO_LABELS: max(0.0, measures.clock() - measures.synced_at)}


def read_measures(measures: Measures) -> Iterator[tuple[Metric, Mapping[Labels, Value]]]:
    """Yield the counters and histograms."""
    queues = dict(measures.queues)
    for metric, value_of in OF_A_QUEUE.items():
        yield metric, {(name,): value_of(queue) for name, queue in queues.items()}
    ends: dict[Labels, Value] = {}
    retries: dict[Labels, Value] = {}
    runs: dict[Labels, Value] = {}
    for name, queue in queues.items():
        for (state, reason), number in dict(queue.ends).items():
            ends[name, str(state), str(reason or NO_REASON)] = number
        for reason, number in dict(queue.retries).items():
            retries[name, str(reason or NO_REASON)] = number
        for state, seconds in dict(queue.runs).items():
            runs[name, str(state)] = seconds.copy()
    yield metrics.TASK_ENDS, ends
    yield metrics.TASK_RETRIES, retries
    yield metrics.RUN_SECONDS, runs
    yield metrics.LATE_RESULTS, {NO_LABELS: measures.late_results}
    for each in (measures.result_delays, measures.publishes, measures.heartbeats, measures.syncs):
        yield each.metric, {NO_LABELS: each.copy()}


def read_gauges(parts: ExecutorParts) -> Iterator[tuple[Metric, Mapping[Labels, Value]]]:
    """Yield the numbers of this moment."""
    lifecycle = parts.lifecycle
    waiting = Counter(dict(lifecycle.queue.by_queue))
    waiting.update(dict(lifecycle.dependencies.by_queue))
    waiting.update(lifecycle.accepted.by_queue())
    in_flight = lifecycle.slots.tasks_by_queue()
    unserved = set(parts.dispatcher.queues_without_workers)
    first_arrival = lifecycle.queue.first_arrival()
    yield metrics.TASKS_WAITING, by_label(waiting)
    yield metrics.TASKS_BLOCKED, {NO_LABELS: len(lifecycle.dependencies)}
    oldest = max(0.0, lifecycle.wall_clock() - first_arrival) if first_arrival else 0.0
    yield metrics.OLDEST_WAITING, {NO_LABELS: oldest}
    yield metrics.TASKS_IN_FLIGHT, by_label(in_flight)
    yield metrics.OLDEST_QUEUED, {**by_label(dict.fromkeys(in_flight, 0.0)), **by_label(longest_queued(lifecycle))}
    yield metrics.TASKS_UNCONFIRMED, {NO_LABELS: len(lifecycle.unconfirmed)}
    yield metrics.SLOTS_IN_USE, {NO_LABELS: lifecycle.slots.in_use}
    yield metrics.SLOTS_OPEN, {NO_LABELS: max(0, lifecycle.slots.open)}
    yield metrics.QUEUE_UNSERVED, {(queue,): int(queue in unserved) for queue in {*waiting, *in_flight, *unserved}}


def longest_queued(lifecycle: TaskLifecycle) -> dict[str, float]:
    """Return the longest time, in seconds, that a task of each queue has been at the broker without a start. That of a
    task which another executor sent begins when it was taken over."""
    since: dict[str, float] = {}
    for tracked in lifecycle.tracker:
        if tracked.state is State.QUEUED:
            queue = tracked.task.queue
            since[queue] = min(since.get(queue, tracked.moved_at), tracked.moved_at)
    now = lifecycle.clock()
    return {queue: max(0.0, now - moved_at) for queue, moved_at in since.items()}


def by_label(numbers: Mapping[str, float]) -> dict[Labels, Value]:
    return {(name,): number for name, number in numbers.items()}
