"""The kind of an app's result backend, and the import of the modules that only one kind needs."""

from __future__ import annotations

from enum import Enum, auto
from importlib import import_module
from typing import Any

from celery import Celery


class BackendKind(Enum):
    REDIS = auto()
    """Redis or Valkey, also behind Sentinel."""

    DATABASE = auto()
    OTHER = auto()


KINDS = {
    "celery.backends.redis.RedisBackend": BackendKind.REDIS,
    "celery.backends.database.DatabaseBackend": BackendKind.DATABASE,
}


def backend_kind(app: Celery) -> BackendKind:
    """Return the kind, found by the names of the backend's class and its bases.

    A comparison with the classes themselves would import the client library of each kind.
    """
    names = (f"{cls.__module__}.{cls.__qualname__}" for cls in type(app.backend).__mro__)
    return next((KINDS[name] for name in names if name in KINDS), BackendKind.OTHER)


def import_for_database(module: str) -> Any:
    """Import a module that needs SQLAlchemy, for an app that has a database as its result backend.

    Importing SQLAlchemy takes 0.3 s and 17 MB, which a worker on Redis does not need. This is the only import in this
    package that is delayed until it is needed.
    """
    return import_module(module)
