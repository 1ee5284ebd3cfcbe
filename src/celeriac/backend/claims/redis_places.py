"""Places of limits on Redis or Valkey: one script for each step, by the server's clock.

celeriac-limit-NAME:tasks          the tasks that hold a place, each with the time in ms until which it does
celeriac-limit-NAME:tasks:holders  those that a worker has taken until they end, with its lease and the delivery
celeriac-limit-NAME:tasks:waiting  the executors that were refused, with the times of their first and last request
celeriac-limit-executors           the note of each executor about its limits, after its time in ms

Each name has the prefix of the settings before it. A limit may have any name: so each kind of key has an end of its
own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec
from celery import Celery
from kombu.utils.encoding import bytes_to_str

from celeriac.backend.claims.place_use import NOTE_KEPT, LimitStatus, Note, PlacesOfLimit, limits_of
from celeriac.backend.claims.places import (
    KILLED_KEPT,
    POLL_INTERVAL,
    RESERVATION,
    TURN_KEPT,
    LeaveReason,
    TakeReply,
    clamp,
)
from celeriac.backend.per_process import PerProcess
from celeriac.backend.redis_client import make_client
from celeriac.broker.redis_keys import BackendKeys
from celeriac.executor.limit import PlaceRequest, Refusal

UNTIL_END = 1e15  # ms since the epoch; the same as in the scripts

COMMON = """
local asked = cjson.decode(ARGV[1])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local UNTIL_END = 1e15
local function fails(...)
    local reply = redis.pcall(...)
    return type(reply) == 'table' and reply.err
end
local prepared = {}
local function places(limit)
    local key = asked.prefix .. limit.name .. ':tasks'
    if not prepared[key] then
        prepared[key] = true
        if fails('ZCARD', key) then redis.call('DEL', key) end
        for _, part in ipairs({':holders', ':waiting'}) do
            if fails('HLEN', key .. part) then redis.call('DEL', key .. part) end
        end
        redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
    end
    return key
end
local function is_live(holder)
    local standing = redis.pcall('HGET', asked.leases .. holder, 'standing')
    return standing == 'live'
end
local function holder_of(taken)
    return string.match(taken, '^[^|]*')
end
local function free_dead(key)
    local holders, live = redis.call('HGETALL', key .. ':holders'), {}
    for i = 1, #holders, 2 do
        local holder = holder_of(holders[i + 1])
        if live[holder] == nil then live[holder] = is_live(holder) end
        if not live[holder] then
            redis.call('ZREM', key, holders[i])
            redis.call('HDEL', key .. ':holders', holders[i])
        end
    end
end
local function number_free(limit)
    local key = places(limit)
    local free = limit.number - redis.call('ZCARD', key)
    if free <= 0 and limit.period == 0 then
        free_dead(key)
        free = limit.number - redis.call('ZCARD', key)
    end
    return free
end
local function keep(key)
    if redis.call('EXISTS', key .. ':holders') == 1 then
        redis.call('PERSIST', key)
    else
        redis.call('PEXPIRE', key, 2 * 3600 * 1000)
    end
end
local function hold(key, id, score)
    local before = redis.call('ZSCORE', key, id)
    if not before or tonumber(before) < score then redis.call('ZADD', key, score, id) end
    keep(key)
end
"""

RESERVE = (
    COMMON
    + """
local function number_before(key)
    local waiting, number = redis.call('HGETALL', key .. ':waiting'), 0
    local own = redis.call('HGET', key .. ':waiting', asked.asker)
    local since = own and tonumber(string.match(own, '^[^|]*'))
    for i = 1, #waiting, 2 do
        local first, last = string.match(waiting[i + 1], '^([^|]*)|(.*)$')
        if now - tonumber(last) > asked.turn_kept then
            redis.call('HDEL', key .. ':waiting', waiting[i])
        elseif waiting[i] ~= asked.asker and (not since or tonumber(first) < since) then
            number = number + 1
        end
    end
    return number
end
local function wait(key)
    local own = redis.call('HGET', key .. ':waiting', asked.asker)
    local first = own and string.match(own, '^[^|]*') or string.format('%.0f', time[1] * 1e6 + time[2])
    redis.call('HSET', key .. ':waiting', asked.asker, first .. '|' .. string.format('%.0f', now))
    redis.call('PEXPIRE', key .. ':waiting', 2 * asked.turn_kept)
