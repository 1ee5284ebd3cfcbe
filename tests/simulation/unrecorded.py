"""A task that is revoked while only a worker that stands still has its message.

On Redis a worker takes a message, and records in a second request that it has it. In between no search finds it. The
revoke comes late at the store, and the worker goes on at any time: it must not start the task after its end was told.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from tests.simulation.faults import delay, later
from tests.simulation.network import Server, Strike
from tests.simulation.world import Process

if TYPE_CHECKING:
    from tests.simulation.history import History

SHARE = 0.1  # of all histories
UNTIL = 35.0  # seconds in which a message is taken and not recorded
LONGEST = 45.0  # seconds for which its worker stands still
REVOKED_WITHIN = 25.0  # seconds


def unrecorded_messages(seed: int) -> list[tuple[float, Callable[[History], None]]]:
    """Return the faults of this kind of a seed, each with its time."""
    random = Random(f"{seed} unrecorded")
    return [(random.uniform(0, UNTIL), keep_unrecorded)] if random.random() < SHARE else []


def keep_unrecorded(history: History) -> None:
    """Let the next worker that takes a message stand still before it records it, and revoke the task."""
    if history.broker.kind != "redis" or history.has_owners:
        return
    random = history.chance

    def stand_still(process: Process, server: Server) -> str:
        seconds, message = random.uniform(3, LONGEST), history.broker.last_taken[process]
        process.freeze()
        later(history, seconds, process.thaw)
        job = history.job_of(message.task.id)
        if job.revoke_at is None:
            job.revoke_at = history.world.now + random.uniform(0, REVOKED_WITHIN)
        history.network.strikes += [
            Strike(point, is_after=False, action=slow_down) for point in ("broadcast", "cancel")
        ]
        return f"it is frozen for {seconds:.1f} s with the message of {job.task.key}"

    def slow_down(process: Process, server: Server) -> str:
        history.chance = random
        return delay(history, process, server)

    history.network.strikes.append(Strike("record", is_after=False, action=stand_still))
