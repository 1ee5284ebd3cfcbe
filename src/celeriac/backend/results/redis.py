"""Results on Redis or Valkey: many in one MGET, and every change heard as it is stored.

worker: SET celery-task-meta-ID, PUBLISH the same ─► PSUBSCRIBE celery-task-meta-* ─► ids that moved ─► MGET

Celery's own backend makes the clients, so that every form of URL and every TLS option it knows works here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

from celery import Celery
from kombu.utils.encoding import bytes_to_str, str_to_bytes

from celeriac.backend.results.decode import decode_with, from_meta, is_plain_json
from celeriac.backend.results.reader import BackendResults
from celeriac.executor.interfaces import Unreadable
from celeriac.task.result import Result

CHUNK = 500
SILENCE = 5.0  # seconds without a message until the server is asked whether it is there


class RedisResults(BackendResults):
    def __init__(self, app: Celery, *, timeout: float) -> None:
        """`timeout`, in seconds, bounds one `read`; what was not reached then comes with a later one."""
        super().__init__(RedisStore(app, timeout), timeout=timeout, source=RedisChannel(app, timeout))


class RedisStore:
    chunk = CHUNK

    def __init__(self, app: Celery, timeout: float) -> None:
        self._backend = app.backend
        self._client = client_of(self._backend, timeout)
        self._quickly = from_meta if is_plain_json(self._backend) else None
        self._prefix = str_to_bytes(self._backend.task_keyprefix)

    def fetch(self, ids: Sequence[str]) -> Mapping[str, Result | Unreadable]:
        values = self._client.mget(self._keys(ids))
        found = {task_id: value for task_id, value in zip(ids, values, strict=True) if value is not None}
        return decode_with(self._backend.decode_result, found, quickly=self._quickly)

    def delete(self, ids: Sequence[str]) -> None:
        self._client.delete(*self._keys(ids))

    def close(self) -> None:
        self._client.close()

    def _keys(self, ids: Sequence[str]) -> list[bytes]:
        return [self._prefix + task_id.encode() for task_id in ids]


class RedisChannel:
    """Subscribes to what Celery publishes with every result it stores."""

    def __init__(self, app: Celery, timeout: float) -> None:
        self._backend, self._timeout = app.backend, timeout
        self.errors = (OSError, *self._backend.connection_errors, *self._backend.channel_errors)

    def listen(self) -> Iterator[Collection[str] | None]:
        prefix = bytes_to_str(self._backend.task_keyprefix)
        with closing(client_of(self._backend, self._timeout)) as client, closing(client.pubsub()) as pubsub:
            pubsub.psubscribe(re.sub(r"([][*?\\])", r"\\\1", prefix) + "*")
            while True:
                message = pubsub.get_message(timeout=SILENCE)
                if message is None:
                    pubsub.ping()
                    message = pubsub.get_message(timeout=self._timeout)
                match message:
                    case None:
                        raise TimeoutError(f"no answer in {self._timeout:g} s")
                    case {"type": "psubscribe"}:
                        yield None
                    case {"type": "pmessage", "channel": channel}:
                        yield (bytes_to_str(channel)[len(prefix) :],)
                    case _:
                        yield ()


def client_of(backend: Any, timeout: float) -> Any:
    """A client such as Celery's backend makes for itself, that waits no longer than `timeout` seconds for a reply."""
    timeouts = {name: timeout for name in ("socket_timeout", "socket_connect_timeout") if name in backend.connparams}
    return backend._create_client(**{**backend.connparams, **timeouts})
