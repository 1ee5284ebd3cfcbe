"""Choose the store for output of an app's result backend."""

from __future__ import annotations

from celery import Celery

from celeriac.backend.kind import BackendKind, backend_kind, import_for_database
from celeriac.backend.outputs.chunk import OutputStore
from celeriac.backend.outputs.redis import RedisOutputs


def output_store_for(app: Celery, *, timeout: float) -> OutputStore | None:
    """Return the store in the app's result backend, or None for a backend that cannot carry output.

    `timeout`, in seconds, bounds one operation, as far as the client of the backend supports it.
    """
    match backend_kind(app):
        case BackendKind.REDIS:
            return RedisOutputs(app, timeout=timeout)
        case BackendKind.DATABASE:
            database = import_for_database("celeriac.backend.outputs.database")
            store: OutputStore = database.DatabaseOutputs(app, timeout=timeout)
            return store
        case BackendKind.OTHER:
            return None
