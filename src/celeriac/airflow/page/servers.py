"""The servers of one executor: the queues of its broker, and the workers by their leases."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from celery import Celery

from celeriac.airflow.component_facts import Facts, own_facts
from celeriac.airflow.config import make_app
from celeriac.airflow.options import Options
from celeriac.airflow.page.cache import Cached
from celeriac.airflow.page.schedulers import Schedulers, Statement
from celeriac.airflow.page.wording import Place
from celeriac.backend.claims import claims_for
from celeriac.backend.claims.claim import Claim, LeaseRecord, LeaseState
from celeriac.broker.broker_list import broker_list_of
from celeriac.cluster.status import status_of
from celeriac.cluster.status_parts import QueueStatus, Status, WorkerStatus
from celeriac.config.lease import LEASE_DURATION
from celeriac.config.masking import masked, masked_text
from celeriac.errors import BrokerUnavailable, InvalidInput, QueueRefused, describe_error
from celeriac.server_errors import is_server_error

MAX_TIMEOUT = 5.0  # seconds: a viewer waits at most this long for one operation


@dataclass(frozen=True, slots=True)
class ClusterView:
    """The queues and workers at one moment. All viewers share it."""

    team: str | None
    broker: str = ""
    backend: str = ""
    queues: tuple[QueueStatus, ...] = ()
    workers: tuple[WorkerStatus, ...] = ()
    problems: tuple[str, ...] = ()
    leases: Mapping[str, LeaseRecord] = field(default_factory=dict)
    """By holder."""

    heartbeat_ages: Mapping[str, float] = field(default_factory=dict)

    def running_ids(self) -> dict[str, str]:
        """Return the names of the workers by the Celery ids of the tasks that they run."""
        return {
            task_id: record.lease.name
            for record in self.leases.values()
            if record.lease is not None and record.state is LeaseState.LIVE
            for task_id in record.lease.running
        }


class Servers:
    """The broker and the result backend of one executor of this Airflow. Any thread may call a method."""

    def __init__(self, conf: Any, team: str | None) -> None:
        self.team = team
        self._conf = conf
        self._view = Cached(self._read)

    def view(self) -> ClusterView:
        """Return the present view, at most some seconds old."""
        return self._view.get()

    def facts(self) -> Facts | None:
        """Return what this process uses; None if its settings are wrong."""
        with suppress(InvalidInput):
            return own_facts(self._conf, team=self.team)
        return None

    @cached_property
    def _app(self) -> Celery:
        return make_app(self._conf, team_name=self.team, operation_timeout=self._timeout)

    @cached_property
    def _timeout(self) -> float:
        return min(MAX_TIMEOUT, Options(self._conf).seconds("celery", "operation_timeout"))

    @cached_property
    def default_queue(self) -> str:
        return Options(self._conf).text("operators", "default_queue")

    def _read(self) -> ClusterView:
        try:
            app = self._app
        except InvalidInput as error:
            return ClusterView(self.team, problems=(str(error),))
        problems: list[str] = []
        status = Status((), ())
        leases: Mapping[str, LeaseRecord] = {}
        ages: Mapping[str, float] = {}
        try:
            status = status_of(app, [self.default_queue], timeout=self._timeout)
            problems += [status.problem] if status.problem else []
        except (BrokerUnavailable, QueueRefused, InvalidInput) as error:
            problems.append(str(error))
        try:
            leases, ages = self._read_leases()
        except Exception as error:
            if not is_server_error(error):
                raise
            problems.append(f"the result backend is unavailable: {masked_text(describe_error(error))}")
        return ClusterView(
            self.team,
            broker=str(broker_list_of(app)),
            backend=str(masked(app.conf.result_backend)),
            queues=status.queues,
            workers=status.workers,
            problems=tuple(problems),
            leases=leases,
            heartbeat_ages=ages,
        )

    def _read_leases(self) -> tuple[Mapping[str, LeaseRecord], Mapping[str, float]]:
        claims = claims_for(self._app, timeout=self._timeout)
        if claims is None:
            return {}, {}
        with closing(claims):
            leases = claims.leases()
            return leases, claims.heartbeat_ages([*leases])

    def explain(self, names: Collection[str]) -> Mapping[str, Statement]:
        """Return what the schedulers' executors say of tasks, by the ids of their rows."""
        return {} if self.view().problems else self._schedulers.explain(names)

    @cached_property
    def _schedulers(self) -> Schedulers:
        return Schedulers(self._app, self._timeout)

    def places_of(self, queues: Mapping[str, str]) -> Mapping[str, Place]:
        """Return where tasks are that were sent, by Celery id. `queues` has their queues."""
        view = self.view()
        if view.problems:
            return dict.fromkeys(queues, Place(problem=view.problems[0]))
        try:
            claims = self._read_claims(list(queues))
        except Exception as error:
            if not is_server_error(error):
                raise
            problem = f"the result backend is unavailable: {masked_text(describe_error(error))}"
            return dict.fromkeys(queues, Place(problem=problem))
        return {task: place_in(view, claims.get(task), task, queue) for task, queue in queues.items()}

    def _read_claims(self, celery_ids: list[str]) -> Mapping[str, Claim]:
        claims = claims_for(self._app, timeout=self._timeout)
        if claims is None:
            return {}
        with closing(claims):
            return claims.read(celery_ids)


def place_in(view: ClusterView, claim: Claim | None, celery_id: str, queue: str) -> Place:
    """Return where a task is, according to its claim, the leases and the queues."""
    status = next((each for each in view.queues if each.name == queue), None)
    serving = [worker for worker in view.workers if queue in worker.queues and not worker.is_suspected]
    holders = (record.lease for record in view.leases.values() if record.lease and record.state is LeaseState.LIVE)
    record = view.leases.get(claim.holder) if claim is not None else None
    age = view.heartbeat_ages.get(claim.holder) if claim is not None else None
    is_lost = record is None or record.state is not LeaseState.LIVE or (age is not None and age > LEASE_DURATION)
    return Place(
        cancelled=claim is not None and claim.cancelled,
        fenced=claim is not None and claim.fenced,
        worker=worker_name(claim, record),
        worker_age=age,
        worker_is_lost=claim is not None and is_lost,
        held_by=next((lease.name for lease in holders if celery_id in lease.held), None),
        waiting=None if status is None else status.waiting,
        slots=sum(worker.concurrency or 0 for worker in serving),
        workers=len(serving),
    )


def worker_name(claim: Claim | None, record: LeaseRecord | None) -> str | None:
    if claim is None or claim.cancelled:
        return None
    return (
        record.lease.name
        if record is not None and record.lease is not None
        else f"{claim.holder[:8]} (its lease is gone)"
    )
