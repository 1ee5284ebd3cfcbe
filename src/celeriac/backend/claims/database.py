"""Claims and leases in a database: two tables beside Celery's own, and one statement for each step that must be atomic.

celeriac_claim  a row for each task that was claimed or cancelled; deleted about a day later
celeriac_lease  a row for each worker
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Self
from weakref import WeakSet

import msgspec
from celery import Celery, states
from celery.exceptions import TaskRevokedError
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
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
from celeriac.backend.claims.stored import LeaseDecoder, MalformedLog, decode_claim, storable, text_of
from celeriac.backend.results.database import engine_per_process, make_missing_tables
from celeriac.broker.sockets import shut_down

BATCH_SIZE = 500  # ids in one statement
WRITE_CHECK = "celeriac-writable"
"""The holder in a row that is written to find out whether the database accepts writes."""

CLEANING_INTERVAL = 3600.0  # seconds between two deletions of expired rows

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
    sqlite_autoincrement=True,  # else SQLite would use the number of a deleted row again
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

    def __init__(
        self, app: Celery, *, timeout: float, kept: int = CLAIM_KEPT, cleaning_interval: float = CLEANING_INTERVAL
    ) -> None:
        """All arguments are in seconds. `timeout` bounds one operation. A claim is kept for at least `kept`. A renewal
        deletes expired rows if `cleaning_interval` has passed since the last deletion.
        """
        self._app, self._backend, self._timeout, self._kept = app, app.backend, timeout, kept
        self._cleaning_interval = cleaning_interval
        self._engine = engine_per_process(self._backend, timeout, self._note_connection)
        self._connections: WeakSet[Any] = WeakSet()
        """The connections of the driver, also those that a call is using."""

        self._has_tables = False
        self._decoder = LeaseDecoder(MalformedLog())
        self._next_cleaning = time.monotonic() + cleaning_interval

    def claim(
        self,
        task_id: str,
        *,
        holder: str,
        delivery: str,
        started_info: Mapping[str, Any] | None = None,
        request: Any = None,
    ) -> ClaimReply:
        row = {"task_id": task_id, "holder": holder, "delivery": delivery, "at": time.time()}
        try:
            token = self._run(insert(CLAIMS).values(**row)).inserted_primary_key[0]
        except IntegrityError:
            claim = self._run(select(CLAIMS).where(CLAIMS.c.task_id == task_id)).one_or_none()
            if claim is None:  # released or deleted between the two statements
                return self.claim(task_id, holder=holder, delivery=delivery, started_info=started_info, request=request)
            if claim.fenced:
                return Superseded()
            if claim.holder is None:
                return ClaimCancelled()
            if (claim.holder, claim.delivery) != (holder, delivery):
                return AlreadyClaimed(claim.holder)
            token = claim.token
        if self._is_dead(holder):  # what it claims now may escape those who look for its claims
            mine = and_(CLAIMS.c.task_id == task_id, CLAIMS.c.holder == holder, CLAIMS.c.fenced == false())
            self._run(delete(CLAIMS).where(mine))
            return Superseded()
        if started_info is not None:
            self._backend.store_result(task_id, dict(started_info), states.STARTED, request=request)
        return Granted(token)

    def _is_dead(self, holder: str) -> bool:
        is_dead = and_(LEASES.c.holder == holder, LEASES.c.standing == LeaseState.DEAD)
        return self._run(select(LEASES.c.holder).where(is_dead)).first() is not None

    def release(self, task_id: str, *, holder: str) -> bool:
        is_held = and_(CLAIMS.c.task_id == task_id, CLAIMS.c.holder == holder, CLAIMS.c.fenced == false())
        if self._run(delete(CLAIMS).where(is_held, CLAIMS.c.cancelled == false())).rowcount:
            return True
        if self._run(update(CLAIMS).where(is_held).values(holder=None, delivery=None)).rowcount:
            return False
        return self._run(select(CLAIMS.c.task_id).where(CLAIMS.c.task_id == task_id)).first() is None

    def renew(self, lease: Lease) -> Renewed | DeclaredDead:
        self._clean()
        lease = storable(lease)
        content = msgspec.json.encode(lease).decode()
        renewed = {"content": content, "standing": LeaseState.LIVE, "at": time.time()}
        may_renew = and_(LEASES.c.holder == lease.holder, LEASES.c.standing != LeaseState.DEAD)
        renewal = update(LEASES).where(may_renew).values(beat=LEASES.c.beat + 1, **renewed)
        if not self._run(renewal).rowcount:
            try:
                self._run(insert(LEASES).values(holder=lease.holder, beat=1, **renewed))
            except IntegrityError:  # another renewal of this worker was as fast, or the worker is dead
                if not self._run(renewal).rowcount:
                    return DeclaredDead()
        return self._changes(lease)

    def end_lease(self, holder: str) -> None:
        is_alive = and_(LEASES.c.holder == holder, LEASES.c.standing != LeaseState.DEAD)
        self._run(update(LEASES).where(is_alive).values(standing=LeaseState.GONE))

    def leases(self) -> Mapping[str, LeaseRecord]:
        columns = (LEASES.c.holder, LEASES.c.content, LEASES.c.beat, LEASES.c.standing)
        rows = self._run(select(*columns).where(is_recent(time.time()))).all()
        return self._decoder.decode((text_of(holder), values) for holder, *values in rows)

    def heartbeat_ages(self, holders: Sequence[str]) -> Mapping[str, float]:
        now = time.time()
        times = select(LEASES.c.holder, LEASES.c.at).where(LEASES.c.holder.in_(holders))
        return {text_of(row.holder): max(0.0, now - row.at) for row in self._run(times).all()}

    def check_writable(self) -> None:
        is_check = LEASES.c.holder == WRITE_CHECK
        if not self._run(update(LEASES).where(is_check).values(beat=LEASES.c.beat + 1)).rowcount:
            row = {"holder": WRITE_CHECK, "beat": 1, "standing": LeaseState.GONE, "at": 0.0}  # too old for `leases`
            with contextlib.suppress(IntegrityError):  # another process has just inserted it
                self._run(insert(LEASES).values(**row))

    def read(self, ids: Sequence[str]) -> Mapping[str, Claim]:
        claims = {}
        for batch in batches(ids):
            for row in self._run(select(CLAIMS).where(CLAIMS.c.task_id.in_(batch), CLAIMS.c.holder.is_not(None))).all():
                claims[row.task_id] = decode_claim(row.task_id, row.token, row.cancelled, row.fenced, row.holder)
        return claims

    def declare_dead(self, holder: str, heartbeat_count: int | None) -> bool:
        dead = {"standing": LeaseState.DEAD, "at": time.time()}
        is_unrenewed = or_(LEASES.c.beat == heartbeat_count, LEASES.c.standing != LeaseState.LIVE)
        lease = and_(LEASES.c.holder == holder, is_unrenewed)
        if self._run(update(LEASES).where(lease).values(beat=LEASES.c.beat + 1, **dead)).rowcount:
            return True
        if heartbeat_count is not None:
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
            for batch in batches(ids):
                is_held = and_(CLAIMS.c.task_id.in_(batch), CLAIMS.c.holder == holder)
                self._run(update(CLAIMS).where(is_held).values(fenced=True))
                fenced += self._run(select(CLAIMS.c.task_id).where(is_held, CLAIMS.c.fenced == true())).scalars()
        return fenced

    def cancel(self, ids: Sequence[str], *, unless_started: bool = False) -> Collection[str]:
        cancelled = []
        for task_id in ids:
            if unless_started and self._has_started(task_id):
                continue
            if self._cancel_claim(task_id, unless_started=unless_started) and not self._has_started(task_id):
                self._backend.store_result(task_id, TaskRevokedError("revoked"), states.REVOKED)
                cancelled.append(task_id)
        return cancelled

    def _cancel_claim(self, task_id: str, *, unless_started: bool) -> bool:
        """Cancel the claim of a task. Return whether the task can never be claimed: it is cancelled, and not held."""
        while True:
            try:
                self._run(insert(CLAIMS).values(task_id=task_id, cancelled=True, at=time.time()))
            except IntegrityError:
                pass
            else:
                return True
            if not unless_started:
                self._run(update(CLAIMS).where(CLAIMS.c.task_id == task_id).values(cancelled=True))
            claim = self._run(select(CLAIMS).where(CLAIMS.c.task_id == task_id)).one_or_none()
            if claim is not None and (claim.cancelled or unless_started):
                return bool(claim.cancelled) and claim.holder is None
            # It was released between two statements: try again.

    def check_rights(self) -> None:
        self.check_writable()

    def anew(self) -> Self:
        claims = type(self)(
            self._app, timeout=self._timeout, kept=self._kept, cleaning_interval=self._cleaning_interval
        )
        claims._has_tables = self._has_tables
        return claims

    def cut(self) -> None:
        if (engine := self._engine.made()) is not None:
            for connection in list(self._connections):
                with contextlib.suppress(Exception):  # a driver may not tell its socket; then its timeout ends a call
                    shut_down(connection.fileno())
            engine.dispose()

    def close(self) -> None:
        if (engine := self._engine.take()) is not None:
            engine.dispose()

    def _changes(self, lease: Lease) -> Renewed:
        """Return the running tasks of a lease that were cancelled, and the running tasks that its worker has lost."""
        cancelled: set[str] = set()
        fenced: set[str] = set()
        for batch in batches(lease.running):
            changed = or_(CLAIMS.c.cancelled == true(), CLAIMS.c.fenced == true(), CLAIMS.c.holder != lease.holder)
            for row in self._run(select(CLAIMS).where(CLAIMS.c.task_id.in_(batch), changed)).all():
                is_owner = row.holder in (None, lease.holder) and not row.fenced
                (cancelled if is_owner else fenced).add(row.task_id)
        return Renewed(frozenset(cancelled), frozenset(fenced))

    def _has_started(self, task_id: str) -> bool:
        """Return whether the task has a result, other than that it was handed back. Only the result shows that a worker
        without claims has started it."""
        results = self._backend.task_cls.__table__
        try:
            stored = self._run(select(results.c.status).where(results.c.task_id == task_id)).scalars().all()
        except DatabaseError:
            if inspect(self._engine.get()).has_table(results.name, schema=results.schema):
                raise
            return False  # Celery has stored no result yet
        return any(status not in (states.PENDING, states.RETRY) for status in stored)

    def _clean(self) -> None:
        """Delete expired rows if `cleaning_interval` has passed."""
        if time.monotonic() < self._next_cleaning:
            return
        self._next_cleaning = time.monotonic() + self._cleaning_interval
        now = time.time()
        self._run(delete(LEASES).where(LEASES.c.at < now - self._kept))
        live = select(LEASES.c.holder).where(LEASES.c.standing == LeaseState.LIVE, LEASES.c.at >= now - LEASE_KEPT)
        is_tombstone = or_(CLAIMS.c.holder.is_(None), CLAIMS.c.fenced == true())
        is_unheld = or_(CLAIMS.c.holder.is_(None), CLAIMS.c.holder.not_in(live))
        is_old = case((is_tombstone, CLAIMS.c.at < now - TOMBSTONE_KEPT), else_=CLAIMS.c.at < now - self._kept)
        self._run(delete(CLAIMS).where(is_unheld, is_old))

    def _run(self, statement: Any) -> Any:
        """Execute one statement in its own transaction. Create the tables if they are missing."""
        had_tables = self._has_tables
        try:
            return self._execute(statement)
        except IntegrityError:
            raise
        except DatabaseError as error:
            if error.connection_invalidated or (not make_missing_tables(self._engine.get(), TABLES) and had_tables):
                raise
            self._has_tables = True
            return self._execute(statement)

    def _execute(self, statement: Any) -> Any:
        with self._engine.get().connect() as connection:
            result = connection.execute(statement)
            return result.freeze()() if statement.is_select else result

    def _note_connection(self, connection: Any, _: Any) -> None:
        with contextlib.suppress(TypeError):  # one of SQLite has no weak references, and no socket
            self._connections.add(connection)


def is_recent(now: float) -> Any:
    """Return the condition that selects live leases, and ended leases younger than `LEASE_KEPT`."""
    return or_(LEASES.c.standing == LeaseState.LIVE, LEASES.c.at >= now - LEASE_KEPT)


def batches(ids: Sequence[str]) -> list[Sequence[str]]:
    return [ids[n : n + BATCH_SIZE] for n in range(0, len(ids), BATCH_SIZE)]
