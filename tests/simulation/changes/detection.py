"""Changes of what declares workers dead, and of what finds tasks lost."""

from __future__ import annotations

from typing import Any

from celeriac.backend.claims import failure_detector
from celeriac.backend.claims.claim import Claim, LeaseRecord
from celeriac.backend.claims.failure_detector import SUSPECT_AFTER, FailureDetector
from celeriac.cluster.lost_tasks.claim_check import ClaimCheck
from celeriac.executor.lost_task_schedule import LostTaskSchedule
from tests.simulation.changes.change import change

REAL_IS_ORPHANED = ClaimCheck._is_orphaned
REAL_IS_DEAD = FailureDetector.is_dead


def dead_when_suspected(detector: FailureDetector, holder: str, now: float) -> bool:
    watched = detector._watched.get(holder)
    is_silent = watched is not None and now - watched.heartbeat_at > SUSPECT_AFTER
    return is_silent or REAL_IS_DEAD(detector, holder, now)


def poll_without_scan(schedule: LostTaskSchedule, in_flight: Any, now: float) -> Any:
    schedule._next_scan = float("inf")
    return schedule._detector.take_lost()


def orphaned_at_first_look(check: ClaimCheck, claim: Claim, renewal: LeaseRecord | None) -> bool:
    return renewal is not None or REAL_IS_ORPHANED(check, claim, renewal)


change(
    "hasty-detector",
    "A worker is declared dead before its supervisor ends its commands.",
    (failure_detector, "LEASE_DURATION", 2.5),
)
change(
    "no-write-check",
    "A store that refuses writes is taken for silent workers: all are declared dead when it accepts writes again.",
    (FailureDetector, "needs_write_check", lambda detector, now: False),
)
change(
    "timers-go-on",
    "A time in which the leases could not be read counts as silence of all workers (two guards: failed polls, gaps).",
    (FailureDetector, "poll_failed", lambda detector: None),
    (failure_detector, "MAX_POLL_GAP", float("inf")),
)
change(
    "suspected-is-dead",
    "The claims of a worker that is only suspected are fenced while its commands run.",
    (FailureDetector, "is_dead", dead_when_suspected),
)
change(
    "one-look",
    "A claim is lost if one lease does not list it, which may be older than the claim.",
    (ClaimCheck, "_is_orphaned", orphaned_at_first_look),
)
change(
    "no-scan",
    "Lost tasks are not looked for: a message that Redis lost is never sent again.",
    (LostTaskSchedule, "poll", poll_without_scan),
)
