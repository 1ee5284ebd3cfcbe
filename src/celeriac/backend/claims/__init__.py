"""Claims and leases: the right to start a task, and the workers' proof of life. The result backend's
own store holds them.

open              chooses the claims for an app
claim             the protocol `Claims`, and the values that it takes and returns
redis             one script for each step
database          a table each, one statement for each step
places            the places of limits: `redis_places`, `database_places`, and `place_state` decides for a database
memory            within one process
failure_detector  decides from the leases which workers are suspected and which are dead
lease_monitor     the thread that polls the leases for the failure detector

In: a worker's claims and lease renewals. Out: replies to workers, and for executors the live workers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celeriac.backend.claims.open import claims_for

__all__ = ["claims_for"]


def __getattr__(name: str) -> Any:
    """Import `claims_for` at its first use: it imports Celery, which a reader of leases does not need."""
    if name != "claims_for":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module("celeriac.backend.claims.open").claims_for
