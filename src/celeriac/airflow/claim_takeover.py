"""Claim a task that another worker has claimed. That worker, the holder, may be dead.

already claimed ─► the holder renews its lease ──────────────► dropped: the message was delivered twice
               ├─► an executor declares the holder dead ─────► dropped: the task runs elsewhere, or has failed
               └─► neither happens for TAKEOVER_TIMEOUT ─────► the holder is declared dead here: claimed again

Celeriac's executor watches the leases of workers, and fences the claims of dead workers. Airflow's own executor does
not: with it, only the message that the broker delivers again can make the task or callback run. The API server then
decides whether it may run, in the same way as without claims.
"""

from __future__ import annotations

import time
from enum import Enum, auto
from typing import Any

from celery.states import READY_STATES

from celeriac.airflow.prefork_control import WorkloadPoolControl
from celeriac.backend.claims.claim import AlreadyClaimed, ClaimReply, LeaseRecord, LeaseState
from celeriac.config.lease import LEASE_DURATION
from celeriac.log_lines import logger_for
from celeriac.server_errors import is_server_error
from celeriac.worker.lease_manager import LeaseManager

TAKEOVER_TIMEOUT = 2 * LEASE_DURATION  # seconds; an executor that watches leases needs less to declare the holder dead
LEASE_POLL_INTERVAL = 0.5  # seconds

log = logger_for(__name__)


class HolderState(Enum):
    ALIVE = auto()
    UNKNOWN = auto()
    SILENT = auto()


class HolderWatch:
    """Decides from the leases read so far whether the holder of a claim is alive. Time and leases are passed in."""

    def __init__(self) -> None:
        self._first_observation: tuple[str, int | None] | None = None
        """The holder, and its heartbeat count when the watch began."""

        self._watched_since = 0.0

    def observe(self, holder: str, lease: LeaseRecord | None, now: float) -> HolderState:
        """Return the state of a holder. `lease` is its lease, if there is one; `now` is a monotonic time in seconds."""
        observation = (holder, heartbeat_count(lease))
        if self._first_observation is None or self._first_observation[0] != holder:
            self._first_observation, self._watched_since = observation, now
        if lease is not None and lease.state is LeaseState.LIVE and observation != self._first_observation:
            return HolderState.ALIVE
        return HolderState.SILENT if now - self._watched_since >= TAKEOVER_TIMEOUT else HolderState.UNKNOWN

    def restart(self) -> None:
        """Begin again: the store was unavailable, so the holder could not renew its lease."""
        self._first_observation = None


def claim_or_take_over(
    lease_manager: LeaseManager, pool_control: WorkloadPoolControl, task: Any
) -> tuple[ClaimReply | None, float]:
    """Claim a task. If it has another holder, wait until the state of that holder is known.

    Return the same as `LeaseManager.claim`.
    """
    task_id = task.request.id
    reply, start_by = lease_manager.claim(task_id, task.request, lambda: pool_control.is_shutting_down)
    if not isinstance(reply, AlreadyClaimed) or reply.holder == lease_manager.holder:
        return reply, start_by
    with pool_control.claim_undecided(task_id):
        return wait_for_holder(lease_manager, pool_control, task, reply)


def wait_for_holder(
    lease_manager: LeaseManager, pool_control: WorkloadPoolControl, task: Any, claimed: AlreadyClaimed
) -> tuple[ClaimReply | None, float]:
    """Poll the holder's lease until the holder is alive or declared dead. Take over from a silent holder."""
    task_id, claims = task.request.id, lease_manager.claims
    reply: ClaimReply | None = claimed
    start_by = 0.0
    watch = HolderWatch()
    while isinstance(reply, AlreadyClaimed):
        try:
            lease = claims.leases().get(reply.holder)
            state = watch.observe(reply.holder, lease, time.monotonic())
            if state is HolderState.ALIVE:
                break
            if state is HolderState.SILENT:
                if task.backend.get_state(task_id) in READY_STATES:
                    break
                take_over(lease_manager, task_id, reply.holder, heartbeat_count(lease))
        except Exception as error:
            if not is_server_error(error):
                raise
            log.debug("[%s] the leases cannot be read; retrying: %s", task_id, error)
            watch.restart()
        time.sleep(LEASE_POLL_INTERVAL)  # the store has no event for a renewal
        reply, start_by = lease_manager.claim(task_id, task.request, lambda: pool_control.is_shutting_down)
    return reply, start_by


def take_over(lease_manager: LeaseManager, task_id: str, holder: str, heartbeats: int | None) -> None:
    """Declare the holder dead and release its claim, unless it has renewed its lease meanwhile."""
    if lease_manager.claims.declare_dead(holder, heartbeats):
        log.warning("[%s] the worker that had claimed it is dead, and no executor has noticed: taking over", task_id)
        lease_manager.claims.release(task_id, holder=holder)


def heartbeat_count(lease: LeaseRecord | None) -> int | None:
    return lease.heartbeat_count if lease is not None else None
