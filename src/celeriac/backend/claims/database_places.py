"""Places of limits in a database: a row for each limit, which is locked while it is changed, by the server's clock.

celeriac_limit           the places of a limit as JSON
celeriac_limit_executor  the note of an executor about its limits, as JSON
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar

import msgspec
from celery import Celery
from sqlalchemy import (
    Column,
    Connection,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    delete,
    insert,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.mysql import LONGTEXT
from sqlalchemy.exc import DatabaseError, IntegrityError, SQLAlchemyError

from celeriac.backend.claims.claim import LeaseState
from celeriac.backend.claims.database import LEASES
from celeriac.backend.claims.place_state import UNTIL_END, Moment, State
from celeriac.backend.claims.place_use import NOTE_KEPT, LimitStatus, Note, PlacesOfLimit, limits_of
from celeriac.backend.claims.places import RESERVATION, LeaveReason, TakeReply
from celeriac.backend.per_process import PerProcess
from celeriac.backend.results.database import make_engine, make_missing_tables
from celeriac.executor.limit import Limit, PlaceRequest, Refusal

TABLES = MetaData()
LIMITS = Table(
    "celeriac_limit",
    TABLES,
    Column("name", String(255), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("state", Text().with_variant(LONGTEXT, "mysql", "mariadb"), nullable=False),
    Column("at", Float(53), nullable=False),
)
EXECUTORS = Table(
    "celeriac_limit_executor",
    TABLES,
    Column("asker", String(64), primary_key=True),
    Column("at", Float(53), nullable=False),
    Column("note", Text().with_variant(LONGTEXT, "mysql", "mariadb"), nullable=False),
)
KEPT = 2 * 3600  # seconds after its last change that a row is kept; longer than the window of any rate
CLEANING_INTERVAL = 3600.0  # seconds between two deletions of old rows

CLOCKS = {
    "postgresql": "SELECT extract(epoch FROM clock_timestamp())",
    "mysql": "SELECT unix_timestamp(sysdate(6))",
    "mariadb": "SELECT unix_timestamp(sysdate(6))",
}
"""Statements for the present time. SQLite has no server: all its clients are on one machine."""

MAX_TRIES = 100  # attempts to change rows that others change at the same time

T = TypeVar("T")
decode = msgspec.json.Decoder(State).decode


class ChangedMeanwhile(Exception):
    """Another client has changed a row since it was read."""


class DatabasePlaces:
    errors: tuple[type[Exception], ...] = (SQLAlchemyError, OSError)

    def __init__(self, app: Celery, *, timeout: float) -> None:
        """`timeout`, in seconds, bounds one operation."""
        backend = app.backend
        self.reservation = RESERVATION
        self._engine = PerProcess(lambda: make_engine(backend, timeout))
        self._next_cleaning = time.monotonic() + CLEANING_INTERVAL

    def reserve(
        self, asker: str, requests: Sequence[PlaceRequest], ended: Sequence[tuple[PlaceRequest, bool]] = ()
    ) -> Mapping[str, Refusal]:
        all_requests = [*requests, *(request for request, _ in ended)]
        return self._change(all_requests, lambda moment: moment.reserve(asker, requests, ended))

    def renew(self, requests: Sequence[PlaceRequest]) -> None:
        self._change(requests, lambda moment: moment.renew(requests))
        if time.monotonic() >= self._next_cleaning:
            self._next_cleaning = time.monotonic() + CLEANING_INTERVAL
            self.clean()

    def clean(self) -> None:
        """Delete the rows of limits without a change for long, and without a worker that has a place."""
        with self._engine.get().begin() as connection:
            is_old = LIMITS.c.at < now_of(connection) - KEPT
            connection.execute(delete(LIMITS).where(is_old, LIMITS.c.state.like('%"holders":{}%')))

    def take(self, request: PlaceRequest, *, holder: str, delivery: str) -> TakeReply:
        return self._change([request], lambda moment: moment.take(request, holder, delivery), holder)

    def leave(self, request: PlaceRequest, *, holder: str, delivery: str, reason: LeaveReason) -> None:
        self._change([request], lambda moment: moment.leave(request, holder, delivery, reason))

    def holders(self, name: str) -> Collection[str]:
        request = PlaceRequest("", (Limit(name, 1),))
        return self._change([request], lambda moment: set(moment.states[name].until))

    def announce(self, asker: str, note: Note | None) -> None:
        def store(connection: Connection) -> None:
            now = now_of(connection)
            is_old = EXECUTORS.c.at < now - NOTE_KEPT
            connection.execute(delete(EXECUTORS).where(or_(EXECUTORS.c.asker == asker, is_old)))
            if note is not None:
                text_of_note = msgspec.json.encode(note).decode()
                connection.execute(insert(EXECUTORS).values(asker=asker, at=now, note=text_of_note))

        self._with_tables(store)

    def limits_in_use(self) -> tuple[LimitStatus, ...]:
        return self._with_tables(read_limits)

    def _with_tables(self, call: Callable[[Connection], T]) -> T:
        """Return the result of a transaction. Make missing tables first."""
        try:
            with self._engine.get().begin() as connection:
                return call(connection)
        except DatabaseError as error:
            if error.connection_invalidated or not make_missing_tables(self._engine.get(), TABLES):
                raise
        with self._engine.get().begin() as connection:
            return call(connection)

    def close(self) -> None:
        if (engine := self._engine.take()) is not None:
            engine.dispose()

    def _change(self, requests: Sequence[PlaceRequest], change: Callable[[Moment], T], *holders: str) -> T:
        """Change the rows of limits in one transaction. Return what `change` returns."""
        names = sorted({limit.name for request in requests for limit in request.limits})
        for tries in range(MAX_TRIES):
            try:
                with self._engine.get().begin() as connection:
                    return self._try(connection, names, change, holders)
            except (ChangedMeanwhile, IntegrityError):
                time.sleep(0.002 * min(tries, 10))  # no event tells that the other transaction has ended
            except DatabaseError as error:
                if error.connection_invalidated or not make_missing_tables(self._engine.get(), TABLES):
                    raise
        raise TimeoutError("others change the same limits all the time")

    def _try(
        self, connection: Connection, names: Sequence[str], change: Callable[[Moment], T], holders: Collection[str]
    ) -> T:
        query = select(LIMITS).where(LIMITS.c.name.in_(names)).order_by(LIMITS.c.name).with_for_update()
        rows = {row.name: row for row in connection.execute(query)}
        states = {name: decode(rows[name].state) if name in rows else State() for name in names}
        live = live_leases(
            connection, {*holders, *(holder for s in states.values() for holder, _ in s.holders.values())}
        )
        moment = Moment(states, now_of(connection), live.__contains__, self.reservation)
        reply = change(moment)
        for name, state in states.items():
            row = rows.get(name)
            values = {"state": msgspec.json.encode(state).decode(), "at": moment.now}
            if row is None:
                connection.execute(insert(LIMITS).values(name=name, version=1, **values))
            elif values["state"] != row.state:
                is_read = (LIMITS.c.name == name, LIMITS.c.version == row.version)
                if not connection.execute(
                    update(LIMITS).where(*is_read).values(version=row.version + 1, **values)
                ).rowcount:
                    raise ChangedMeanwhile
        return reply


def read_limits(connection: Connection) -> tuple[LimitStatus, ...]:
    """Return the limits of all executors."""
    now = now_of(connection)
    texts = connection.execute(select(EXECUTORS.c.note).where(EXECUTORS.c.at >= now - NOTE_KEPT)).scalars()
    notes = [msgspec.json.decode(each, type=Note) for each in texts]
    names = {name for note in notes for name, *_ in note.limits}
    places = {}
    for row in connection.execute(select(LIMITS.c.name, LIMITS.c.state).where(LIMITS.c.name.in_(names))):
        ends = [until for until in decode(row.state).until.values() if until > now]
        places[row.name] = PlacesOfLimit(len(ends), min((end for end in ends if end < UNTIL_END), default=None))
    return limits_of(notes, places)


def live_leases(connection: Connection, holders: Collection[str]) -> set[str]:
    """Return those leases that are live."""
    if not holders:
        return set()
    query = select(LEASES.c.holder).where(LEASES.c.holder.in_(holders), LEASES.c.standing == LeaseState.LIVE)
    return set(connection.execute(query).scalars())


def now_of(connection: Connection) -> float:
    """Return the server's time: not that of the begin of the transaction, which may have waited for a lock."""
    statement = CLOCKS.get(connection.dialect.name)
    return time.time() if statement is None else float(connection.execute(text(statement)).scalar_one())
