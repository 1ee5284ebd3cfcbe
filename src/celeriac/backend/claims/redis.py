"""Claims and leases on Redis or Valkey: one script for each step.

celeriac-claim-ID      the claim of a task; expires about a day later
celeriac-lease-HOLDER  a worker's lease, and the number of its heartbeats
celeriac-leases        the holders that have a lease
celeriac-token         counts claims
celeriac-writable      written to find out whether the server accepts writes

Each name has the prefix of the settings before it.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import msgspec
from celery import Celery, states
from celery.exceptions import TaskRevokedError
from kombu.utils.encoding import bytes_to_str

from celeriac.backend.claims.claim import (
    CLAIM_KEPT,
    LEASE_KEPT,
    TOMBSTONE_KEPT,
    AlreadyClaimed,
    Claim,
    ClaimCancelled,
    ClaimReply,
    DeclaredDead,
    Granted,
    Lease,
    LeaseRecord,
    Renewed,
    Superseded,
)
from celeriac.backend.claims.stored import (
    LEASE_FIELDS,
    LeaseDecoder,
    MalformedLog,
    age_of_lease,
    bytes_of,
    decode_claim,
    storable,
    text_of,
)
from celeriac.backend.per_process import PerProcess
from celeriac.backend.redis_client import make_client
from celeriac.broker.celery_internals import result_meta
from celeriac.broker.redis_keys import BackendKeys

HEAL = """
local function fails(...)
    local reply = redis.pcall(...)
    return type(reply) == 'table' and reply.err
end
local function heal(key)
    if fails('HLEN', key) then redis.call('DEL', key) end
end
local function count(lease)
    if fails('HINCRBY', lease, 'beat', 1) then redis.call('HSET', lease, 'beat', 1) end
end
"""
"""Replaces what another program has written: keys of another type, and a count that is no number."""

STORE = """
local function store(key, value, expires)
    if tonumber(expires) > 0 then redis.call('SET', key, value, 'EX', expires) else redis.call('SET', key, value) end
    redis.call('PUBLISH', key, value)
end
"""

CLAIM = (
    HEAL
    + STORE
    + """
local claim, token, result, lease = unpack(KEYS)
heal(claim)
heal(lease)
local holder, delivery, kept, begun, expires = unpack(ARGV)
local now = redis.call('HMGET', claim, 'holder', 'delivery', 'token', 'cancelled', 'fenced')
if now[5] then return {'superseded'} end
if now[1] then
    if now[1] == holder and now[2] == delivery then return {'go', now[3]} end
    return {'taken', now[1]}
end
if now[4] then return {'cancelled'} end
if redis.call('HGET', lease, 'standing') == 'dead' then return {'superseded'} end
if fails('INCR', token) then redis.call('SET', token, redis.call('TIME')[1]) end
local number = tonumber(redis.call('GET', token))
redis.call('HSET', claim, 'holder', holder, 'delivery', delivery, 'token', number)
redis.call('EXPIRE', claim, kept)
count(lease)
redis.call('EXPIRE', lease, 3600)
if begun ~= '' then store(result, begun, expires) end
return {'go', number}
"""
)

RELEASE = """
local now = redis.call('HMGET', KEYS[1], 'holder', 'cancelled', 'fenced')
if (now[1] and now[1] ~= ARGV[1]) or now[3] then return 0 end
if now[1] then
    redis.call('HSET', KEYS[1], 'released', 1)
    redis.call('HDEL', KEYS[1], 'holder', 'delivery', 'token')
end
if now[2] then return 0 end
return 1
"""

RENEW = (
    HEAL
    + """
local lease, all = KEYS[1], KEYS[2]
heal(lease)
local holder, content, kept, claim_kept = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if redis.call('HGET', lease, 'standing') == 'dead' then return {'dead'} end
redis.call('HSET', lease, 'content', content, 'standing', 'live')
count(lease)
redis.call('EXPIRE', lease, kept)
if fails('SADD', all, holder) then
    redis.call('DEL', all)
    redis.call('SADD', all, holder)
end
local told = {'renewed'}
for i = 3, #KEYS do
    heal(KEYS[i])
    local claim = redis.call('HMGET', KEYS[i], 'holder', 'cancelled', 'fenced')
    if claim[3] or (claim[1] and claim[1] ~= holder) then
        table.insert(told, 'f' .. ARGV[i + 2])
    elseif claim[2] then
        table.insert(told, 'c' .. ARGV[i + 2])
    end
    if redis.call('TTL', KEYS[i]) < claim_kept * 0.9 then redis.call('EXPIRE', KEYS[i], claim_kept) end
end
return told
"""
)

END_LEASE = """
if redis.call('EXISTS', KEYS[1]) == 1 and redis.call('HGET', KEYS[1], 'standing') ~= 'dead' then
    redis.call('HSET', KEYS[1], 'standing', 'gone')
end
"""

DECLARE_DEAD = (
    HEAL
    + """
