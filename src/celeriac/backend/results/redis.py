"""Read results from Redis or Valkey: many in one MGET. A subscription follows every change as it is stored.

worker: SET celery-task-meta-ID, PUBLISH the same ─► PSUBSCRIBE celery-task-meta-* ─► changed ids ─► MGET

Celery's own backend makes the clients. So every form of URL and every TLS option that Celery accepts works here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

from celery import Celery
from kombu.utils.encoding import str_to_bytes

from celeriac.backend.redis_client import make_client
from celeriac.backend.results.compressed import check_size, limited
from celeriac.backend.results.decode import decode_all, decode_meta_json, is_plain_json
from celeriac.backend.results.reader import BackendResults
from celeriac.broker.redis_keys import BackendKeys
from celeriac.executor.interfaces import Unreadable
from celeriac.server_errors import is_server_error
from celeriac.task.result import Result

BATCH_SIZE = 500  # ids in one MGET
PING_AFTER = 5.0  # seconds without a message until the connection is checked


class RedisResults(BackendResults):
    def __init__(self, app: Celery, *, timeout: float) -> None:
        """`timeout`, in seconds, bounds one `read`. A later `read` returns the results that are late."""
        super().__init__(RedisStore(app, timeout), timeout=timeout, sources=[RedisChannel(app, timeout)])


class RedisStore:
    batch_size = BATCH_SIZE

    def __init__(self, app: Celery, timeout: float) -> None:
        self._backend = app.backend
        self._client = make_client(self._backend, timeout)
        self._decode_fast = decode_fast if is_plain_json(self._backend) else None
        self._key_of = BackendKeys(self._backend).result

    def fetch(self, ids: Sequence[str]) -> Mapping[str, Result | Unreadable]:
        values = self._client.mget(self._keys(ids))
        stored = {task_id: value for task_id, value in zip(ids, values, strict=True) if value is not None}
        return decode_all(self._load, stored, decode_fast=self._decode_fast)

    def _load(self, value: bytes) -> Any:
        return self._backend.decode_result(limited(value))

    def delete(self, ids: Sequence[str]) -> None:
        self._client.delete(*self._keys(ids))

    def close(self) -> None:
        self._client.close()

    def _keys(self, ids: Sequence[str]) -> list[str]:
        return list(map(self._key_of, ids))


def decode_fast(value: bytes) -> Result:
    check_size(value)
    return decode_meta_json(value)


class RedisChannel:
    """A subscription to the messages that Celery publishes with every result it stores."""

    reports_refusals = True  # a role may read results without the right to subscribe

    def __init__(self, app: Celery, timeout: float) -> None:
        self._backend, self._timeout = app.backend, timeout

    def is_server_error(self, error: BaseException) -> bool:
        return is_server_error(error)

    def listen(self) -> Iterator[Collection[str] | None]:
        prefix = BackendKeys(self._backend).results.encode()
        with closing(make_client(self._backend, self._timeout)) as client, closing(client.pubsub()) as pubsub:
            pubsub.psubscribe(re.sub(rb"([][*?\\])", rb"\\\1", prefix) + b"*")
            while True:
                message = pubsub.get_message(timeout=PING_AFTER)
                if message is None:
                    pubsub.ping()
                    message = pubsub.get_message(timeout=self._timeout)
                match message:
                    case None:
                        raise TimeoutError(f"no reply in {self._timeout:g} s")
                    case {"type": "psubscribe"}:
                        yield None
                    case {"type": "pmessage", "channel": channel}:
                        # No executor has an id that is not UTF-8.
                        yield (str_to_bytes(channel)[len(prefix) :].decode(errors="replace"),)
                    case _:
                        yield ()
