"""Choose the store of refused messages for an app's result backend."""

from __future__ import annotations

from celery import Celery

from celeriac.backend.kind import BackendKind, backend_kind, import_for_database
from celeriac.backend.refused.message import RefusedStore
from celeriac.backend.refused.redis import RedisRefused


def refused_store_for(app: Celery, *, timeout: float) -> RefusedStore | None:
    """Return the store in the app's result backend, or None for a backend that cannot keep messages.

    `timeout`, in seconds, bounds one operation, as far as the client of the backend supports it.
    """
    match backend_kind(app):
        case BackendKind.REDIS:
            return RedisRefused(app, timeout=timeout)
        case BackendKind.DATABASE:
            database = import_for_database("celeriac.backend.refused.database")
            store: RefusedStore = database.DatabaseRefused(app, timeout=timeout)
            return store
        case BackendKind.OTHER:
            return None