heal(KEYS[1])
local now = redis.call('HMGET', KEYS[1], 'standing', 'beat')
if now[1] == 'live' and now[2] ~= ARGV[1] then return 0 end
if not now[1] and ARGV[1] ~= '' then return 0 end
redis.call('HSET', KEYS[1], 'standing', 'dead')
count(KEYS[1])
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('SADD', KEYS[2], ARGV[3])
return 1
"""
)

FENCE = """
if redis.call('HGET', KEYS[1], 'holder') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'fenced', 1)
redis.call('EXPIRE', KEYS[1], ARGV[2])
return 1
"""

CANCEL = (
    HEAL
    + STORE
    + """
-- The result of a task that was handed back says that it waits again; any other result, that it has started or ended.
local claim, result = KEYS[1], KEYS[2]
heal(claim)
local kept, unless_started, revoked, expires = unpack(ARGV)
local now = redis.call('HMGET', claim, 'holder', 'released')
local is_open = not now[1] and (now[2] or redis.call('EXISTS', result) == 0)
if not is_open and unless_started == '1' then return 0 end
redis.call('HSET', claim, 'cancelled', 1)
redis.call('EXPIRE', claim, kept)
if not is_open then return 0 end
store(result, revoked, expires)
return 1
"""
)

READ_HASHES = """
local hashes = {}
for i, key in ipairs(KEYS) do
    local fields = redis.pcall('HMGET', key, unpack(ARGV))
    if not fields.err then
        hashes[i] = fields
    elseif string.find(fields.err, 'WRONGTYPE', 1, true) then
        hashes[i] = fields.err
    else
        return fields
    end
