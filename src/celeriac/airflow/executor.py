"""Airflow's executor: what the scheduler asks for, said to Celeriac's own executor, and what that says in return.

    queue_workload ─► Airflow's queues ─► _process_workloads ─► engine.queue_task, engine.trigger_tasks ─► broker
    event_buffer   ◄─ success, fail    ◄─ _tell              ◄─ engine.get_event_buffer ◄─ engine.sync  ◄─ results

A workload waits in Airflow's queue until the broker has it, is `running` until its end is known, and is named by its
Celery id to the engine. Which goes first, what is sent again and what is lost, the engine decides.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.utils.state import TaskInstanceState
from sqlalchemy.exc import SQLAlchemyError

from celeriac.airflow import adoption, versions
from celeriac.errors import InvalidTask
from celeriac.task.event import Event
from celeriac.task.result import Reason
from celeriac.task.state import State
from celeriac.task.task import OnWorkerLost, Task, new_task_id

if TYPE_CHECKING:
    from celeriac.broker.task_message import TaskMessage
    from celeriac.cluster.cluster import Cluster
    from celeriac.config.signing import SigningKeys
    from celeriac.executor.executor import CeleryExecutor as Engine

TASK_NAME = "execute_workload"
LOOK_INTERVAL = 15.0  # seconds between two looks at what Airflow's database says of the tasks that are out


@dataclass(slots=True)
class SubmittedWorkload:
    """A workload that the engine was given, by its Celery id."""

    id: str
    key: Any
    workload: Any = None
    """None once the broker has it: should it be lost, a new one is made, with a token that is valid then."""

    ti_id: Any = None
    """Of a task: its row in Airflow's database."""

    seems_over: bool = False
    """Whether that row was not at work at the last look."""


