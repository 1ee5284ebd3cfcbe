"""What another worker has claimed, and may have left behind.

taken ─► its holder is heard ───────────────────────► dropped: it came twice
     ├─► an executor says that the holder is dead ──► dropped: it goes on elsewhere, or has failed
     └─► nobody says anything, for long ────────────► the holder is dead: claimed anew

Celeriac's executor watches the leases of workers and fences off what a dead one had claimed. Airflow's own executor
watches nobody: there the message that the broker delivers again is all that is left of a task, or of a callback.
Whether that may still run the API server decides, as it does where nobody claims.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from celery.states import READY_STATES

from celeriac.airflow.prefork_control import WorkloadPoolControl
from celeriac.backend.claims.claim import AlreadyClaimed, ClaimReply, LeaseState
from celeriac.config.lease import LEASE_DURATION
from celeriac.worker.lease_manager import LeaseManager

PATIENCE = (
    2 * LEASE_DURATION
)  # seconds: an executor, if there is one that watches, has said by then that the holder is dead
LOOK = 0.5  # seconds between two looks

log = logging.getLogger(__name__)


def claim_or_inherit(keeper: LeaseManager, children: WorkloadPoolControl, task: Any) -> tuple[ClaimReply | None, float]:
    """As `Keeper.claim`."""
    task_id = task.request.id
    answer, start_by = keeper.claim(task_id, task.request, lambda: children.is_going)
    if not isinstance(answer, AlreadyClaimed) or answer.holder == keeper.card.holder:
        return answer, start_by
    with children.in_doubt(task_id):
        return wait_for_an_heir(keeper, children, task, answer)


def wait_for_an_heir(
    keeper: LeaseManager, children: WorkloadPoolControl, task: Any, taken: AlreadyClaimed
) -> tuple[ClaimReply | None, float]:
    answer: ClaimReply | None = taken
    start_by = 0.0
    watched: tuple[str, int | None] | None = None
    since = time.monotonic()
    while isinstance(answer, AlreadyClaimed):
        try:
            leased = keeper.claims.leases().get(answer.holder)
            seen = (answer.holder, leased.heartbeat_count if leased is not None else None)
            if watched is None or watched[0] != seen[0]:
                watched, since = seen, time.monotonic()
            if leased is not None and leased.state is LeaseState.LIVE and seen != watched:
                break
            if time.monotonic() - since >= PATIENCE:
                if task.backend.get_state(task.request.id) in READY_STATES:
                    break
                take_over(keeper, task.request.id, *seen)
        except keeper.claims.errors as error:
            log.debug("nobody can say who is alive: %s", error)
            watched = None
        time.sleep(LOOK)  # leases tell nobody that they were renewed
        answer, start_by = keeper.claim(task.request.id, task.request, lambda: children.is_going)
    return answer, start_by


def take_over(keeper: LeaseManager, task_id: str, holder: str, beat: int | None) -> None:
    if keeper.claims.declare_dead(holder, beat):
        log.warning("[%s] the worker that had claimed it is gone, and nobody else has said so", task_id)
        keeper.claims.release(task_id, holder=holder)
