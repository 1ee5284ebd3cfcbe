"""Read all that a process counts and measures about itself, and hand it to sinks."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeAlias, TypeVar

from msgspec import Struct

from celeriac.telemetry.metrics import METRICS, Metric
from celeriac.telemetry.trace_context import TaskTraces

T = TypeVar("T")

MAX_SERIES = 500  # label values of one metric; the others are added up under the label "other"
OTHER = "other"
MAX_BACKLOG = 20_000  # observations or ended tasks that wait for a sink


class Distribution(Struct, eq=False):
    """The observations of one histogram with the same labels. Only one thread may add to it."""

    metric: Metric
    counts: list[int]
    """By bucket, not cumulated; the last one has all that exceed the highest bound."""

    total: float = 0.0
    """The sum of the observations, in seconds."""

    @classmethod
    def of(cls, metric: Metric) -> Distribution:
        """Return an empty distribution."""
        return cls(metric, [0] * (len(metric.bounds) + 1))

    def add(self, seconds: float) -> None:
        """Add an observation. A negative one counts as 0: the clocks of two machines may differ."""
        self.counts[bisect_left(self.metric.bounds, seconds)] += 1
        if seconds > 0:
            self.total += seconds

    def copy(self) -> Distribution:
        """Return a copy. Any thread may call this."""
        return Distribution(self.metric, [*self.counts], self.total)

    def plus(self, other: Distribution) -> Distribution:
        """Return the sum of two distributions."""
        counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        return Distribution(self.metric, counts, self.total + other.total)

    @property
    def number(self) -> int:
        """How many observations there are."""
        return sum(self.counts)


Labels: TypeAlias = tuple[str, ...]
Value: TypeAlias = float | Distribution
Source: TypeAlias = Callable[[], Iterable[tuple[Metric, Mapping[Labels, Value]]]]
Observation: TypeAlias = tuple[Metric, float, Labels]

NO_LABELS: Labels = ()


class Family(Struct, frozen=True):
    """One metric with all of its values at one moment, by their labels."""

    metric: Metric
    values: Mapping[Labels, Value]

    @property
    def numbers(self) -> Iterator[tuple[Labels, float]]:
        """The values of a counter or a gauge."""
        return ((labels, value) for labels, value in self.values.items() if not isinstance(value, Distribution))

    @property
    def distributions(self) -> Iterator[tuple[Labels, Distribution]]:
        """The values of a histogram."""
        return ((labels, value) for labels, value in self.values.items() if isinstance(value, Distribution))


class Step(Struct, frozen=True):
    """One transition of a task. All times are seconds since the epoch."""

    when: float
    state: str
    attempt: int
    reason: str | None = None
    """Why an attempt failed, or why the task did not succeed."""

    started: float | None = None
    """When the command of the attempt started, by the clock of its worker, if the attempt has ended."""


class EndedTask(Struct, frozen=True):
    """A task that has ended, for a sink of traces."""

    name: str
    """Its key, as text."""

    id: str
    parent: str | None
    """The TRACEPARENT in its environment."""

    queue: str
    arrived: float
    steps: tuple[Step, ...]
    """Each transition, in order. The last one is its end."""


class Telemetry:
    """All that one process measures. Any thread may call a method, and none of them waits for a sink."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._own: dict[Metric, dict[Labels, Value]] = {}
        self._sources: dict[str, Source] = {}
        self.observations: deque[Observation] | None = None
        """The observations for a sink that takes them one by one; None if there is none."""

        self._ended: deque[Callable[[], EndedTask]] | None = None
        self.traces: TaskTraces | None = None
        """The sink of traces, if there is one."""

    # — for what is measured —

    def set_source(self, name: str, source: Source) -> None:
        """Read all values of `source` at each call of `read`, in its thread. It replaces the source that
        had this name: an executor that ended gives way to the next one."""
        self._sources = {**self._sources, name: source}

    def count(self, metric: Metric, *labels: str, by: float = 1) -> None:
        """Add to a counter. With `by` 0 the counter is shown before it first grows."""
        with self._lock:
            series = self._own.setdefault(metric, {})
            value = series.get(labels, 0)
            series[labels] = by if isinstance(value, Distribution) else value + by

    def observe(self, metric: Metric, seconds: float, *labels: str) -> None:
        """Add an observation to a histogram."""
        with self._lock:
            series = self._own.setdefault(metric, {})
            distribution = series.get(labels)
            if not isinstance(distribution, Distribution):
                distribution = series[labels] = Distribution.of(metric)
            distribution.add(seconds)
        if self.observations is not None:
            self.observations.append((metric, seconds, labels))

    def task_ended(self, task: Callable[[], EndedTask]) -> None:
        """Keep an ended task for a sink of traces, if there is one. The sink's thread calls `task`."""
        if self._ended is not None:
            self._ended.append(task)

    # — for sinks —

    def read(self) -> list[Family]:
        """Return all metrics that have a value, in the order of the table. Values of several sources are added up."""
        values: dict[Metric, dict[Labels, Value]] = {}
        for metric, series in [*(item for source in self._sources.values() for item in source()), *self._copy_of_own()]:
            add_up(values.setdefault(metric, {}), series)
        return [Family(metric, at_most(values[metric])) for metric in METRICS if values.get(metric)]

    def _copy_of_own(self) -> list[tuple[Metric, dict[Labels, Value]]]:
        with self._lock:
            return [
                (metric, {labels: v.copy() if isinstance(v, Distribution) else v for labels, v in series.items()})
                for metric, series in self._own.items()
            ]

    def keep_observations(self) -> None:
        """Keep each observation from now on: a sink takes them one by one."""
        self.observations = deque(maxlen=MAX_BACKLOG)

    def take_observations(self) -> list[Observation]:
        """Return the observations since the last call, at most the last `MAX_BACKLOG`."""
        return [(metric, seconds, tuple(map(str, labels))) for metric, seconds, labels in drain(self.observations)]

    def keep_ended_tasks(self, traces: TaskTraces) -> None:
        """Keep each ended task from now on, for a sink of traces."""
        self._ended, self.traces = deque(maxlen=MAX_BACKLOG), traces

    def take_ended_tasks(self) -> list[EndedTask]:
        """Return the tasks that ended since the last call, at most the last `MAX_BACKLOG`."""
        return [read() for read in drain(self._ended)]


def add_up(values: dict[Labels, Value], more: Mapping[Labels, Value]) -> None:
    """Add values to those of the same labels."""
    for labels, value in more.items():
        present = values.get(labels)
        values[labels] = value if present is None else sum_of(present, value)


def sum_of(a: Value, b: Value) -> Value:
    if isinstance(a, Distribution) and isinstance(b, Distribution):
        return a.plus(b)
    if isinstance(a, Distribution) or isinstance(b, Distribution):
        raise TypeError("a histogram has no number")
    return a + b


def at_most(values: dict[Labels, Value]) -> Mapping[Labels, Value]:
    """Return values with at most `MAX_SERIES` labels: the first ones, and the sum of the others."""
    if len(values) <= MAX_SERIES:
        return values
    kept = dict(list(values.items())[: MAX_SERIES - 1])
    for labels, value in list(values.items())[MAX_SERIES - 1 :]:
        add_up(kept, {(OTHER,) * len(labels): value})
    return kept


def drain(backlog: deque[T] | None) -> list[T]:
    items: list[T] = []
    while backlog:
        items.append(backlog.popleft())
    return items
