"""The workloads that Airflow's executor has given to Celeriac's executor, by Airflow's key and by Celery id."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from celeriac.airflow import versions
from celeriac.airflow.workload_names import name_of


class Try(Struct, frozen=True, gc=False):
    """One try of a task instance."""

    dag_id: str
    task_id: str
    run_id: str
    try_number: int
    map_index: int | None


class SubmittedWorkload(Struct, eq=False, gc=False):  # the garbage collector need not look at it: it is in no cycle
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

    attempt: Try | None = None
    """None unless the workload is a task."""

    log_path: str | None = None
    """The path of the try's log, in the folder of the logs; None for an adopted task."""

    @property
    def name(self) -> str:
        """Dag, task, run, try and map index, for log lines. Made when a line is logged, as few workloads have one."""
        return "" if self.attempt is None else name_of(self.attempt)

    @property
    def try_number(self) -> int | None:
        return None if self.attempt is None else self.attempt.try_number


def submitted_workload(celery_id: str, key: Any, workload: Any) -> SubmittedWorkload:
    """Return the record of a workload that the scheduler has queued."""
    if not isinstance(workload, versions.TASK):
        return SubmittedWorkload(celery_id, key, workload)
    ti, path = vars(workload.ti), workload.log_path  # each attribute of a model takes several times as long
    return SubmittedWorkload(
        celery_id,
        key,
        workload,
        ti["id"],
        attempt=Try(ti["dag_id"], ti["task_id"], ti["run_id"], ti["try_number"], ti.get("map_index")),
        log_path=None if path is None else str(path),
    )


def adopted_workload(celery_id: str, key: Any, ti: Any, *, has_started: bool) -> SubmittedWorkload:
    """Return the record of a task instance that a dead scheduler had sent."""
    return SubmittedWorkload(celery_id, key, ti_id=ti.id, has_started=has_started, attempt=try_of(ti))


def try_of(ti: Any) -> Try:
    return Try(ti.dag_id, ti.task_id, ti.run_id, ti.try_number, getattr(ti, "map_index", None))


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

    def name_of(self, celery_id: str) -> str | None:
        submitted = self._by_id.get(celery_id)
        return None if submitted is None else submitted.name

    def remove(self, key: Any) -> SubmittedWorkload | None:
        """Remove and return the workload with this key, if there is one."""
        submitted = self._by_key.pop(key, None)
        if submitted is not None:
            del self._by_id[submitted.id]
        return submitted
