"""Output on Redis or Valkey: one script for each step.

celeriac-output-ID        the unread chunks of an attempt, a list
celeriac-output-state-ID  the token of its claim, and how many bytes were read and written
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from celery import Celery

from celeriac.backend.claims.claim import CLAIM_KEPT
from celeriac.backend.outputs.chunk import WINDOW, Chunk, Progress, Reply
from celeriac.backend.per_process import PerProcess
from celeriac.backend.redis_client import make_client
from celeriac.broker.redis_keys import BackendKeys

HEADER = struct.Struct("!QB")
"""The offset and the stream, before the data."""

FIELDS = ("token", "read", "written")
MAX_CHUNKS = 64  # of one attempt in one read

PUT = """
local chunks, state = KEYS[1], KEYS[2]
local token, offset, size, known = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local now = redis.call('HMGET', state, 'token', 'read', 'written')
local held, read, written = tonumber(now[1] or -1), tonumber(now[2]), tonumber(now[3])
if held > token then return {-1, 0, 0} end
if held < token or known > written then -- in the second case the server has lost the latest chunks
    redis.call('DEL', chunks)
    redis.call('HSET', state, 'token', token, 'read', known, 'written', known)
    read, written = known, known
end
if offset ~= written or (written > read and written + size - read > tonumber(ARGV[5])) then
    return {0, read, written}
end
redis.call('RPUSH', chunks, ARGV[7])
redis.call('HSET', state, 'written', written + size)
redis.call('EXPIRE', chunks, ARGV[6])
redis.call('EXPIRE', state, ARGV[6])
return {1, read, written + size}
"""

ACKNOWLEDGE = """
local now = redis.call('HMGET', KEYS[2], 'token', 'read')
if now[1] ~= ARGV[1] or now[2] ~= ARGV[2] then return 0 end
redis.call('LTRIM', KEYS[1], ARGV[3], -1)
redis.call('HSET', KEYS[2], 'read', ARGV[4])
return 1
"""


class RedisOutputs:
    def __init__(self, app: Celery, *, timeout: float) -> None:
        """`timeout`, in seconds, bounds one operation."""
        self._keys = BackendKeys(app.backend)
        self._client: PerProcess[Any] = PerProcess(lambda: make_client(app.backend, timeout))

    def put(self, task_id: str, token: int, chunk: Chunk, *, read: int) -> Reply:
        element = HEADER.pack(chunk.offset, chunk.stream) + chunk.data
        values = [token, chunk.offset, len(chunk.data), read, WINDOW, CLAIM_KEPT, element]
        status, read_now, written = self._client.get().eval(PUT, 2, *self._names(task_id), *values)
        return Reply(accepted=status > 0, read=read_now, written=written, is_superseded=status < 0)

    def progress(self, ids: Sequence[str]) -> Mapping[str, Progress]:
        with self._client.get().pipeline(transaction=False) as pipeline:
            for task_id in ids:
                pipeline.hmget(self._keys.output_state(task_id), FIELDS)
            replies = pipeline.execute()
        found = {task_id: progress_of(values) for task_id, values in zip(ids, replies, strict=True)}
        return {task_id: progress for task_id, progress in found.items() if progress is not None}

    def chunks(self, ids: Sequence[str]) -> Mapping[str, tuple[Progress, Sequence[Chunk]]]:
        with self._client.get().pipeline(transaction=True) as pipeline:  # else a worker could write in between
            for task_id in ids:
                chunks, state = self._names(task_id)
                pipeline.hmget(state, FIELDS)
                pipeline.lrange(chunks, 0, MAX_CHUNKS - 1)
            replies = pipeline.execute()
        found = {}
        for task_id, values, elements in zip(ids, replies[::2], replies[1::2], strict=True):
            if (progress := progress_of(values)) is not None:
                found[task_id] = (progress, [decode_chunk(element) for element in elements])
        return found

    def acknowledge(self, taken: Mapping[str, tuple[Progress, Sequence[Chunk]]]) -> None:
        with self._client.get().pipeline(transaction=False) as pipeline:
            for task_id, (progress, chunks) in taken.items():
                if chunks:
                    values = [progress.token, progress.read, len(chunks), chunks[-1].end]
                    pipeline.eval(ACKNOWLEDGE, 2, *self._names(task_id), *values)
            pipeline.execute()

    def delete(self, ids: Collection[str]) -> None:
        if ids:
            self._client.get().delete(*(name for task_id in ids for name in self._names(task_id)))

    def close(self) -> None:
        if (client := self._client.take()) is not None:
            client.close()

    def _names(self, task_id: str) -> tuple[str, str]:
        return self._keys.output(task_id), self._keys.output_state(task_id)


def progress_of(values: Sequence[Any]) -> Progress | None:
    """Return the progress; None for an attempt that has written nothing."""
    return None if None in values else Progress(*map(int, values))


def decode_chunk(element: bytes) -> Chunk:
    offset, stream = HEADER.unpack_from(element)
    return Chunk(offset, stream, element[HEADER.size :])
