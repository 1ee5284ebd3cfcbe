"""The settings of the executor, with units and defaults."""

from __future__ import annotations

import os
from collections.abc import Mapping
from math import isfinite

from msgspec import Struct, field

from celeriac.errors import InvalidConfig, InvalidTask

SHARED_LIMITS = ("concurrency_limits", "concurrency_rates", "queue_rates")
"""The fields of `Config` with limits that count for all executors of a broker."""

ALL_KEYS = "*"
"""The concurrency key that stands for all keys that have no limit of their own."""

PER_CENT = "%"


class Config(Struct, frozen=True, kw_only=True):
    parallelism: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Number of slots: how many tasks, of one slot each, may be in flight at once."""

    queue_limits: Mapping[str, int] = field(default_factory=dict)
    """How many slots the tasks of a queue may take together. A queue that is not listed has no limit of its own."""

    concurrency_limits: Mapping[str, int] = field(default_factory=dict)
    """How many tasks of a `concurrency_key` may run at once, by key; "*" stands for each key that is not listed. On a
    broker, tasks of all executors count."""

    concurrency_rates: Mapping[str, str] = field(default_factory=dict)
    """How many tasks of a `concurrency_key` may start in any second, minute or hour, such as "10/m"; else the same."""

    queue_rates: Mapping[str, str] = field(default_factory=dict)
    """How many tasks of a queue may start in any second, minute or hour. A queue that is not listed has no rate."""

    max_load: float | str | None = None
    """No task starts while the load average of the last minute is above this: a number, or a per cent of the processors
    such as "100%". Where workers elsewhere run the tasks, it has no effect: the workers have such a limit of their own.
    """

    min_free_memory: int | None = None
    """Bytes: no task starts while less memory is available. Like `max_load`, it is for the machine of the commands."""

    delay: float = 0.0
    """Seconds from the start of a task until the next one starts."""

    cpus: float | None = None
    """How many CPUs the tasks of a local cluster may need together. None for all that this process may use."""

    memory: int | None = None
    """The same for memory, in bytes."""

    gpus: int | None = None
    """The same for GPUs."""

    late_binding_margin: int = 64
    """With late binding: how many more tasks of a queue may be in flight than its live workers run at once. The total
    is never more than twice the number that they run. A task counts only the tasks of at least its own urgency against
    this limit, because it overtakes the others inside the broker."""

    operation_timeout: float = 2.0
    """Seconds that one call to the broker may take. A heartbeat never waits longer for the broker."""

    task_publish_max_retries: int | None = None
    """How many times publishing a task may be retried. With None it is retried until the publish deadline."""

    publish_deadline: float = 3600.0
    """Seconds after the first attempt until a task that cannot be published fails."""

    publish_backoff: float = 0.5
    """Seconds before publishing is retried; doubled after each failure in a row, with jitter."""

    publish_backoff_max: float = 30.0
    """Seconds; the longest delay between two attempts to publish."""

    retry_delay_max: float = 300.0
    """Seconds; the longest delay between two attempts of a task."""

    first_look: float = 0.1
    """Seconds until the result of a task in flight is first polled, while the result backend does not push changes;
    doubled each time."""

    reconcile_interval: float = 5.0
    """Seconds; the longest time between two such polls."""

    reconcile_interval_pushed: float = 180.0
    """Seconds; the longest time between two polls of a task while the result backend pushes changes. The first poll
    comes after half of this time at the earliest, each later one after nine tenths."""

    reconcile_rate: int = 2_000
    """Polls per second, at most, of tasks without a hint. If more tasks are in flight than this rate allows in an
    interval, each task is polled less often."""

    search_interval: float = 30.0
    """Seconds between two scans for lost tasks: sent tasks that have not ended and that no broker or worker has. After
    an outage a scan follows soon. A cancelled task that has not ended is cancelled again as often."""

    delete_results: bool = True
    """Whether the stored result of a task may be deleted after its last event was taken. Set it to False if another
    Celery client also reads the results; then Celery's `result_expires` deletes them."""

    result_trigger: bool = True
    """Whether to create a trigger in a result backend in PostgreSQL, so that results are seen within milliseconds of
    their storage. Where that is not possible, Celery's task events and polling find them."""

    result_unreadable_timeout: float = 60.0
    """Seconds until a task whose result cannot be decoded fails as lost. While a live worker's lease lists the task, it
    goes on: its worker will store another result."""

    @property
    def limits_machine(self) -> bool:
        """Whether there is a limit for the machine that runs the commands."""
        return self.max_load is not None or self.min_free_memory is not None

    def __post_init__(self) -> None:
        check_int("parallelism", self.parallelism, minimum=1)
        check_int("late_binding_margin", self.late_binding_margin, minimum=0)
        for queue, limit in self.queue_limits.items():
            check_int(f"queue_limits[{queue!r}]", limit, minimum=1)
        if self.has_shared_limits:
            self._check_shared_limits()
        if self.cpus is not None or self.memory is not None or self.gpus is not None:
            self._check_resources()
        if self.task_publish_max_retries is not None:
            check_int("task_publish_max_retries", self.task_publish_max_retries, minimum=0)
        check_int("reconcile_rate", self.reconcile_rate, minimum=1)
        if self.max_load is not None:
            check_load("max_load", self.max_load)
        if self.min_free_memory is not None:
            check_int("min_free_memory", self.min_free_memory, minimum=1)
        for name in ("delete_results", "result_trigger"):
            if type(value := getattr(self, name)) is not bool:
                raise InvalidConfig(name, f"{value!r} is neither True nor False", "give True or False")
        for name in ("operation_timeout", "publish_backoff", "publish_backoff_max", "first_look"):
            check_seconds(name, getattr(self, name), above_zero=True)
        for name in ("reconcile_interval", "reconcile_interval_pushed", "search_interval"):
            check_seconds(name, getattr(self, name), above_zero=True)
        for name in ("publish_deadline", "retry_delay_max", "result_unreadable_timeout", "delay"):
            check_seconds(name, getattr(self, name))

    @property
    def has_shared_limits(self) -> bool:
        """Whether there are limits that count for all executors of a broker."""
        return bool(self.concurrency_limits or self.concurrency_rates or self.queue_rates)

    @property
    def limited_keys(self) -> set[str]:
        """The concurrency keys that have a limit. `ALL_KEYS` stands for all keys."""
        return {*self.concurrency_limits, *self.concurrency_rates}

    @property
    def shared_limits(self) -> dict[str, dict[str, int | str]]:
        """These limits by the name of their field, without empty fields."""
        return {name: dict(limits) for name in SHARED_LIMITS if (limits := getattr(self, name))}

    def _check_shared_limits(self) -> None:
        from celeriac.config.rate import MAX_NUMBER, parse_rate  # late: few executors have such limits

        for key, limit in self.concurrency_limits.items():
            check_int(f"concurrency_limits[{key!r}]", limit, minimum=1)
            if limit > MAX_NUMBER:
                problem = f"{limit} is too many"
                raise InvalidConfig(f"concurrency_limits[{key!r}]", problem, f"give at most {MAX_NUMBER:,}")
        for name in ("concurrency_rates", "queue_rates"):
            for key, rate in getattr(self, name).items():
                parse_rate(f"{name}[{key!r}]", rate)

    def _check_resources(self) -> None:
        from celeriac.task.resources import to_cpus, to_memory  # late: most users leave these to us

        try:
            if self.cpus is not None:
                to_cpus("cpus", self.cpus)
            if self.memory is not None:
                to_memory("memory", self.memory)
        except InvalidTask as error:
            raise InvalidConfig(error.field, error.problem, error.remedy) from None
        if self.gpus is not None:
            check_int("gpus", self.gpus, minimum=0)


def check_int(setting: str, value: object, *, minimum: int) -> None:
    if type(value) is not int or value < minimum:
        raise InvalidConfig(setting, f"{value!r} is not a whole number", f"give {minimum} or more")


def check_seconds(setting: str, value: object, *, above_zero: bool = False) -> None:
    if type(value) not in (int, float) or not isfinite(value) or value < 0 or (above_zero and value == 0):  # type: ignore[arg-type, operator]
        raise InvalidConfig(setting, f"{value!r} is not a number of seconds", "give for example 2 or 0.5")


def check_load(setting: str, value: object) -> None:
    """Raise `InvalidConfig` for what is neither a number above 0 nor a per cent above 0."""
    number: object = value
    if isinstance(value, str) and value.endswith(PER_CENT):
        try:
            number = float(value.removesuffix(PER_CENT))
        except ValueError:
            number = None
    if type(number) not in (int, float) or not isfinite(number) or number <= 0:  # type: ignore[arg-type, operator]
        problem = f"{value!r} is neither a load nor a per cent of the processors"
        raise InvalidConfig(setting, problem, "give for example 8 or 100%")
