"""The Celery message that a `Task` becomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

from msgspec import Struct, field
from msgspec.structs import replace

from celeriac.broker.command_message import TASK_NAME, traced_message
from celeriac.config.signing import SIGNATURE, SigningKeys
from celeriac.task.task import MAX_URGENCY as MAX_URGENCY
from celeriac.task.task import Task
from celeriac.telemetry.telemetry import Telemetry


class TaskMessage(Struct, frozen=True, kw_only=True):
    """The arguments of `apply_async`, without the id."""

    name: str
    """The name of the Celery task."""

    args: tuple[Any, ...]
    """Plain data that JSON can encode."""

    argsrepr: str
    """The arguments as logs and events show them."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """The options of `apply_async`, such as `queue`, without the id."""

    urgency: int | None = None
    """Its urgency inside the broker, from 0 to 9, the most urgent. Each publisher translates it to its broker's
    priority. With None, `options` may set the priority."""

    signature: str | None = None
    """Sent beside the arguments, as a header of the message."""

    def with_priority(self, priority: int) -> TaskMessage:
        """Return a copy with the broker's priority in place of the urgency."""
        return replace(self, options={**self.options, "priority": priority}, urgency=None)


MessageFactory: TypeAlias = Callable[[Task], TaskMessage]


LimitsOf: TypeAlias = Callable[[str], list[tuple[str, int, float | None]]]
"""Returns the limits of a task by its Celery id: the name, the number and the length of the window of each."""


def task_message(
    task: Task,
    keys: SigningKeys | None = None,
    telemetry: Telemetry | None = None,
    output_cap: int | None = None,
    limits_of: LimitsOf | None = None,
) -> TaskMessage:
    """Return the message of `celeriac.execute_command` on the task's own queue. With `keys` it is signed.

    If `telemetry` has a sink of traces, the command is told the span of its task. With `output_cap` its worker sends
    the output, up to so many bytes of each stream.
    """
    message = traced_message(task, telemetry)
    if output_cap is not None:
        message["output_cap"] = output_cap
    if limits_of is not None and (limits := limits_of(task.message_id)):
        message["limits"] = limits
    if keys is not None:
        message[SIGNATURE] = keys.sign(TASK_NAME, message)
    return TaskMessage(
        name=TASK_NAME,
        args=(message,),
        argsrepr=f"({task.key!r},)",  # without the command and its secrets
        options={"queue": task.queue},
        urgency=task.urgency,
    )


def signed_message_factory(
    signing_key: str | None,
    telemetry: Telemetry | None = None,
    output_cap: int | None = None,
    limits_of: LimitsOf | None = None,
) -> MessageFactory:
    """Return a factory that signs each message if there is a key: see `task_message`. Raise `InvalidConfig` for a key
    that is too short."""
    keys = SigningKeys.of(signing_key)
    return partial(task_message, keys=keys, telemetry=telemetry, output_cap=output_cap, limits_of=limits_of)
