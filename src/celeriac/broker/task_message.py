"""Which Celery task a `Task` becomes, and how it is sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

from celeriac.broker.app import TASK_NAME, message_of
from celeriac.config.signing import SIGNATURE, SigningKeys
from celeriac.task.task import MOST_URGENT as MOST_URGENT
from celeriac.task.task import Task


@dataclass(slots=True, kw_only=True)  # not frozen: one is made for each message, and that takes twice as long
class Call:
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

    def at_priority(self, priority: int) -> Call:
        """With the urgency in the broker's words."""
        return replace(self, options={**self.options, "priority": priority}, level=None)


CallOf: TypeAlias = Callable[[Task], Call]


def call_of(task: Task, keys: SigningKeys | None = None) -> Call:
    """`celeriac.execute_command`, on the task's own queue; signed, if there are keys."""
    message = message_of(task)
    if keys is not None:
        message[SIGNATURE] = keys.sign(TASK_NAME, message)
    return Call(
        name=TASK_NAME,
        args=(message,),
        argsrepr=f"({task.key!r},)",  # the command and its secrets stay out
        options={"queue": task.queue},
        level=task.level,
    )


def signed_call_of(signing_key: str | None) -> CallOf:
    """Raises `InvalidConfig` for a key that is too short."""
    return partial(call_of, keys=SigningKeys.of(signing_key))
