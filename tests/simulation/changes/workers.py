"""Changes of a worker, and of its supervisor."""

from __future__ import annotations

from celeriac.worker import lease_manager, lease_state_machine, task
from celeriac.worker.lease_manager import LeaseManager
from celeriac.worker.supervisor import lease_policy
from celeriac.worker.supervisor.lease_policy import LeasePolicy
from tests.simulation.changes.change import change


def always_grace(policy: LeasePolicy, now: float) -> float | None:
    return None if now < policy.silent_at else lease_policy.SILENCE_GRACE


change(
    "patient-supervisor",
    "Commands go on for longer without a heartbeat than others wait until they run them again.",
    (lease_policy, "SILENCE_LIMIT", 30.0),
)
change(
    "long-grace",
    "Commands that ignore TERM are killed only after others run them again.",
    (lease_policy, "SILENCE_GRACE", 30.0),
)
change(
    "grace-after-suspension",
    "A machine that was suspended lets its commands go on for a while, though they run elsewhere.",
    (LeasePolicy, "grace", always_grace),
)
change(
    "late-start",
    "A claim is used however old the lease is under which it was made.",
    (lease_manager, "CLAIM_VALIDITY", 1e9),
)
change(
    "never-cut-off",
    "A worker that alone cannot reach the store keeps its commands, as if it were down for everyone.",
    (lease_state_machine, "is_unavailable_for_everyone", lambda error, reach: True),
)
change(
    "deaf-to-cancels",
    "A worker does not end the commands that a renewal reports as cancelled: only the broadcast does.",
    (LeaseManager, "_stop", lambda manager, cancelled, fenced: None),
)
change(
    "cut-short-is-an-end",
    "A command that a shutdown kept from starting counts as revoked, and is not handed back.",
    (task, "was_cut_short", lambda report: False),
)
