"""A worker's results in a database: sent over shared connections, decoded without loading code."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from celery import Celery
from celery.backends.database import DatabaseBackend

from celeriac.backend.results import plain_pickle
from celeriac.broker.celery_internals import keep_connections, set_result_decoder, wrap_backend

POOL_TIMEOUT = 24 * 3600  # seconds that a thread waits for a connection: during an outage all of them are in use


def read_plain_data_only(app: Celery) -> None:
    """Let the app's database backends load no code from pickles."""

    def prepare(backend: Any) -> Any:
        if isinstance(backend, DatabaseBackend):
            unpickle_plain_data_only(backend)
        return backend

    wrap_backend(app, prepare)


def share_connections(app: Celery) -> None:
    """Share connections between the threads of a pool. In a process that has not forked, Celery would open a new one
    for each result. A dead connection is noticed before it is used."""
    manager = app.backend.session_manager
    keep_connections(manager)

    def share(backend: Any) -> Any:
        backend.engine_options["pool_timeout"] = POOL_TIMEOUT
        backend.session_manager = manager
        return backend

    wrap_backend(app, share)


def unpickle_plain_data_only(backend: Any) -> None:
    """Let the backend load no code from pickles. Celery before 5.7 pickles results even if it accepts only JSON, so a
    row that another program wrote into the database could run code here.

    A value that cannot be read counts as None: Celery reads a task's row before it stores the task's result.
    """
    if plain_pickle.PICKLE not in backend.accept:

        def decode(value: bytes) -> Any:
            with suppress(Exception):
                return plain_pickle.decode(value, backend.decode)
            return None

        set_result_decoder(backend, decode, pickler=LenientPickler)


class LenientPickler:
    """Pickles as usual, and reads plain data alone. Anything else is read as None."""

    dumps = staticmethod(plain_pickle.dumps)

    @staticmethod
    def loads(value: bytes) -> Any:
        with suppress(Exception):
            return plain_pickle.loads(value)
        return None
