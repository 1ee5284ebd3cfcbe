"""The workloads that Airflow's executor has given to Celeriac's executor, by Airflow's key and by Celery id."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class SubmittedWorkload:
    id: str
    """The Celery id."""

    key: Any
    """Airflow's key."""

    workload: Any = None
    """None once the broker has the message. If the message is lost, a new workload with a new token is built."""

    ti_id: Any = None
    """The id of the row in Airflow's database; None unless the workload is a task."""

    has_started: bool = False
    """Whether a worker has reported that it started."""

    seems_ended: bool = False
    """Whether the row's state was not active at the last poll of Airflow's database."""


class SubmittedWorkloads:
    """The workloads in two dicts, by key and by Celery id. Both always hold the same workloads."""

    def __init__(self) -> None:
        self._by_key: dict[Any, SubmittedWorkload] = {}
        self._by_id: dict[str, SubmittedWorkload] = {}

    def __iter__(self) -> Iterator[SubmittedWorkload]:
        return iter(list(self._by_id.values()))

    def add(self, submitted: SubmittedWorkload) -> None:
        self._by_key[submitted.key] = self._by_id[submitted.id] = submitted

    def with_key(self, key: Any) -> SubmittedWorkload | None:
        return self._by_key.get(key)

    def with_id(self, celery_id: str) -> SubmittedWorkload | None:
        return self._by_id.get(celery_id)

    def remove(self, key: Any) -> SubmittedWorkload | None:
        """Remove and return the workload with this key, if there is one."""
        submitted = self._by_key.pop(key, None)
        if submitted is not None:
            del self._by_id[submitted.id]
        return submitted
