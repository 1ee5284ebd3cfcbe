"""Changes of the code that break the protocol, each with what it breaks. Histories must find each of them.

claims     the claim script, and the leases beside it
detection  which workers are dead, and which tasks are lost
workers    a worker, and its supervisor
executors  the executor, its revokes, and the ledger
owners     the owner sessions of several `serve`
limits     limits of keys and rates
needs      CPUs, memory and GPUs, and pauses
times      not_before and deadline
"""

from __future__ import annotations

from tests.simulation.changes import (  # noqa: F401 - each adds its changes
    claims,
    detection,
    executors,
    limits,
    needs,
    owners,
    times,
    workers,
)
from tests.simulation.changes.change import CHANGES, changed

NAMES = tuple(CHANGES)

__all__ = ["CHANGES", "NAMES", "changed"]
