"""Claims and leases in a database: two tables beside Celery's own, and one statement for each step that must be atomic.

celeriac_claim  a row for each task that was claimed or called back; gone a day later
celeriac_lease  a row for each worker
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec
from celery import Celery, states
from celery.exceptions import TaskRevokedError
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Engine,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    and_,
    case,
    delete,
    false,
    insert,
    inspect,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.exc import DatabaseError, IntegrityError, SQLAlchemyError

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
    LeaseState,
    Renewed,
    Superseded,
)

CHUNK = 500  # ids in one statement
CLEANING = 3600.0  # seconds between two looks for rows that nobody needs

TABLES = MetaData()
CLAIMS = Table(
    "celeriac_claim",
    TABLES,
    Column("token", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("task_id", String(255), nullable=False, unique=True),
    Column("holder", String(64)),
    Column("delivery", String(64)),
    Column("cancelled", Boolean, nullable=False, default=False),
    Column("fenced", Boolean, nullable=False, default=False),
    Column("at", Float(53), nullable=False),
    sqlite_autoincrement=True,  # else it would give the number of a deleted row again
)
LEASES = Table(
    "celeriac_lease",
    TABLES,
    Column("holder", String(64), primary_key=True),
    Column("beat", BigInteger, nullable=False),
    Column("standing", String(8), nullable=False),
    Column("content", Text),
    Column("at", Float(53), nullable=False),
)


class DatabaseClaims:
    errors: tuple[type[Exception], ...] = (SQLAlchemyError, OSError)

    def __init__(self, app: Celery, make_engine: Callable[[], Engine], *, kept: int = CLAIM_KEPT) -> None:
        """An engine is made when it is first needed. `kept`, in seconds, is how long a claim is kept at least."""
        self._backend, self._make_engine, self._kept = app.backend, make_engine, kept
        self._engines: dict[int, Engine] = {}
        self._has_seen_tables = False
        self._next_cleaning = time.monotonic() + CLEANING

    def claim(
        self, task_id: str, *, holder: str, delivery: str, place: Mapping[str, Any] | None = None, request: Any = None
    ) -> ClaimReply:
        row = {"task_id": task_id, "holder": holder, "delivery": delivery, "at": time.time()}
        try:
            token = self._run(insert(CLAIMS).values(**row)).inserted_primary_key[0]
        except IntegrityError:
            found = self._run(select(CLAIMS).where(CLAIMS.c.task_id == task_id)).one_or_none()
            if found is None:  # given back or called back this moment
                return self.claim(task_id, holder=holder, delivery=delivery, place=place, request=request)
            if found.fenced:
                return Superseded()
            if found.holder is None:
                return ClaimCancelled()
            if (found.holder, found.delivery) != (holder, delivery):
                return AlreadyClaimed(found.holder)
            token = found.token
        if place is not None:
            self._backend.store_result(task_id, dict(place), states.STARTED, request=request)
        return Granted(token)

    def release(self, task_id: str, *, holder: str) -> bool:
        its = and_(CLAIMS.c.task_id == task_id, CLAIMS.c.holder == holder, CLAIMS.c.fenced == false())
        if self._run(delete(CLAIMS).where(its, CLAIMS.c.cancelled == false())).rowcount:
            return True
        self._run(update(CLAIMS).where(its).values(holder=None, delivery=None))
        return False

    def renew(self, lease: Lease) -> Renewed | DeclaredDead:
        self._clean()
        said = {
            "content": msgspec.json.encode(lease).decode(),
            "standing": LeaseState.LIVE,
            "at": time.time(),
        }
        its = and_(LEASES.c.holder == lease.holder, LEASES.c.standing != LeaseState.DEAD)
        if not self._run(update(LEASES).where(its).values(beat=LEASES.c.beat + 1, **said)).rowcount:
            try:
                self._run(insert(LEASES).values(holder=lease.holder, beat=1, **said))
            except IntegrityError:
                return DeclaredDead()
        cancelled: set[str] = set()
        fenced: set[str] = set()
        for chunk in chunks(lease.running):
            told = select(CLAIMS).where(
                CLAIMS.c.task_id.in_(chunk),
                or_(CLAIMS.c.cancelled == true(), CLAIMS.c.fenced == true(), CLAIMS.c.holder != lease.holder),
            )
            for row in self._run(told).all():
                is_ours = row.holder in (None, lease.holder) and not row.fenced
                (cancelled if is_ours else fenced).add(row.task_id)
        return Renewed(frozenset(cancelled), frozenset(fenced))

    def end_lease(self, holder: str) -> None:
        its = and_(LEASES.c.holder == holder, LEASES.c.standing != LeaseState.DEAD)
        self._run(update(LEASES).where(its).values(standing=LeaseState.GONE))

    def leases(self) -> Mapping[str, LeaseRecord]:
        return {
            row.holder: LeaseRecord(
                None if row.content is None else msgspec.json.decode(row.content, type=Lease),
                row.beat,
                LeaseState(row.standing),
            )
            for row in self._run(select(LEASES).where(is_recent(time.time()))).all()
        }

    def read(self, ids: Sequence[str]) -> Mapping[str, Claim]:
        claims = {}
        for chunk in chunks(ids):
            for row in self._run(select(CLAIMS).where(CLAIMS.c.task_id.in_(chunk), CLAIMS.c.holder.is_not(None))).all():
                claims[row.task_id] = Claim(row.task_id, row.holder, row.token, row.cancelled, row.fenced)
        return claims

    def declare_dead(self, holder: str, beat: int | None) -> bool:
        dead = {"standing": LeaseState.DEAD, "at": time.time()}
        its = and_(LEASES.c.holder == holder, or_(LEASES.c.beat == beat, LEASES.c.standing != LeaseState.LIVE))
        if self._run(update(LEASES).where(its).values(beat=LEASES.c.beat + 1, **dead)).rowcount:
            return True
        if beat is not None:
            return False
        try:
            self._run(insert(LEASES).values(holder=holder, beat=1, **dead))
        except IntegrityError:
            return False
        return True

    def fence(self, claims: Sequence[Claim]) -> Collection[str]:
        fenced: list[str] = []
        for holder in {claim.holder for claim in claims}:
            ids = [claim.id for claim in claims if claim.holder == holder]
            for chunk in chunks(ids):
                its = and_(CLAIMS.c.task_id.in_(chunk), CLAIMS.c.holder == holder)
                self._run(update(CLAIMS).where(its).values(fenced=True))
                now = select(CLAIMS.c.task_id).where(its, CLAIMS.c.fenced == true())
                fenced += self._run(now).scalars()
        return fenced

    def cancel(self, ids: Sequence[str], *, unless_started: bool = False) -> Collection[str]:
        cancelled = []
        for task_id in ids:
            if unless_started and self._has_begun(task_id):
                continue
            try:
                self._run(insert(CLAIMS).values(task_id=task_id, cancelled=True, at=time.time()))
            except IntegrityError:
                if not unless_started:
                    self._run(update(CLAIMS).where(CLAIMS.c.task_id == task_id).values(cancelled=True))
                continue
            if not self._has_begun(task_id):
                self._backend.store_result(task_id, TaskRevokedError("revoked"), states.REVOKED)
                cancelled.append(task_id)
        return cancelled

    def close(self) -> None:
        if (engine := self._engines.pop(os.getpid(), None)) is not None:
            engine.dispose()

    def _has_begun(self, task_id: str) -> bool:
        """On a worker that claims nothing."""
        results = self._backend.task_cls.__table__
        try:
            found = self._run(select(results.c.status).where(results.c.task_id == task_id)).scalars().all()
        except DatabaseError:
            if inspect(self._engine).has_table(results.name, schema=results.schema):
                raise
            return False  # nothing was stored yet
        return any(status != states.PENDING for status in found)

    def _clean(self) -> None:
        if time.monotonic() < self._next_cleaning:
            return
        self._next_cleaning = time.monotonic() + CLEANING
        now = time.time()
        self._run(delete(LEASES).where(LEASES.c.at < now - self._kept))
        at_work = select(LEASES.c.holder).where(LEASES.c.standing == LeaseState.LIVE, LEASES.c.at >= now - LEASE_KEPT)
        is_tombstone = or_(CLAIMS.c.holder.is_(None), CLAIMS.c.fenced == true())
        is_nobodys = or_(CLAIMS.c.holder.is_(None), CLAIMS.c.holder.not_in(at_work))
        is_old = case((is_tombstone, CLAIMS.c.at < now - TOMBSTONE_KEPT), else_=CLAIMS.c.at < now - self._kept)
        self._run(delete(CLAIMS).where(is_nobodys, is_old))

    def _run(self, statement: Any) -> Any:
        """In a transaction of its own, of one statement. Makes the tables when they are not there."""
        were_there = self._has_seen_tables
        try:
            return self._execute(statement)
        except IntegrityError:
            raise
        except DatabaseError as error:
            if error.connection_invalidated or (not self._make_missing_tables() and were_there):
                raise
            self._has_seen_tables = True
            return self._execute(statement)

    def _make_missing_tables(self) -> bool:
        """Whether any was missing."""
        if not self._missing_tables():
            return False
        for is_last in (False, False, True):  # somebody else may be making them, one after the other
            try:
                TABLES.create_all(self._engine)
                break
            except DatabaseError:
                if is_last and self._missing_tables():
                    raise
        return True

    def _missing_tables(self) -> bool:
        inspector = inspect(self._engine)
        return not all(inspector.has_table(table.name) for table in (CLAIMS, LEASES))

    def _execute(self, statement: Any) -> Any:
        with self._engine.connect() as connection:
            result = connection.execute(statement)
            return result.freeze()() if statement.is_select else result

    @property
    def _engine(self) -> Engine:
        """One for each process: what a child inherits is its parent's. Several threads may come for it at once."""
        made = self._engines.get(os.getpid())
        if made is None:
            new = self._make_engine().execution_options(isolation_level="AUTOCOMMIT")
            made = self._engines.setdefault(os.getpid(), new)
        return made


def is_recent(now: float) -> Any:
    """Of a worker that has been gone for long nobody wants to hear with every look."""
    return or_(LEASES.c.standing == LeaseState.LIVE, LEASES.c.at >= now - LEASE_KEPT)


def chunks(ids: Sequence[str]) -> list[Sequence[str]]:
    return [ids[n : n + CHUNK] for n in range(0, len(ids), CHUNK)]
