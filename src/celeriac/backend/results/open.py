"""Choose the reader for an app's result backend."""

from __future__ import annotations

from celery import Celery

from celeriac.backend.kind import BackendKind, backend_kind, import_for_database
from celeriac.backend.results.one_by_one import OneByOneResults
from celeriac.backend.results.reader import BackendResults, Store
from celeriac.backend.results.redis import RedisResults, RedisStore
from celeriac.backend.results.task_events import task_events_for


def store_for(app: Celery, *, timeout: float) -> Store | None:
    """Return the store behind the reader for the app's result backend. None for a backend that only Celery can read."""
    match backend_kind(app):
        case BackendKind.REDIS:
            return RedisStore(app, timeout)
        case BackendKind.DATABASE:
            store: Store = import_for_database("celeriac.backend.results.database").DatabaseStore(app, timeout)
            return store
        case BackendKind.OTHER:
            return None


def results_for(app: Celery, *, timeout: float, trigger: bool = False) -> BackendResults:
    """Return the reader for the app's result backend. `timeout`, in seconds, bounds one `read`.

    With `trigger` it creates a trigger in PostgreSQL that announces stored results, if its role may, and listens.
    """
    match backend_kind(app):
        case BackendKind.REDIS:
            return RedisResults(app, timeout=timeout)
        case BackendKind.DATABASE:
            database = import_for_database("celeriac.backend.results.database")
            notifications = import_for_database("celeriac.backend.results.notifications")
            source = notifications.notifications_for(app, timeout) if trigger else None
            reader: BackendResults = database.DatabaseResults(
                app, timeout=timeout, sources=[source, task_events_for(app, timeout)]
            )
            return reader
        case BackendKind.OTHER:
            return OneByOneResults(app, timeout=timeout, source=task_events_for(app, timeout))
