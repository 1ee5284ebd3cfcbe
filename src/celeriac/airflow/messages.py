"""The Celery message of a workload."""

from __future__ import annotations

from typing import Any

from celeriac.airflow import adoption
from celeriac.airflow.config import shown_arguments, signed_content
from celeriac.airflow.submitted import SubmittedWorkload, SubmittedWorkloads
from celeriac.broker.task_message import MessageFactory, TaskMessage
from celeriac.config.signing import SigningKeys
from celeriac.task.task import Task


def message_factory(
    executor: Any, name: str, workloads: SubmittedWorkloads, *, priority: bool, keys: SigningKeys | None
) -> MessageFactory:
    """Return the function that makes the message of a task: see `task_message`."""

    def message_of(task: Task) -> TaskMessage:
        submitted = workloads.with_id(task.message_id)
        assert submitted is not None  # noqa: S101 - the engine gets only submitted workloads
        return task_message(executor, name, submitted, task, priority=priority, keys=keys)

    return message_of


def task_message(
    executor: Any, name: str, submitted: SubmittedWorkload, task: Task, *, priority: bool, keys: SigningKeys | None
) -> TaskMessage:
    """Return the message: with `priority`, it has a priority inside the broker. A lost one gets a new workload."""
    if submitted.workload is None:
        submitted.workload = adoption.rebuild_workload(executor, submitted.ti_id)
    text = submitted.workload.model_dump_json()
    return TaskMessage(
        name=name,
        args=(text,),
        argsrepr=shown_arguments(submitted.workload),
        options={"queue": task.queue},
        urgency=task.urgency if priority else None,
        signature=None if keys is None else keys.sign(name, signed_content(task.message_id, text)),
    )
