"""A client of Redis or Valkey as result backend."""

from __future__ import annotations

from typing import Any

from celeriac.broker.celery_internals import redis_client_of


def make_client(backend: Any, timeout: float) -> Any:
    """Return a client like that of Celery's backend, which waits at most `timeout` seconds for a reply."""
    timeouts = {name: timeout for name in ("socket_timeout", "socket_connect_timeout") if name in backend.connparams}
    return redis_client_of(backend, **{**backend.connparams, **timeouts})