class CeleryExecutor(versions.supporting_base()):  # type: ignore[misc]
    """A drop-in for Airflow's own: the same broker, result backend, workers and `[celery]` section.

    `start` begins, in the scheduler; until then nothing is opened and no thread runs.
    """

    supports_ad_hoc_ti_run = True
    supports_multi_team = True
    supports_sentry = True
    sentry_integration = "sentry_sdk.integrations.celery.CeleryIntegration"
    pre_assigns_external_executor_id: ClassVar[bool] = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._handed: dict[Any, SubmittedWorkload] = {}
        """By Airflow's key."""

        self._by_id: dict[str, SubmittedWorkload] = {}
        self._next_look = 0.0

    @staticmethod
    def get_cli_commands() -> list[Any]:
        from celeriac.airflow.cli_definition import get_cli_commands

        return get_cli_commands()

    # — the heartbeat —

    def start(self) -> None:
        _ = self._engine, self._signing_keys
        gc.collect()
        gc.freeze()  # what is here by now stays; looking through it again costs as much as sending thousands of tasks

    def _process_workloads(self, workload_items: Sequence[Any]) -> None:  # 3.1 and 3.2 name it otherwise, and by place
        keys = {id(workload): key for queue in versions.queues_of(self) for key, workload in queue.items()}
        for workload in workload_items:
            self._hand_over(keys.get(id(workload)) or versions.key_of(self, workload), workload)
        self._engine.trigger_tasks(len(workload_items))
        self._tell()

    def sync(self) -> None:
        """Apply what has moved. Takes no longer than `[celery] operation_timeout` for a broker or backend that is
        away, and raises nothing for it."""
        self._engine.trigger_tasks(0)  # what nobody knows the broker to have is sent again, also without open slots
        self._engine.sync()
        self._tell()
        self._let_go_of_what_is_over()

    def end(self) -> None:
        """What is out stays out: the next scheduler adopts it."""
        if "_cluster" in vars(self):
            self.sync()
            self._cluster.close()

    def terminate(self) -> None:
        """Nothing to do: see `end`."""

    # — what Airflow decides by itself —

    def change_state(self, key: Any, state: Any, info: Any = None, remove_running: bool = True) -> None:
        super().change_state(key, state, info, remove_running=remove_running)
        if remove_running:
            self._let_go(key)

    def revoke_task(self, *, ti: Any) -> None:
        """It does not start, or it ends if it runs, on any worker that is up; one that starts later may still find its
        message. No event, and no waiting for the broker."""
        key = versions.task_key_of(self, ti)
        handed = self._handed.get(key)
        if handed is not None and self._engine.has_task(handed.id):
            self._engine.revoke_task(handed.id)
        self._let_go(key)
        self._unqueue(key)
        self.running.discard(key)

    def cleanup_stuck_queued_tasks(self, tis: Iterable[Any]) -> list[str]:
        """Revoke and fail these. Answers what they are called."""
        said = []
        for ti in tis:
            said.append(repr(ti))
            self.revoke_task(ti=ti)
            self.fail(versions.task_key_of(self, ti))
        return said

    def try_adopt_task_instances(self, tis: Sequence[Any]) -> Sequence[Any]:
        """Follow what a scheduler that is gone had sent. What is in no place is sent again, under the same id."""
        known = [ti for ti in tis if ti.external_executor_id is not None]
        adoption.load(known)
        queued: list[Task] = []
        running: list[Task] = []
        for ti in known:
            key = versions.task_key_of(self, ti)
            if ti.external_executor_id not in self._by_id:
                self._let_go(key)
                task = adoption.task_of(ti, self._default_queue)
                (queued if ti.state == TaskInstanceState.QUEUED else running).append(task)
                self._note(SubmittedWorkload(task.id, key, ti_id=ti.id))
                self.running.add(key)
        self._engine.adopt_tasks(queued)
        self._engine.adopt_tasks(running, State.RUNNING)
        self._tell()
        if known:
            self.log.info("Adopted %d tasks that another scheduler had sent", len(known))
        return [ti for ti in tis if ti.external_executor_id is None]

    def debug_dump(self) -> None:
        super().debug_dump()
        self.log.info("celeriac:\n%s", self._engine.debug_dump())

    # — to the engine —

    @cached_property
    def _cluster(self) -> Cluster:
        from celeriac.airflow.config import app_of, executor_config
        from celeriac.cluster.cluster import Cluster

        config = executor_config(self.conf, self.parallelism)
        app = app_of(self.conf, team_name=getattr(self, "team_name", None), operation_timeout=config.operation_timeout)
        return Cluster.from_app(
            app,
            config=config,
            late_binding=False,
            message_factory=self._call_of,
            terminate=True,
            control_channel=False,
        )

    @cached_property
    def _engine(self) -> Engine:
        return self._cluster.executor()

    @cached_property
    def _default_queue(self) -> str:
        return str(self.conf.get("operators", "default_queue"))

    @cached_property
    def _broker_priority(self) -> bool:
        return bool(self.conf.getboolean("celeriac", "broker_priority", fallback=False))

    @cached_property
    def _signing_keys(self) -> SigningKeys | None:
        from celeriac.airflow.config import signing_keys

        return signing_keys(self.conf)

    def _hand_over(self, key: Any, workload: Any) -> None:
        handed = self._handed.get(key)
        if handed is not None and handed.workload is workload:
            return  # it waits for the broker
        message_id = versions.celery_id_of(workload) or f"{versions.OWN_IDS}{new_task_id()}"
        if message_id in self._by_id:
            self._hand_over_again(self._by_id[message_id], workload)
            return
        self._let_go(key)  # a deferred task may be back before its first part was seen to end
        try:
            self._engine.queue_task(
                Task(
                    key=message_id,
                    id=message_id,
                    command=TASK_NAME,
                    queue=versions.queue_of(workload, self._default_queue),
                    priority=versions.priority_of(workload),
                    on_worker_lost=OnWorkerLost.FAIL,
                )
            )
        except InvalidTask as error:
            self._unqueue(key)
            self.fail(key, str(error))
        else:
            ti_id = workload.ti.id if isinstance(workload, versions.TASK) else None
            self._note(SubmittedWorkload(message_id, key, workload, ti_id))

    def _hand_over_again(self, handed: SubmittedWorkload, workload: Any) -> None:
        if handed.workload is not None:
            handed.workload = workload
        else:
            self._unqueue(handed.key)
            self.running.add(handed.key)

    def _note(self, handed: SubmittedWorkload) -> None:
        self._handed[handed.key] = self._by_id[handed.id] = handed

    def _call_of(self, task: Task) -> TaskMessage:
        from celeriac.airflow.config import signed_part
        from celeriac.broker.task_message import TaskMessage

        handed = self._by_id[task.message_id]
        if handed.workload is None:
            handed.workload = adoption.workload_again(self, handed.ti_id)
        text, keys = handed.workload.model_dump_json(), self._signing_keys
        return TaskMessage(
            name=TASK_NAME,
            args=(text,),
            argsrepr=f"({handed.workload.__class__.__name__},)",  # the token stays out
            options={"queue": task.queue},
            urgency=task.urgency if self._broker_priority else None,
            signature=None if keys is None else keys.sign(TASK_NAME, signed_part(task.message_id, text)),
        )

    # — from the engine —

    def _tell(self) -> None:
        for event in self._engine.get_event_buffer():
            handed = self._by_id.get(event.id)
            if handed is not None:  # else Airflow was done with it before
                self._tell_one(handed, event)

    def _tell_one(self, handed: SubmittedWorkload, event: Event) -> None:
        match event.state:
            case State.QUEUED:
                if handed.workload is not None:
                    self._is_sent(handed)
            case State.SUCCESS:
                self._unqueue(handed.key)
                self.success(handed.key)
            case State.FAILED if event.reason is Reason.LOST and handed.ti_id is not None:
                self._is_lost(handed, event)
            case State.FAILED | State.REVOKED | State.SKIPPED:
                self._unqueue(handed.key)
                self.fail(handed.key, said_of(event))
            case State.WAITING | State.PUBLISHING:
                self._is_not_sent(handed, event)

    def _is_sent(self, handed: SubmittedWorkload) -> None:
        self._unqueue(handed.key)
        self.running.add(handed.key)
        self.event_buffer[handed.key] = (TaskInstanceState.QUEUED, handed.id)
        if isinstance(handed.workload, versions.TASK):
            handed.workload = None

    def _is_lost(self, handed: SubmittedWorkload, event: Event) -> None:
        """As Airflow's database has it: it may not have begun there, or be over."""
        match adoption.state_of(handed.ti_id, handed.id):
            case TaskInstanceState.QUEUED:
                self._queue_again(handed, event)
            case None | TaskInstanceState.RUNNING | TaskInstanceState.RESTARTING:
                self._unqueue(handed.key)
                self.fail(handed.key, said_of(event))
            case _:
                self._free(handed)

    def _queue_again(self, handed: SubmittedWorkload, event: Event) -> None:
        """Its worker had claimed it and not begun: no try of Airflow's is used up. It needs another id, for under this
        one nobody may claim it any more."""
        try:
            workload = adoption.workload_again(self, handed.ti_id)
        except (adoption.NotQueuedAnyMore, SQLAlchemyError):
            self.fail(handed.key, said_of(event))
            return
        self.log.warning("%s had not begun, and is sent again: %s", handed.key, said_of(event))
        self._free(handed)
        versions.forget_celery_id(workload)
        self.queue_workload(workload, session=None)

    def _free(self, handed: SubmittedWorkload) -> None:
        """Its slot, without a word to Airflow."""
        self._let_go(handed.key)
        self.running.discard(handed.key)

    def _is_not_sent(self, handed: SubmittedWorkload, event: Event) -> None:
        tags = {"team_name": self.team_name} if getattr(self, "team_name", None) else {}
        name = "celeriac.task_resent" if event.reason is Reason.LOST else "celery.task_timeout_error"
        versions.stats().incr(name, tags=tags)
        self.log.debug("%s: %s", handed.key, event.detail)

    def _let_go_of_what_is_over(self) -> None:
        """A worker that dies after its task has told Airflow of its end, and before it has told Celery, would keep a
        slot for ever."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_INTERVAL
        sent = [handed for handed in self._by_id.values() if handed.ti_id is not None and handed.workload is None]
        at_work = adoption.at_work([handed.ti_id for handed in sent])
        if at_work is None:
            return
        for handed in sent:
            is_over = str(handed.ti_id) not in at_work
            if is_over and handed.seems_over:
                self.log.info("%s is over, and no worker has said so: its slot is free", handed.key)
                self._free(handed)
            handed.seems_over = is_over

    def _unqueue(self, key: Any) -> None:
        for queue in versions.queues_of(self):
            queue.pop(key, None)

    def _let_go(self, key: Any) -> None:
        """The engine needs to follow this no more."""
        handed = self._handed.pop(key, None)
        if handed is None:
            return
        del self._by_id[handed.id]
        if self._engine.has_task(handed.id):
            self._engine.fail(handed.id)


def said_of(event: Event) -> str:
    """The reason, for the scheduler's log."""
    words = [event.reason.value if event.reason else event.state.value, event.detail]
    said = ": ".join(word for word in words if word)
    host = event.execution.host if event.execution is not None else None
    return said if host is None or host in said else f"{said}; on {host}"
