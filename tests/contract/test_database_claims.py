"""Claims and leases in a database: rows that expire, many ids, and statements of another process in between."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from celery import Celery, states
from sqlalchemy.exc import OperationalError

from celeriac.backend.claims import database
from celeriac.backend.claims.claim import (
    LEASE_KEPT,
    TOMBSTONE_KEPT,
    AlreadyClaimed,
    ClaimCancelled,
    DeclaredDead,
    Granted,
    Lease,
    LeaseState,
    Renewed,
    Superseded,
)
from celeriac.backend.claims.database import BATCH_SIZE, DatabaseClaims
from celeriac.backend.results.database import make_missing_tables
from celeriac.broker.app import make_app
from celeriac.testing import ManualClock

pytestmark = pytest.mark.celery

KEPT = 10_000  # seconds; longer than a lease is kept
INTERVAL = 20_000.0  # seconds between two deletions of expired rows


def lease_of(holder: str, **fields: Any) -> Lease:
    return Lease(holder=holder, name=holder, host="h", pid=1, boot_id="", queues=("q",), slots=1, **fields)


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Celery]:
    with closing(make_app(broker_url="memory://", result_backend=f"db+sqlite:///{tmp_path}/results.db")) as app:
        yield app


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> ManualClock:
    clock = ManualClock(1_000_000.0)
    monkeypatch.setattr(database, "time", SimpleNamespace(time=clock, monotonic=clock))
    return clock


def claims_at(app: Celery, **options: Any) -> closing[DatabaseClaims]:
    return closing(DatabaseClaims(app, timeout=2.0, **options))


@pytest.fixture
def claims(app: Celery) -> Iterator[DatabaseClaims]:
    with claims_at(app) as claims:
        yield claims


@pytest.fixture
def other(app: Celery) -> Iterator[DatabaseClaims]:
    """Return the claims of another process."""
    with claims_at(app) as claims:
        yield claims


def claim(claims: DatabaseClaims, task_id: str, holder: str) -> Any:
    return claims.claim(task_id, holder=holder, delivery="d")


def fence(claims: DatabaseClaims, task_id: str) -> None:
    assert claims.fence(list(claims.read([task_id]).values())) == [task_id]


@pytest.fixture
def before(monkeypatch: pytest.MonkeyPatch) -> Callable[[DatabaseClaims, str, Callable[[], object]], None]:
    """Return what lets another process do something just before a statement: the first one of a kind."""

    def let(claims: DatabaseClaims, kind: str, do: Callable[[], object]) -> None:
        run = claims._run
        done: list[object] = []

        def run_late(statement: Any) -> Any:
            if getattr(statement, f"is_{kind}") and not done:
                done.append(do)
                do()
            return run(statement)

        monkeypatch.setattr(claims, "_run", run_late)

    return let


def path_of(app: Celery) -> str:
    return str(app.conf.result_backend.partition(":///")[2])


def rows(app: Celery, table: str, column: str) -> set[str]:
    with closing(sqlite3.connect(path_of(app))) as connection:
        return {value for (value,) in connection.execute(f"SELECT {column} FROM {table}")}


def tasks(app: Celery) -> set[str]:
    return rows(app, "celeriac_claim", "task_id")


# — rows that expire —


def test_expired_rows_are_deleted_when_the_interval_has_passed_and_not_before(app, clock, claims):
    with claims_at(app, kept=KEPT, cleaning_interval=INTERVAL) as cleaner:
        for _ in range(2):
            claim(claims, "ended", "w1")
            claims.renew(lease_of("w1"))
            clock.advance(INTERVAL - 1)
            cleaner.renew(lease_of("w2"))
            assert (tasks(app), rows(app, "celeriac_lease", "holder")) == ({"ended"}, {"w1", "w2"})
            clock.advance(1)
            cleaner.renew(lease_of("w2"))
            assert (tasks(app), rows(app, "celeriac_lease", "holder")) == (set(), {"w2"})


def test_a_claim_is_kept_while_it_is_new_or_its_worker_is_live(app, clock):
    with claims_at(app, kept=KEPT) as claims, claims_at(app, kept=KEPT, cleaning_interval=0.0) as cleaner:
        for holder in ("live", "silent", "gone", "none"):
            claim(claims, f"of {holder}", holder)
        claims.renew(lease_of("old"))
        clock.advance(KEPT + 1 - LEASE_KEPT)
        for holder in ("live", "silent", "gone"):
            claims.renew(lease_of(holder))
        claims.end_lease("gone")
        clock.advance(LEASE_KEPT - 1)
        cleaner.renew(lease_of("another"))
        assert tasks(app) == {"of live", "of silent", "of gone", "of none"}
        assert "old" in rows(app, "celeriac_lease", "holder")
        clock.advance(1)
        cleaner.renew(lease_of("another"))
        assert tasks(app) == {"of live", "of silent"}
        assert rows(app, "celeriac_lease", "holder") == {"live", "silent", "gone", "another"}
        claims.renew(lease_of("live"))
        claim(claims, "new", "none")
        clock.advance(1)
        cleaner.renew(lease_of("another"))
        assert tasks(app) == {"of live", "new"}


def test_what_must_never_start_is_kept_for_longest(app, clock):
    with claims_at(app, kept=KEPT, cleaning_interval=0.0) as claims:
        claims.cancel(["cancelled"])
        claim(claims, "fenced", "w1")
        fence(claims, "fenced")
        clock.advance(TOMBSTONE_KEPT)
        claims.renew(lease_of("another"))
        assert tasks(app) == {"cancelled", "fenced"}
        clock.advance(1)
        claims.renew(lease_of("another"))
        assert tasks(app) == set()


def test_a_live_lease_is_returned_and_another_one_only_for_a_while(claims, clock):
    for holder in ("live", "gone", "dead"):
        claims.renew(lease_of(holder))
    claims.end_lease("gone")
    clock.advance(LEASE_KEPT)
    assert set(claims.leases()) == {"live", "gone", "dead"}
    assert claims.declare_dead("dead", claims.leases()["dead"].heartbeat_count)
    assert claims.declare_dead("unknown", None)
    clock.advance(1)
    assert set(claims.leases()) == {"live", "dead", "unknown"}
    clock.advance(LEASE_KEPT)
    assert set(claims.leases()) == {"live"}


def test_the_age_of_a_heartbeat_is_never_negative(claims, clock):
    claims.renew(lease_of("w1"))
    clock.advance(5)
    claims.renew(lease_of("w2"))
    clock.advance(2)
    assert claims.heartbeat_ages(["w1", "w2"]) == {"w1": 7, "w2": 2}
    clock.advance(-6)
    assert claims.heartbeat_ages(["w1", "w2"]) == {"w1": 1, "w2": 0}


def test_a_declaration_of_death_is_counted_as_a_change_of_the_lease(claims):
    claims.renew(lease_of("w1"))
    before = claims.leases()["w1"].heartbeat_count
    assert claims.declare_dead("w1", before)
    assert claims.declare_dead("unknown", None)
    counts = {holder: record.heartbeat_count for holder, record in claims.leases().items()}
    assert counts == {"w1": before + 1, "unknown": 1}


# — many ids —


def test_more_claims_than_one_statement_takes_are_read_told_and_fenced(app, claims):
    ids = tuple(f"t{number}" for number in range(2 * BATCH_SIZE + 1))
    claims.renew(lease_of("w1"))
    with closing(sqlite3.connect(path_of(app))) as connection:
        statement = (
            "INSERT INTO celeriac_claim (task_id, holder, delivery, cancelled, fenced, at) VALUES (?, ?, ?, ?, ?, 1e12)"
        )
        connection.executemany(statement, [(task_id, "w1", "d", 0, 0) for task_id in ids])
        connection.execute(statement, ("other", "w2", "d", 0, 0))
        connection.commit()
    assert set(claims.read([*ids, "other"])) == {*ids, "other"}
    some = {ids[0], ids[BATCH_SIZE], ids[-1]}
    claims.cancel(sorted(some))
    assert claims.renew(lease_of("w1", running=ids)) == Renewed(cancelled=frozenset(some))
    assert set(claims.fence(list(claims.read([*ids, "other"]).values()))) == {*ids, "other"}
    assert claims.renew(lease_of("w1", running=ids)) == Renewed(fenced=frozenset(ids))


# — statements of another process in between —


def test_a_task_that_is_released_while_another_worker_claims_it_is_granted(claims, other, before):
    claim(other, "t", "w1")
    before(claims, "select", lambda: other.release("t", holder="w1"))
    assert isinstance(claim(claims, "t", "w2"), Granted)


def test_a_claim_that_is_fenced_while_its_dead_worker_makes_it_stays_fenced(claims, other, before):
    def declare_dead() -> None:
        assert other.declare_dead("w1", None)
        fence(other, "t")

    before(claims, "select", declare_dead)
    assert claim(claims, "t", "w1") == Superseded()
    assert claim(claims, "t", "w2") == Superseded()


def test_a_dead_worker_leaves_the_claim_of_the_worker_that_was_faster(claims, other, before):
    def replace_claim() -> None:
        assert other.release("t", holder="w1")
        assert isinstance(claim(other, "t", "w2"), Granted)

    assert other.declare_dead("w1", None)
    before(claims, "delete", replace_claim)
    assert claim(claims, "t", "w1") == Superseded()
    assert claim(claims, "t", "w3") == AlreadyClaimed("w2")


def test_a_worker_that_gets_a_lease_meanwhile_is_not_declared_dead(claims, other, before):
    before(claims, "insert", lambda: other.renew(lease_of("w1")))
    assert not claims.declare_dead("w1", None)
    assert claims.leases()["w1"].state is LeaseState.LIVE


def test_a_worker_that_is_declared_dead_during_its_first_renewal_learns_of_it(claims, other, before):
    before(claims, "insert", lambda: other.declare_dead("w1", None))
    assert claims.renew(lease_of("w1")) == DeclaredDead()


def test_a_claim_that_is_made_while_the_one_before_it_is_fenced_is_not_fenced(claims, other, before):
    assert isinstance(claim(other, "t", "w1"), Granted)
    (stale,) = other.read(["t"]).values()
    assert other.release("t", holder="w1")
    before(claims, "select", lambda: claim(other, "t", "w1"))
    assert claims.fence([stale]) == []


def test_a_cancelled_task_whose_result_was_deleted_is_revoked_again(app, claims):
    assert claims.cancel(["t"]) == ["t"]
    app.backend.forget("t")
    assert claims.cancel(["t"], unless_started=True) == ["t"]
    assert app.backend.get_state("t") == states.REVOKED


def test_a_task_that_is_released_while_it_is_cancelled_is_revoked(app, claims, other, before):
    claim(other, "t", "w1")
    before(claims, "update", lambda: other.release("t", holder="w1"))
    assert claims.cancel(["t"]) == ["t"]
    assert claim(other, "t", "w2") == ClaimCancelled()
    assert app.backend.get_state("t") == states.REVOKED


def test_a_task_that_is_claimed_again_while_it_is_cancelled_is_cancelled_at_its_worker(claims, other, before):
    claim(other, "t", "w1")
    before(claims, "select", lambda: claim(other, "t", "w2"))
    before(claims, "update", lambda: other.release("t", holder="w1"))
    assert claims.cancel(["t"]) == []
    assert other.renew(lease_of("w2", running=("t",))) == Renewed(cancelled=frozenset({"t"}))


# — tables —


def test_tables_that_were_removed_are_made_again(app, claims):
    claims.renew(lease_of("w1"))
    with closing(sqlite3.connect(path_of(app))) as connection:
        connection.executescript("DROP TABLE celeriac_lease; DROP TABLE celeriac_claim")
    assert claims.renew(lease_of("w1", running=("t",))) == Renewed()
    assert claims.leases()["w1"].lease == lease_of("w1", running=("t",))
    with claims_at(app) as new, closing(new.anew()) as again:
        assert again.leases() == claims.leases()


def test_tables_that_another_process_makes_at_the_same_time_are_used(app, claims, monkeypatch):
    def make_late(engine: Any, tables: Any) -> bool:
        make_missing_tables(engine, tables)
        return make_missing_tables(engine, tables)

    monkeypatch.setattr(database, "make_missing_tables", make_late)
    assert claims.renew(lease_of("w1")) == Renewed()


def test_a_task_is_not_cancelled_if_its_result_cannot_be_read(app, claims):
    claim(claims, "claimed", "w1")
    app.backend.store_result("t", {}, states.STARTED)
    with closing(sqlite3.connect(path_of(app))) as connection:
        connection.execute("ALTER TABLE celery_taskmeta RENAME COLUMN status TO another")
    with pytest.raises(OperationalError):
        claims.cancel(["t"], unless_started=True)
    assert tasks(app) == {"claimed"}


# — connections —


def test_connections_are_closed_when_they_are_cut_and_at_the_end(app, claims):
    def connections() -> list[str]:
        return [file.path for file in psutil.Process().open_files() if file.path == path_of(app)]

    claims.cut()
    for end in (claims.cut, claims.cut, claims.close):
        claims.check_writable()
        assert connections()
        end()
        assert not connections()
