"""Every setting of the executor and its worker, with its unit and its default."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite

from celeriac.errors import InvalidConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    parallelism: int = field(default_factory=lambda: os.cpu_count() or 1)
    """How many slots there are: how many tasks, of one slot each, may be out at once."""

    queue_limits: Mapping[str, int] = field(default_factory=dict)
    """How many slots the tasks of a queue may take together. A queue that is not named has no limit of its own."""

    late_binding_margin: int = 64
    """With late binding: how many tasks of a queue may be sent beyond what its live workers run at once, and at most as
    many again as they run. As many of each higher level of urgency may be sent too: they overtake inside the broker."""

    operation_timeout: float = 2.0
    """Seconds that one call to the broker may take; a heartbeat never waits longer for it."""

    task_publish_max_retries: int | None = None
    """How often sending one task may be tried again. None: until the publish deadline."""

    publish_deadline: float = 3600.0
    """Seconds after the first try until a task that cannot be sent is failed."""

    publish_backoff: float = 0.5
    """Seconds before sending is tried again; doubled after each failure in a row, with jitter."""

    publish_backoff_max: float = 30.0
    """Seconds; the longest pause between two tries at sending."""

    retry_delay_max: float = 300.0
    """Seconds; the longest pause between two attempts of a task."""

    first_look: float = 0.1
    """Seconds until a task that is out is looked at, while the result backend does not push changes; doubled each
    time."""

    reconcile_interval: float = 5.0
    """Seconds; the longest time between two such looks."""

    reconcile_interval_pushed: float = 180.0
    """Seconds; the longest time between two looks at a task while the result backend pushes changes. The first comes
    no sooner than after half of it."""

    reconcile_rate: int = 2_000
    """Looks a second, at most, at tasks that nothing hints at. With more out than that allows in an interval, each is
    looked at less often."""

    search_interval: float = 30.0
    """Seconds between two searches for tasks that may be in no place: sent, not ended, and neither with the broker nor
    with a worker. After an outage one is made soon."""

    delete_results: bool = True
    """Whether the stored result of a task may be deleted once its last event was taken. A client of Celery's own that
    reads results beside the executor needs False; they are then left to Celery's `result_expires`."""

    result_unreadable_timeout: float = 60.0
    """Seconds until a task whose result cannot be understood is failed as lost."""

    def __post_init__(self) -> None:
        whole("parallelism", self.parallelism, least=1)
        whole("late_binding_margin", self.late_binding_margin, least=0)
        for queue, limit in self.queue_limits.items():
            whole(f"queue_limits[{queue!r}]", limit, least=1)
        if self.task_publish_max_retries is not None:
            whole("task_publish_max_retries", self.task_publish_max_retries, least=0)
        whole("reconcile_rate", self.reconcile_rate, least=1)
        if type(self.delete_results) is not bool:
            raise InvalidConfig("delete_results", f"{self.delete_results!r} is neither", "give True or False")
        for name in ("operation_timeout", "publish_backoff", "publish_backoff_max", "first_look"):
            seconds(name, getattr(self, name), above_zero=True)
        for name in ("reconcile_interval", "reconcile_interval_pushed", "search_interval"):
            seconds(name, getattr(self, name), above_zero=True)
        for name in ("publish_deadline", "retry_delay_max", "result_unreadable_timeout"):
            seconds(name, getattr(self, name))


def whole(setting: str, value: object, *, least: int) -> None:
    if type(value) is not int or value < least:
        raise InvalidConfig(setting, f"{value!r} is not a whole number", f"give {least} or more")


def seconds(setting: str, value: object, *, above_zero: bool = False) -> None:
    if type(value) not in (int, float) or not isfinite(value) or value < 0 or (above_zero and value == 0):  # type: ignore[arg-type, operator]
        raise InvalidConfig(setting, f"{value!r} is not a number of seconds", "give for example 2 or 0.5")
