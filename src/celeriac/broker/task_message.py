"""Which Celery task a `Task` becomes, and how it is sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

from celeriac.broker.app import TASK_NAME, message_of
from celeriac.config.signing import SIGNATURE, SigningKeys
from celeriac.task.task import MAX_URGENCY as MAX_URGENCY
from celeriac.task.task import Task


@dataclass(slots=True, kw_only=True)  # not frozen: one is made for each message, and that takes twice as long
class TaskMessage:
    """The arguments of `apply_async`."""

    name: str
    args: tuple[Any, ...]
    """Plain data, as JSON knows it."""

    argsrepr: str
    """What logs and events show for the arguments."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """`queue`, and whatever else `apply_async` takes but the id."""

    level: int | None = None
    """How urgent it is inside the broker, from 0 to 9, the most urgent; each publisher says it in its broker's words.
    None leaves it to `options`."""

    signature: str | None = None
    """Sent beside the arguments, as a header of the message."""

    def at_priority(self, priority: int) -> TaskMessage:
        """With the urgency in the broker's words."""
        return replace(self, options={**self.options, "priority": priority}, level=None)


MessageFactory: TypeAlias = Callable[[Task], TaskMessage]


def task_message(task: Task, keys: SigningKeys | None = None) -> TaskMessage:
    """`celeriac.execute_command`, on the task's own queue; signed, if there are keys."""
    message = message_of(task)
    if keys is not None:
        message[SIGNATURE] = keys.sign(TASK_NAME, message)
    return TaskMessage(
        name=TASK_NAME,
        args=(message,),
        argsrepr=f"({task.key!r},)",  # the command and its secrets stay out
        options={"queue": task.queue},
        level=task.urgency,
    )


def signed_message_factory(signing_key: str | None) -> MessageFactory:
    """Raises `InvalidConfig` for a key that is too short."""
    return partial(task_message, keys=SigningKeys.of(signing_key))
