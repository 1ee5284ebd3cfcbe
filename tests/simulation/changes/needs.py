"""Changes of what tasks need, and of pauses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from celeriac.executor.dispatcher import Dispatcher
from celeriac.executor.resources import Room
from celeriac.executor.tracker import Tracked
from celeriac.task.amounts import Amounts
from celeriac.worker.resource_room import ResourceRoom
from celeriac.worker.share import GpuPool
from tests.simulation.changes.change import change


def take_at_once(room: ResourceRoom, task_id: str, needs: Amounts, takes_no_more: Any) -> tuple[str, ...] | None:
    """Start a command although what it needs is not free."""
    room._free = room._free.minus(needs)
    return room._gpus.take(needs.gpus)


def take_the_first_gpus(pool: GpuPool, number: int) -> tuple[str, ...]:
    return tuple(sorted(pool._order, key=pool._order.__getitem__)[:number])


def all_unconfirmed(dispatcher: Dispatcher) -> Iterator[Tracked]:
    return iter([*dispatcher._lifecycle.unconfirmed.values()])


change(
    "needs-unchecked-at-worker",
    "A worker starts what it is sent, although other executors have sent to it, or this one meant another worker.",
    (ResourceRoom, "_wait", take_at_once),
)
change(
    "same-gpus",
    "A worker gives the same GPUs to several commands.",
    (GpuPool, "take", take_the_first_gpus),
)
change(
    "needs-unchecked-at-executor",
    "An executor sends tasks although no live worker has room for them.",
    (Room, "fits", lambda room, task: True),
)
change(
    "resend-in-pause",
    "An executor sends messages once more although it is paused, or their queue is.",
    (Dispatcher, "_unconfirmed", all_unconfirmed),
)
change(
    "deaf-to-pauses",
    "An executor that is paused goes on as before.",
    (Dispatcher, "is_paused", property(lambda dispatcher: dispatcher.has_stopped)),
)