end
return hashes
"""
"""Reads the same fields of many keys with one command: the client spends more on a command than the server. Returns
text for a key that is no hash."""

BATCH_SIZE = 500  # keys that one script reads: the server does nothing else for about a millisecond

WRITE_CHECK_KEPT = 60  # seconds
CHECK = "redis.call('SET', KEYS[1], 1, 'EX', ARGV[1])"

CLAIM_FIELDS = ("token", "cancelled", "fenced", "holder")


@dataclass(slots=True)
class Connected:
    """A client, and the scripts that were registered with it."""

    client: Any
    scripts: dict[str, Any] = field(default_factory=dict)


class RedisClaims:
    def __init__(self, app: Celery, *, timeout: float, kept: int = CLAIM_KEPT) -> None:
        """`timeout`, in seconds, bounds one operation. `kept` is how many seconds a claim is kept after its last
        renewal."""
        self._app, self._backend, self._timeout, self._kept = app, app.backend, timeout, kept
        self._keys = BackendKeys(self._backend)
        self._connected = PerProcess(lambda: Connected(make_client(self._backend, timeout)))
        self._malformed = MalformedLog()
        self._decoder = LeaseDecoder(self._malformed)
        self.errors = (OSError, *self._backend.connection_errors, *self._backend.channel_errors)

    def claim(
        self,
        task_id: str,
        *,
        holder: str,
        delivery: str,
        started_info: Mapping[str, Any] | None = None,
        request: Any = None,
    ) -> ClaimReply:
        started = "" if started_info is None else self._meta(task_id, dict(started_info), states.STARTED, request)
        keys = [self._keys.claim(task_id), self._keys.token, self._keys.result(task_id), self._lease(holder)]
        reply = self._run(CLAIM, keys, [holder, delivery, self._kept, started, self._expires])
        match bytes_to_str(reply[0]):
            case "go":
                return Granted(int(reply[1]))
            case "taken":
                return AlreadyClaimed(text_of(reply[1]))
            case "cancelled":
                return ClaimCancelled()
        return Superseded()

    def release(self, task_id: str, *, holder: str) -> bool:
        return bool(self._run(RELEASE, [self._keys.claim(task_id)], [holder]))

    def renew(self, lease: Lease) -> Renewed | DeclaredDead:
        lease = storable(lease)
        keys = [self._lease(lease.holder), self._keys.leases, *map(self._keys.claim, lease.running)]
        content = msgspec.json.encode(lease)
        reply = self._run(RENEW, keys, [lease.holder, content, LEASE_KEPT, self._kept, *lease.running])
        if bytes_to_str(reply[0]) == "dead":
            return DeclaredDead()
        # Each change is "c" for cancelled or "f" for fenced, then the task's id.
        changes = [bytes_to_str(change) for change in reply[1:]]
        return Renewed(
            frozenset(change[1:] for change in changes if change[0] == "c"),
            frozenset(change[1:] for change in changes if change[0] == "f"),
        )

    def end_lease(self, holder: str) -> None:
        self._run(END_LEASE, [self._lease(holder)], [])

    def leases(self) -> Mapping[str, LeaseRecord]:
        holders = [text_of(holder) for holder in self._connect().smembers(self._keys.leases)]
        stored = self._read_hashes([self._lease(holder) for holder in holders], LEASE_FIELDS)
        if expired := [bytes_of(holder) for holder, fields in zip(holders, stored, strict=True) if fields is None]:
            self._connect().srem(self._keys.leases, *expired)
        return self._decoder.decode(
            (holder, fields) for holder, fields in zip(holders, stored, strict=True) if isinstance(fields, list)
        )

    def heartbeat_ages(self, holders: Sequence[str]) -> Mapping[str, float]:
        with self._connect().pipeline(transaction=False) as pipeline:
            for holder in holders:
                pipeline.pttl(self._lease(holder))
            remaining = pipeline.execute()
        ages = zip(holders, remaining, strict=True)
        return {holder: age_of_lease(milliseconds) for holder, milliseconds in ages if milliseconds >= 0}

    def now(self) -> float:
        """Return the server's time."""
        seconds, microseconds = self._connect().time()
        return float(seconds + microseconds / 1e6)

    def check_writable(self) -> None:
        self._connect().set(self._keys.writable, 1, ex=WRITE_CHECK_KEPT)

    def read(self, ids: Sequence[str]) -> Mapping[str, Claim]:
        stored = self._read_hashes(list(map(self._keys.claim, ids)), CLAIM_FIELDS)
        return {
            task_id: decode_claim(task_id, *fields)
            for task_id, fields in zip(ids, stored, strict=True)
            if isinstance(fields, list)
        }

    def declare_dead(self, holder: str, heartbeat_count: int | None) -> bool:
        keys = [self._lease(holder), self._keys.leases]
        count = "" if heartbeat_count is None else heartbeat_count
        return bool(self._run(DECLARE_DEAD, keys, [count, LEASE_KEPT, bytes_of(holder)]))

    def fence(self, claims: Sequence[Claim]) -> Collection[str]:
        calls = [([self._keys.claim(claim.id)], [bytes_of(claim.holder), TOMBSTONE_KEPT]) for claim in claims]
        return [claim.id for claim, done in zip(claims, self._run_many(FENCE, calls), strict=True) if done]

    def cancel(self, ids: Sequence[str], *, unless_started: bool = False) -> Collection[str]:
        options = [TOMBSTONE_KEPT, int(unless_started)]
        calls = [
            ([self._keys.claim(task_id), self._keys.result(task_id)], [*options, self._revoked(task_id), self._expires])
            for task_id in ids
        ]
        return [task_id for task_id, done in zip(ids, self._run_many(CANCEL, calls), strict=True) if done]

    def check_rights(self) -> None:
        self._run(CHECK, [self._keys.writable], [WRITE_CHECK_KEPT])
        self._connect().publish(self._keys.result("celeriac-check"), b"")

    def anew(self) -> Self:
        return type(self)(self._app, timeout=self._timeout, kept=self._kept)

    def cut(self) -> None:
        connected = self._connected.made()
        if connected is None:
            return
        pool = connected.client.connection_pool
        pool.disconnect(inuse_connections=False)
        for connection in list(pool._in_use_connections):  # closed by the threads that read from them
            with contextlib.suppress(AttributeError, OSError):  # it is closed already
                connection._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        if (connected := self._connected.take()) is not None:
            connected.client.close()

    # — values —

    @property
    def _expires(self) -> int:
        return int(self._backend.expires or 0)

    def _lease(self, holder: str) -> bytes:
        return bytes_of(self._keys.lease(holder))

    def _meta(self, task_id: str, result: Any, state: str, request: Any = None) -> Any:
        """Return the value that Celery would store as the result."""
        meta = result_meta(self._backend, result, state, request)
        return self._backend.encode({**meta, "task_id": task_id})

    def _revoked(self, task_id: str) -> Any:
        revoked = self._backend.encode_result(TaskRevokedError("revoked"), states.REVOKED)
        return self._meta(task_id, revoked, states.REVOKED)

    # — the server —

    def _connect(self) -> Any:
        return self._connected.get().client

    def _script(self, text: str) -> Any:
        connected = self._connected.get()
        if text not in connected.scripts:
            connected.scripts[text] = connected.client.register_script(text)
        return connected.scripts[text]

    def _read_hashes(self, keys: Sequence[Any], fields: Sequence[str]) -> list[list[Any] | bytes | None]:
        """Return the fields of each key: None if the last of them is missing, text if the key is no hash."""
        stored: list[list[Any] | bytes | None] = []
        for start in range(0, len(keys), BATCH_SIZE):
            batch = keys[start : start + BATCH_SIZE]
            for key, reply in zip(batch, self._run(READ_HASHES, batch, fields), strict=True):
                if not isinstance(reply, list):
                    self._malformed.record(f"the key {text_of(key)}", text_of(reply))
                stored.append(None if isinstance(reply, list) and reply[-1] is None else reply)
        return stored

    def _run(self, script: str, keys: Sequence[Any], args: Sequence[Any]) -> Any:
        return self._script(script)(keys=keys, args=args)

    def _run_many(self, script: str, calls: Sequence[tuple[Sequence[Any], Sequence[Any]]]) -> list[Any]:
        """Run a script once for each call, in one round trip."""
        if not calls:
            return []
        registered = self._script(script)
        with self._connect().pipeline(transaction=False) as pipeline:
            for keys, args in calls:
                registered(keys=keys, args=args, client=pipeline)
            replies: list[Any] = pipeline.execute()
        return replies
