"""Choose the claims for an app's result backend."""

from __future__ import annotations

from celery import Celery

from celeriac.backend.claims.claim import CLAIM_KEPT, Claims
from celeriac.backend.claims.places import Places
from celeriac.backend.claims.redis import RedisClaims
from celeriac.backend.kind import BackendKind, backend_kind, import_for_database

HOUR = 3600  # seconds


def claims_for(app: Celery, *, timeout: float) -> Claims | None:
    """Return the claims in the app's result backend, or None for a backend that cannot hold them.

    `timeout`, in seconds, bounds one operation, as far as the client of the backend supports it.
    """
    match backend_kind(app):
        case BackendKind.REDIS:
            return RedisClaims(app, timeout=timeout, kept=claim_kept(app))
        case BackendKind.DATABASE:
            database = import_for_database("celeriac.backend.claims.database")
            claims: Claims = database.DatabaseClaims(app, timeout=timeout, kept=claim_kept(app))
            return claims
        case BackendKind.OTHER:
            return None


def places_for(app: Celery, *, timeout: float) -> Places | None:
    """Return the places of limits in the app's result backend, or None for a backend that cannot hold them."""
    match backend_kind(app):
        case BackendKind.REDIS:
            from celeriac.backend.claims.redis_places import RedisPlaces  # late: few tasks have limits

            return RedisPlaces(app, timeout=timeout)
        case BackendKind.DATABASE:
            database = import_for_database("celeriac.backend.claims.database_places")
            places: Places = database.DatabasePlaces(app, timeout=timeout)
            return places
        case BackendKind.OTHER:
            return None


def claim_kept(app: Celery) -> int:
    """Return the seconds that a claim is kept after its last renewal: longer than the broker's visibility timeout,
    after which it delivers a message again."""
    visibility_timeout = int((app.conf.broker_transport_options or {}).get("visibility_timeout") or 0)
    return max(CLAIM_KEPT, visibility_timeout + HOUR)