end
local function refusal_of(request)
    for i, limit in ipairs(request.limits) do
        local key = places(limit)
        if not redis.call('ZSCORE', key, request.id) and number_free(limit) <= number_before(key) then
            wait(key)
            local first = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
            local retry = first[2] and tonumber(first[2]) - now or 0
            return {request.id, i - 1, redis.call('ZCARD', key), string.format('%.0f', retry)}
        end
    end
end
for _, ended in ipairs(asked.ended) do
    for _, limit in ipairs(ended.limits) do
        local key = places(limit)
        if redis.call('ZSCORE', key, ended.id) and redis.call('HEXISTS', key .. ':holders', ended.id) == 0 then
            redis.call('ZREM', key, ended.id)
            if limit.period > 0 and ended.was_sent then hold(key, ended.id .. '|', now + limit.period) end
        end
    end
end
local refusals = {}
for _, request in ipairs(asked.requests) do
    local refusal = refusal_of(request)
    if refusal then
        table.insert(refusals, refusal)
    else
        for _, limit in ipairs(request.limits) do
            local key = places(limit)
            hold(key, request.id, now + asked.reservation)
            redis.call('HDEL', key .. ':waiting', asked.asker)
        end
    end
end
return refusals
"""
)

RENEW = (
    COMMON
    + """
for _, request in ipairs(asked.requests) do
    for _, limit in ipairs(request.limits) do
        local key = places(limit)
        if redis.call('ZSCORE', key, request.id) then hold(key, request.id, now + asked.reservation) end
    end
end
"""
)

TAKE = (
    COMMON
    + """
if not is_live(asked.holder) then return 'dead' end
local taken = asked.holder .. '|' .. asked.delivery
for _, limit in ipairs(asked.limits) do
    local key = places(limit)
    if limit.period == 0 then
        local before = redis.call('HGET', key .. ':holders', asked.id)
        if before and before ~= taken and is_live(holder_of(before)) then return 'held' end
    end
    local started = limit.period > 0 and redis.call('ZSCORE', key, asked.id .. '|' .. asked.delivery)
    if not started and not redis.call('ZSCORE', key, asked.id) and number_free(limit) <= 0 then return 'full' end
end
for _, limit in ipairs(asked.limits) do
    local key = places(limit)
    if limit.period == 0 then
        redis.call('HSET', key .. ':holders', asked.id, taken)
        hold(key, asked.id, UNTIL_END)
    else
        local started = asked.id .. '|' .. asked.delivery
        if not redis.call('ZSCORE', key, started) then redis.call('ZREM', key, asked.id) end
        hold(key, started, now + limit.period)
    end
end
return 'taken'
"""
)

LEAVE = (
    COMMON
    + """
