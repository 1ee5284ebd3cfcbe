"""Refused messages on Redis or Valkey.

celeriac-refused  a list, the newest first
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from celery import Celery

from celeriac.backend.refused.message import KEPT, KEPT_FOR, RefusedMessage, decode_all, encode
from celeriac.backend.results.redis import make_client
from celeriac.broker.redis_keys import BackendKeys


class RedisRefused:
    def __init__(self, app: Celery, *, timeout: float) -> None:
        """`timeout`, in seconds, bounds one operation."""
        self._backend, self._timeout = app.backend, timeout
        self._key = BackendKeys(self._backend).refused
        self._client: Any = None
        self._client_pid: int | None = None

    def add(self, message: RefusedMessage) -> None:
        client = self._connect()  # no pipeline: its errors would repeat the message
        client.lpush(self._key, encode(message))
        client.ltrim(self._key, 0, KEPT - 1)
        client.expire(self._key, KEPT_FOR)

    def newest(self) -> Sequence[RefusedMessage]:
        return decode_all(self._connect().lrange(self._key, 0, KEPT - 1))

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    def _connect(self) -> Any:
        """Return the client, made at its first use. Each child process of a worker has its own client."""
        if self._client_pid != os.getpid():
            self._client, self._client_pid = make_client(self._backend, self._timeout), os.getpid()
        return self._client
