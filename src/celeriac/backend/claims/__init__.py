"""Who may start a task, and who is still alive: in the result backend's own store, beside the results.

claim     what is said, and the door to all of it
redis     one script for each step
database  two tables, one statement for each step
memory    within one process
watch     for executors: who is alive, who has gone, who is taken for dead
"""

from __future__ import annotations

from celery import Celery

from celeriac.backend.claims.claim import CLAIM_KEPT, Claims

HOUR = 3600  # seconds


def claims_for(app: Celery, *, timeout: float) -> Claims | None:
    """None for a result backend that can keep none. `timeout`, in seconds, bounds one operation, where the client of
    the backend lets it be bounded."""
    from celeriac.backend.results import is_a

    backend = app.backend
    if is_a(backend, "celery.backends.redis.RedisBackend"):
        from celeriac.backend.claims.redis import RedisClaims
        from celeriac.backend.results.redis import client_of

        return RedisClaims(app, lambda: client_of(backend, timeout), kept=kept_for(app))
    if is_a(backend, "celery.backends.database.DatabaseBackend"):
        from celeriac.backend.claims.database import DatabaseClaims
        from celeriac.backend.results.database import engine_of

        return DatabaseClaims(app, lambda: engine_of(backend, timeout), kept=kept_for(app))
    return None


def kept_for(app: Celery) -> int:
    """Seconds that a claim outlasts its last sign of life: longer than the broker may take to deliver it again."""
    visibility_timeout = int((app.conf.broker_transport_options or {}).get("visibility_timeout") or 0)
    return max(CLAIM_KEPT, visibility_timeout + HOUR)