local own = asked.holder .. '|' .. asked.delivery
local function is_own(taken)
    if taken and asked.reason == 'killed' then taken = string.sub(taken, 1, #own) end
    return taken == own
end
for _, limit in ipairs(asked.limits) do
    local key = places(limit)
    if limit.period > 0 then
        if asked.reason == 'not started' then redis.call('ZREM', key, asked.id .. '|' .. asked.delivery) end
    elseif is_own(redis.call('HGET', key .. ':holders', asked.id)) then
        redis.call('HDEL', key .. ':holders', asked.id)
        redis.call('ZREM', key, asked.id)
        if asked.reason == 'handed back' then hold(key, asked.id, now + asked.reservation) end
        if asked.reason == 'killed' then hold(key, asked.id .. '|' .. asked.delivery, now + asked.killed_kept) end
        keep(key)
    end
end
"""
)


ANNOUNCE = (
    COMMON
    + """
local key = asked.prefix .. 'executors'
if fails('HLEN', key) then redis.call('DEL', key) end
local notes = redis.call('HGETALL', key)
for i = 1, #notes, 2 do
    local at = tonumber(string.match(notes[i + 1], '^(%d+)|'))
    if not at or now - at > asked.note_kept then redis.call('HDEL', key, notes[i]) end
end
if asked.note == '' then
    redis.call('HDEL', key, asked.asker)
else
    redis.call('HSET', key, asked.asker, string.format('%.0f', now) .. '|' .. asked.note)
    redis.call('PEXPIRE', key, asked.note_kept)
end
"""
)

LIMITS_IN_USE = """
local prefix, note_kept = ARGV[1], tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local later = '(' .. string.format('%.0f', now)
local notes, places, seen = {}, {}, {}
local stored = redis.pcall('HVALS', prefix .. 'executors')
for _, entry in ipairs(stored.err and {} or stored) do
    local at, text = string.match(entry, '^(%d+)|(.*)$')
    local is_note, note = pcall(cjson.decode, text or '')
    if is_note and now - tonumber(at) <= note_kept then
        table.insert(notes, text)
        for _, limit in ipairs(note.limits) do
            local key = prefix .. limit[1] .. ':tasks'
            if not seen[key] then
                seen[key] = true
                local used = redis.pcall('ZCOUNT', key, later, '+inf')
                local first = redis.pcall('ZRANGEBYSCORE', key, later, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
                table.insert(places, {limit[1], type(used) == 'number' and used or 0, first[2] or ''})
            end
        end
    end
end
return {notes, places}
"""


class RedisPlaces:
    def __init__(self, app: Celery, *, timeout: float) -> None:
        """`timeout`, in seconds, bounds one operation."""
        self._backend = app.backend
        keys = BackendKeys(self._backend)
        self._shared = {
            "prefix": keys.limit(""),
            "leases": keys.lease(""),
            "turn_kept": milliseconds(TURN_KEPT),
            "killed_kept": milliseconds(KILLED_KEPT),
        }
        self.reservation = RESERVATION
        self._client = PerProcess(lambda: make_client(self._backend, timeout))
        self.errors = (OSError, *self._backend.connection_errors, *self._backend.channel_errors)

    def reserve(
        self, asker: str, requests: Sequence[PlaceRequest], ended: Sequence[tuple[PlaceRequest, bool]] = ()
    ) -> Mapping[str, Refusal]:
        values = {
            "asker": asker,
            "requests": [fields_of(request) for request in requests],
            "ended": [{**fields_of(request), "was_sent": was_sent} for request, was_sent in ended],
        }
        limits = {request.id: request.limits for request in requests}
        refusals = {}
        for task_id, place, taken, retry in self._run(RESERVE, values):
            task_id = bytes_to_str(task_id)
            limit = limits[task_id][place]
            retry_in = POLL_INTERVAL if limit.period is None else clamp(int(retry) / 1000)
            refusals[task_id] = Refusal(limit, taken, retry_in)
        return refusals

    def renew(self, requests: Sequence[PlaceRequest]) -> None:
        self._run(RENEW, {"requests": [fields_of(request) for request in requests]})

    def take(self, request: PlaceRequest, *, holder: str, delivery: str) -> TakeReply:
        values = {**fields_of(request), "holder": holder, "delivery": delivery}
        return TakeReply(bytes_to_str(self._run(TAKE, values)))

    def leave(self, request: PlaceRequest, *, holder: str, delivery: str, reason: LeaveReason) -> None:
        self._run(LEAVE, {**fields_of(request), "holder": holder, "delivery": delivery, "reason": reason})

    def holders(self, name: str) -> Collection[str]:
        members = self._client.get().zrange(f"{self._shared['prefix']}{name}:tasks", 0, -1)
        return {bytes_to_str(member) for member in members}

    def announce(self, asker: str, note: Note | None) -> None:
        text = "" if note is None else msgspec.json.encode(note).decode()
        self._run(ANNOUNCE, {"asker": asker, "note": text, "note_kept": milliseconds(NOTE_KEPT)})

    def limits_in_use(self) -> tuple[LimitStatus, ...]:
        return limits_in(self._client.get().eval(*limits_in_use_call(str(self._shared["prefix"]))))

    def close(self) -> None:
        if (client := self._client.take()) is not None:
            client.close()

    def _run(self, script: str, values: Mapping[str, Any]) -> Any:
        client = self._client.get()
        values = {**self._shared, "reservation": milliseconds(self.reservation), **values}
        return client.register_script(script)(args=[msgspec.json.encode(values)])


def limits_in_use_call(prefix: str) -> tuple[str, int, str, int]:
    """Return the arguments of EVAL for what `limits_in` decodes."""
    return LIMITS_IN_USE, 0, prefix, milliseconds(NOTE_KEPT)


def limits_in(reply: Any) -> tuple[LimitStatus, ...]:
    """Return the limits of a reply of the script."""
    notes, found = reply
    places = {}
    for name, used, first_end in found:
        end = float(first_end) if first_end else None
        places[bytes_to_str(name)] = PlacesOfLimit(used, None if end is None or end >= UNTIL_END else end / 1_000)
    return limits_of([msgspec.json.decode(note, type=Note) for note in notes], places)


def fields_of(request: PlaceRequest) -> dict[str, Any]:
    """Return a request as the scripts read it."""
    limits = [
        {"name": limit.name, "number": limit.number, "period": milliseconds(limit.period or 0)}
        for limit in request.limits
    ]
    return {"id": request.id, "limits": limits}


def milliseconds(seconds: float) -> int:
    return round(1000 * seconds)
