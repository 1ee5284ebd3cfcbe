"""Airflow's executor: it passes the scheduler's calls to Celeriac's executor, the engine, and the engine's events back.

    queue_workload ─► Airflow's queues
    heartbeat ─► trigger_tasks ─► _process_workloads ─► _submit ─► engine.queue_task, engine.trigger_tasks ─► broker
              └► sync ─► engine.sync ◄─ results
                     └─► update_all_task_states ─► update_task_state ─► success, fail ─► change_state ─► event_buffer

A workload stays in Airflow's queue until the broker has its message. Then it is `running` until its end is known. Its
Celery id is its key in the engine. The engine decides which workload is sent first, re-sent, or lost.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.utils.state import TaskInstanceState
from sqlalchemy.exc import SQLAlchemyError

from celeriac.airflow import adoption, stats, versions
from celeriac.airflow.collection import collection_paused
from celeriac.airflow.failures import Failures, describe_end
from celeriac.airflow.public_names import PublicNames
from celeriac.airflow.submitted import SubmittedWorkload, SubmittedWorkloads, adopted_workload, submitted_workload
from celeriac.airflow.workload_names import EXECUTOR_LOGGERS, names_shown
from celeriac.errors import InvalidTask
from celeriac.task.event import Event
from celeriac.task.result import Reason
from celeriac.task.state import State
from celeriac.task.task import OnWorkerLost, Task, is_id, new_task_id

if TYPE_CHECKING:
    from celeriac.airflow.gone_worker import GoneWorkers
    from celeriac.airflow.questions import Questions
    from celeriac.cluster.cluster import Cluster
    from celeriac.executor.executor import CeleryExecutor as Engine

TASK_NAME = "execute_workload"
DATABASE_POLL_INTERVAL = 15.0  # seconds between two reads of the states of sent tasks in Airflow's database


class CeleryExecutor(versions.base_executor_class(), PublicNames):  # type: ignore[misc]
    """A replacement for Airflow's own CeleryExecutor, with the same broker, backend, workers and `[celery]` section.

    The constructor opens no connection and starts no thread: the API server makes executors, too. `start` does both.
    """

    supports_ad_hoc_ti_run = True
    supports_multi_team = True
    supports_sentry = True
    sentry_integration = "sentry_sdk.integrations.celery.CeleryIntegration"
    pre_assigns_external_executor_id: ClassVar[bool] = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._submitted = SubmittedWorkloads()
        self._next_database_poll = 0.0
        self._undecided: list[tuple[SubmittedWorkload, Event]] = []
        """Lost tasks, and their events. Airflow's database was unavailable, so their states are not known."""

        self._questions: Questions | None = None
        self._failures = Failures(self)
        self._open = ExitStack()

    @staticmethod
    def get_cli_commands() -> list[Any]:
        from celeriac.airflow.cli_definition import get_cli_commands

        return get_cli_commands()

    # — the heartbeat —

    def start(self) -> None:
        from celeriac.airflow.component_facts import record_start
        from celeriac.airflow.questions import Questions
        from celeriac.airflow.start_line import start_line

        self._questions = Questions(self, self._submitted, self._cluster, self._engine)
        self.log.info(start_line(self._cluster.app, self.conf, self.parallelism))
        record_start(self)
        reporter = stats.reporter_for(self._engine.telemetry, getattr(self, "team_name", None))
        if reporter is not None:
            reporter.start()
            self._open.callback(reporter.close)
        self._open.enter_context(names_shown(self._submitted.name_of, EXECUTOR_LOGGERS))
        gc.collect()
        gc.freeze()  # scanning these objects in each collection would cost as much as sending thousands of tasks

    def _process_workloads(self, workload_items: Sequence[Any]) -> None:
        """Give the workloads to the engine. In Airflow 3.1 and 3.2 the parameter has another name and is positional."""
        keys = {id(workload): key for queue in versions.executor_queues(self) for key, workload in queue.items()}
        with collection_paused():
            for workload in workload_items:
                self._submit(keys.get(id(workload)) or versions.workload_key(self, workload), workload)
            self._engine.trigger_tasks(len(workload_items))
            self.update_all_task_states()

    def sync(self) -> None:
        """Apply all changes since the last call.

        If the broker or the backend is unavailable, this takes `[celery] operation_timeout` at most, and raises no
        error.
        """
        self._engine.trigger_tasks(0)  # re-send unconfirmed messages even when no slot is open
        self._engine.sync()
        self._decide_lost_tasks()
        self.update_all_task_states()
        self._release_ended_tasks()
        if self._questions is not None:
            self._questions.answer()

    def end(self) -> None:
        """Close the connections. Tasks in flight keep running: the next scheduler adopts them."""
        if "_cluster" in vars(self):
            self.sync()
            if self._questions is not None:
                self._questions.close()
            self._cluster.close()
        self._failures.close()
        self._open.close()

    def terminate(self) -> None:
        """Do nothing: see `end`."""

    # — calls of the scheduler —

    def change_state(self, key: Any, state: Any, info: Any = None, remove_running: bool = True) -> None:
        super().change_state(key, state, info, remove_running=remove_running)
        if remove_running:
            self._untrack(key)

    def revoke_task(self, *, ti: Any) -> None:
        """Revoke a task and forget it: no event follows.

        A running task is ended. The call does not wait for the broker. Only running workers get the revoke: one of
        Airflow's own workers that starts later may still run the message.
        """
        key = versions.task_key(self, ti)
        submitted = self._submitted.with_key(key)
        if submitted is not None and self._engine.has_task(submitted.id):
            self._engine.revoke_task(submitted.id)
        self._untrack(key)
        self._remove_from_queues(key)
        self.running.discard(key)

    def cleanup_stuck_queued_tasks(self, tis: Iterable[Any]) -> list[str]:
        """Revoke and fail these tasks. Return their representations."""
        stuck = list(tis)
        for ti in stuck:
            self.revoke_task(ti=ti)
            self.fail(versions.task_key(self, ti))
        return [repr(ti) for ti in stuck]

    def try_adopt_task_instances(self, tis: Sequence[Any]) -> Sequence[Any]:
        """Track the tasks that a dead scheduler had sent. Re-send lost tasks under the same id. Return the others."""
        adoptable = [ti for ti in tis if is_id(ti.external_executor_id)]  # others are not Celery's
        adoption.load_columns(adoptable)
        queued: list[Task] = []
        running: list[Task] = []
        for ti in adoptable:
            key = versions.task_key(self, ti)
            if self._submitted.with_id(ti.external_executor_id) is None:
                self._untrack(key)
                task = adoption.adopted_task(ti, self._default_queue)
                (queued if ti.state == TaskInstanceState.QUEUED else running).append(task)
                has_started = ti.state != TaskInstanceState.QUEUED
                self._submitted.add(adopted_workload(task.id, key, ti, has_started=has_started))
                self.running.add(key)
        self._engine.adopt_tasks(queued)
        self._engine.adopt_tasks(running, State.RUNNING)
        self.update_all_task_states()
        if adoptable:
            self.log.info("Adopted %d tasks that another scheduler had sent", len(adoptable))
        return [ti for ti in tis if not is_id(ti.external_executor_id)]

    def get_task_log(self, ti: Any, try_number: int) -> tuple[list[str], list[str]]:
        """Return where a running task was whose worker is gone. The API server calls this, before it reads the log."""
        return [], self._gone_workers.log_of(ti, try_number)

    def debug_dump(self) -> None:
        super().debug_dump()
        self.log.info("celeriac:\n%s", self._engine.debug_dump())

    # — to the engine —

    @cached_property
    def _cluster(self) -> Cluster:
        from celeriac.airflow.config import carries_priority, executor_config, make_app, signing_keys
        from celeriac.airflow.messages import message_factory
        from celeriac.cluster.cluster import Cluster

        config = executor_config(self.conf, self.parallelism)
        team_name = getattr(self, "team_name", None)
        app = make_app(self.conf, team_name=team_name, operation_timeout=config.operation_timeout)
        return Cluster.from_app(
            app,
            config=config,
            late_binding=False,
            message_factory=message_factory(
                self,
                TASK_NAME,
                self._submitted,
                priority=carries_priority(app, self.conf),
                keys=signing_keys(self.conf),
            ),
            terminate=True,
            control_channel=False,
        )

    @cached_property
    def _engine(self) -> Engine:
        return self._cluster.executor()

    @cached_property
    def _gone_workers(self) -> GoneWorkers:
        from celeriac.airflow.gone_worker import GoneWorkers

        return GoneWorkers(self.conf, getattr(self, "team_name", None))

    @cached_property
    def _default_queue(self) -> str:
        return str(self.conf.get("operators", "default_queue"))

    def _submit(self, key: Any, workload: Any) -> None:
        submitted = self._submitted.with_key(key)
        if submitted is not None and submitted.workload is workload:
            return  # the engine has it already, and waits for the broker
        celery_id = versions.assigned_celery_id(workload) or f"{versions.OWN_ID_PREFIX}{new_task_id()}"
        if (earlier := self._submitted.with_id(celery_id)) is not None:
            self._submit_again(earlier, workload)
            return
        if submitted is not None:  # a deferred task may be queued again before the end of its first part is read
            self._untrack(key)
        submitted = submitted_workload(celery_id, key, workload)
        try:
            self._engine.queue_task(self._task(celery_id, workload))
        except InvalidTask as error:
            self._remove_from_queues(key)
            self.fail(key, self._failures.report_unsendable(submitted, str(error)))
        else:
            self._submitted.add(submitted)

    def _task(self, celery_id: str, workload: Any) -> Task:
        return Task(
            key=celery_id,
            id=celery_id,
            command=TASK_NAME,
            queue=versions.workload_queue(workload, self._default_queue),
            priority=versions.workload_priority(workload),
            on_worker_lost=OnWorkerLost.FAIL,
        )

    def _submit_again(self, submitted: SubmittedWorkload, workload: Any) -> None:
        """Replace a workload that is not sent yet: the new one has a newer token. Mark a sent workload as running."""
        if submitted.workload is not None:
            submitted.workload = workload
        else:
            self._remove_from_queues(submitted.key)
            self.running.add(submitted.key)

    # — from the engine —

    def update_all_task_states(self) -> None:
        """Apply every event that the engine has emitted."""
        for event in self._engine.get_event_buffer():
            submitted = self._submitted.with_id(event.id)
            if submitted is not None:  # else the scheduler has already ended or revoked it
                self.update_task_state(submitted, event)

    def update_task_state(self, submitted: SubmittedWorkload, event: Event) -> None:
        match event.state:
            case State.QUEUED:
                if submitted.workload is not None:
                    self._on_published(submitted)
            case State.RUNNING:
                submitted.has_started = True
            case State.SUCCESS:
                self._remove_from_queues(submitted.key)
                self.success(submitted.key)
            case State.FAILED if event.reason is Reason.LOST and submitted.ti_id is not None:
                self._on_lost(submitted, event)
            case State.FAILED | State.REVOKED | State.SKIPPED:
                self._fail(submitted, event)
            case State.WAITING | State.PUBLISHING if event.priority is None:
                self._on_publish_retry(submitted, event)

    def _fail(self, submitted: SubmittedWorkload, event: Event) -> None:
        self._remove_from_queues(submitted.key)
        self.fail(submitted.key, self._failures.report(submitted, event))

    def _on_published(self, submitted: SubmittedWorkload) -> None:
        self._remove_from_queues(submitted.key)
        self.running.add(submitted.key)
        self.event_buffer[submitted.key] = (TaskInstanceState.QUEUED, submitted.id)
        if isinstance(submitted.workload, versions.TASK):
            submitted.workload = None

    def _on_lost(self, submitted: SubmittedWorkload, event: Event) -> None:
        """Fail, requeue or release a lost task, according to its state in Airflow's database.

        QUEUED means that the task had not started. RUNNING and RESTARTING mean that it had started. In any other state
        the task has ended, or Airflow has changed its state. While the database is unavailable, the task waits.
        """
        match adoption.read_state(submitted.ti_id, submitted.id, self.job_id):
            case TaskInstanceState.QUEUED:
                self._requeue(submitted, event)
            case None:
                self._undecided.append((submitted, event))
            case TaskInstanceState.RUNNING | TaskInstanceState.RESTARTING:
                self._fail(submitted, event)
            case _:
                self._release_slot(submitted)

    def _decide_lost_tasks(self) -> None:
        """Decide about the tasks that were lost while Airflow's database was unavailable."""
        undecided, self._undecided = self._undecided, []
        for submitted, event in undecided:
            if self._submitted.with_id(submitted.id) is submitted:
                self._on_lost(submitted, event)

    def _requeue(self, submitted: SubmittedWorkload, event: Event) -> None:
        """Requeue a task that its worker had claimed but not started. Airflow's try number stays the same.

        The task gets a new Celery id: the old one is fenced, so no worker can claim it.
        """
        try:
            workload = adoption.rebuild_workload(self, submitted.ti_id)
        except adoption.NoLongerQueued:
            self.fail(submitted.key, self._failures.report(submitted, event))
            return
        except SQLAlchemyError:
            self._undecided.append((submitted, event))
            return
        text = f"lost before it started, and sent again: {describe_end(event)}"
        self.log.warning("%s: %s", submitted.name, text)
        self._failures.note(submitted, "resent", text)
        self._release_slot(submitted)
        versions.clear_celery_id(workload)
        self.queue_workload(workload, session=None)

    def _on_publish_retry(self, submitted: SubmittedWorkload, event: Event) -> None:
        tags = {"team_name": self.team_name} if getattr(self, "team_name", None) else {}
        name = "celeriac.task_resent" if event.reason is Reason.LOST else "celery.task_timeout_error"
        stats.stats_client().incr(name, tags=tags)
        self.log.debug("%s: %s", submitted.name or submitted.key, event.detail)

    # — slots —

    def _release_ended_tasks(self) -> None:
        """Free the slots of tasks that Airflow's database shows as ended in two consecutive polls.

        A worker may die after its task has reported its end to Airflow, and before a Celery result is stored. Without
        this poll, such a task would keep its slot for ever.
        """
        if time.monotonic() < self._next_database_poll:
            return
        self._next_database_poll = time.monotonic() + DATABASE_POLL_INTERVAL
        sent = [
            submitted for submitted in self._submitted if submitted.ti_id is not None and submitted.workload is None
        ]
        active = adoption.read_active_ids([submitted.ti_id for submitted in sent])
        if active is None:
            return
        for submitted in sent:
            has_ended = str(submitted.ti_id) not in active
            if has_ended and submitted.seems_ended:
                self.log.info("%s has ended, but no worker stored its result; its slot is free again", submitted.name)
                self._release_slot(submitted)
            submitted.seems_ended = has_ended

    def _release_slot(self, submitted: SubmittedWorkload) -> None:
        """Forget the workload without an event."""
        self._untrack(submitted.key)
        self.running.discard(submitted.key)

    def _remove_from_queues(self, key: Any) -> None:
        for queue in versions.executor_queues(self):
            if queue:  # for most of them this is cheaper than to hash the key
                queue.pop(key, None)

    def _untrack(self, key: Any) -> None:
        """Make the engine stop tracking this workload."""
        submitted = self._submitted.remove(key)
        if submitted is not None and self._engine.has_task(submitted.id):
            self._engine.fail(submitted.id)
