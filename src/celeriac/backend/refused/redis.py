"""Refused messages on Redis or Valkey.

celeriac-refused  a list, the newest first
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery import Celery

from celeriac.backend.per_process import PerProcess
from celeriac.backend.redis_client import make_client
from celeriac.backend.refused.message import KEPT, KEPT_FOR, RefusedMessage, decode_all, encode
from celeriac.broker.redis_keys import BackendKeys


class RedisRefused:
    def __init__(self, app: Celery, *, timeout: float) -> None:
        """`timeout`, in seconds, bounds one operation."""
        self._key = BackendKeys(app.backend).refused
        self._client: PerProcess[Any] = PerProcess(lambda: make_client(app.backend, timeout))

    def add(self, message: RefusedMessage) -> None:
        client = self._client.get()  # no pipeline: its errors would repeat the message
        client.lpush(self._key, encode(message))
        client.ltrim(self._key, 0, KEPT - 1)
        client.expire(self._key, KEPT_FOR)

    def newest(self) -> Sequence[RefusedMessage]:
        return decode_all(self._client.get().lrange(self._key, 0, KEPT - 1))

    def close(self) -> None:
        if (client := self._client.take()) is not None:
            client.close()
