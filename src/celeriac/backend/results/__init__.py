"""From the result backend to the executor: one reader for each kind of backend."""

from __future__ import annotations

from celery import Celery

from celeriac.backend.results.reader import BackendResults


def results_for(app: Celery, *, timeout: float) -> BackendResults:
    """The reader that suits the app's result backend. `timeout`, in seconds, bounds one `read`."""
    if is_a(app.backend, "celery.backends.redis.RedisBackend"):
        from celeriac.backend.results.redis import RedisResults

        return RedisResults(app, timeout=timeout)

    from celeriac.backend.results.task_events import task_events

    hints = task_events(app, timeout=timeout)
    if is_a(app.backend, "celery.backends.database.DatabaseBackend"):
        from celeriac.backend.results.database import DatabaseResults

        return DatabaseResults(app, timeout=timeout, hints=hints)

    from celeriac.backend.results.one_by_one import OneByOneResults

    return OneByOneResults(app, timeout=timeout, hints=hints)


def is_a(backend: object, name: str) -> bool:
    """Whether it is of that class, asked by name: importing the class would need its client library."""
    return name in {f"{cls.__module__}.{cls.__qualname__}" for cls in type(backend).__mro__}
