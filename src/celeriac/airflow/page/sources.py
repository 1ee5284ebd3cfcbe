"""Everything that the pages show, for each executor of this Airflow that is Celeriac's.

ExecutorLoader ─► one Servers for each executor ─┐
Airflow's database ──────────────────────────────┴► Overview, TaskDetails
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from airflow.executors.base_executor import ExecutorConf
from airflow.executors.executor_loader import ExecutorLoader

from celeriac.airflow.component_facts import Facts
from celeriac.airflow.page import database
from celeriac.airflow.page.cache import Cached
from celeriac.airflow.page.database import SENT_STATES, Counts, LogEntry, StoredTask, TaskName
from celeriac.airflow.page.schedulers import Statement
from celeriac.airflow.page.servers import ClusterView, Servers
from celeriac.airflow.page.wording import Place, sentence
from celeriac.cluster.status_parts import QueueStatus, WorkerStatus

OURS = "celeriac.airflow."


@dataclass(frozen=True, slots=True)
class QueueRow:
    """One queue: what Airflow knows, and what the broker knows."""

    name: str
    status: QueueStatus | None
    counts: Counts

    @property
    def is_unserved(self) -> bool:
        """Whether tasks wait and no worker serves the queue."""
        waiting = self.counts.queued or (self.status is not None and self.status.waiting)
        return bool(waiting) and (self.status is None or self.status.slots == 0)


@dataclass(frozen=True, slots=True)
class Overview:
    """One executor's part of the overview."""

    view: ClusterView
    queues: tuple[QueueRow, ...]
    running: Mapping[str, tuple[TaskName, ...]] = field(default_factory=dict)
    """The tasks that each worker runs, by its name. Which of them a user sees depends on the permissions."""

    @property
    def team(self) -> str | None:
        return self.view.team

    @property
    def workers(self) -> tuple[WorkerStatus, ...]:
        return self.view.workers

    @property
    def totals(self) -> Counts:
        """The tasks of all queues."""
        rows = [row.counts for row in self.queues]
        ages = [row.oldest_queued for row in rows if row.oldest_queued is not None]
        return Counts(
            sum(row.scheduled for row in rows),
            sum(row.queued for row in rows),
            sum(row.running for row in rows),
            max(ages, default=None),
        )


@dataclass(frozen=True, slots=True)
class TaskDetails:
    """One task instance."""

    stored: StoredTask
    place: Place | None
    now: str
    statement: Statement | None
    """What the executor in the scheduler says of it; None if none knows it or tells."""

    @property
    def asks(self) -> bool:
        """Whether an executor should know it."""
        return self.stored.facts.state in SENT_STATES


@dataclass(frozen=True, slots=True)
class RunDetails:
    """The task instances of a run that are queued or running."""

    tasks: tuple[TaskDetails, ...]
    number: int
    """How many there are; not all of very many are in `tasks`."""


class Sources:
    """The executors of this Airflow, read for all viewers together."""

    def overviews(self) -> list[Overview]:
        """Return each executor's part, in the order of the configuration."""
        return [cached.get() for cached in self._overviews]

    def task(self, name: TaskName) -> TaskDetails | None:
        """Return the facts of a task instance; None if there is none."""
        stored = database.stored_task(name)
        if stored is None:
            return None
        return self._details([stored])[0]

    def run(self, dag: str, run: str) -> RunDetails | None:
        """Return the task instances of a run that are queued or running with Celeriac; None if there is no such run."""
        if not database.has_run(dag, run):
            return None
        stored, number = database.sent_tasks(dag, run)
        ours = [task for task in stored if self._is_ours(task.executor)]
        return RunDetails(tuple(self._details(ours)), number - len(stored) + len(ours))

    def _details(self, tasks: list[StoredTask]) -> list[TaskDetails]:
        """Ask each executor's servers once for all of its tasks."""
        by_servers: dict[Servers, list[StoredTask]] = {}
        for task in tasks:
            servers = self._servers_of(task.executor)
            if servers is not None and task.facts.state in SENT_STATES:
                by_servers.setdefault(servers, []).append(task)
        places: dict[str, Place] = {}
        statement: dict[str, Statement] = {}
        for servers, group in by_servers.items():
            sent = {task.facts.celery_id: task.facts.queue for task in group if task.facts.celery_id is not None}
            places |= servers.places_of(sent)
            statement |= servers.explain([task.id for task in group])
        found = [(task, places.get(task.facts.celery_id or "")) for task in tasks]
        return [TaskDetails(task, place, sentence(task.facts, place), statement.get(task.id)) for task, place in found]

    def log_entries(self, name: TaskName) -> list[LogEntry]:
        return database.log_entries(name)

    def facts(self) -> list[Facts]:
        """Return what this process uses for each executor whose settings are right."""
        return [facts for _, servers in self._executors if (facts := servers.facts()) is not None]

    @cached_property
    def _executors(self) -> list[tuple[Any, Servers]]:
        """Airflow's name of each executor that is Celeriac's, and its servers."""
        names = [name for name in ExecutorLoader.get_executor_names() if name.module_path.startswith(OURS)]
        return [(name, Servers(ExecutorConf(team_name=name.team_name), name.team_name)) for name in names]

    @cached_property
    def _overviews(self) -> list[Cached[Overview]]:
        return [Cached(reader(servers, self._condition(name))) for name, servers in self._executors]

    def _condition(self, name: Any) -> Any:
        """Return the condition for the tasks of an executor; None if this Airflow has only this one."""
        all_names = ExecutorLoader.get_executor_names()
        if len(all_names) == 1:
            return None
        is_default = all_names[0] == name
        return database.of_executors(spellings(name), with_default=is_default)

    def _is_ours(self, executor: str | None) -> bool:
        """Return whether a task that names this executor, or none, is one of Celeriac's."""
        if executor is None:
            return bool(ExecutorLoader.get_executor_names()[0].module_path.startswith(OURS))
        return any(executor in spellings(name) for name, _ in self._executors)

    def _servers_of(self, executor: str | None) -> Servers | None:
        """Return the servers of the executor that a task names; of the first one if it names none or an unknown one."""
        for name, servers in self._executors:
            if executor in spellings(name):
                return servers
        return self._executors[0][1] if self._executors else None


def spellings(name: Any) -> list[str]:
    """Return how a task may name an executor."""
    return [each for each in (name.alias, name.module_path, name.module_path.rpartition(".")[2]) if each]


def reader(servers: Servers, condition: Any) -> Any:
    """Return the function that reads one executor's part of the overview."""
    return lambda: read_overview(servers, condition)


def read_overview(servers: Servers, condition: Any) -> Overview:
    view = servers.view()
    counts = database.counts_by_queue(condition)
    statuses = {status.name: status for status in view.queues}
    rows = tuple(
        QueueRow(name, statuses.get(name), counts.get(name, Counts())) for name in sorted({*statuses, *counts})
    )
    workers_by_id = view.running_ids()
    running: dict[str, list[TaskName]] = {}
    for celery_id, name in database.names_of(list(workers_by_id)).items():
        running.setdefault(workers_by_id[celery_id], []).append(name)
    return Overview(view, rows, {worker: tuple(names) for worker, names in running.items()})
