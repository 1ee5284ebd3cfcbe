"""Claims and leases: one suite for every store."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from celery import Celery, states
from msgspec.structs import replace
from redis import Redis

from celeriac.backend.claims import claims_for
from celeriac.backend.claims.claim import (
    CLAIM_KEPT,
    LEASE_KEPT,
    TOMBSTONE_KEPT,
    AlreadyClaimed,
    Claim,
    ClaimCancelled,
    Claims,
    DeclaredDead,
    Granted,
    Lease,
    LeaseState,
    Renewed,
    Superseded,
)
from celeriac.backend.claims.database import DatabaseClaims
from celeriac.backend.claims.memory import MemoryClaims
from celeriac.backend.claims.open import claim_kept
from celeriac.broker.app import make_app
from celeriac.server_errors import ServerProblem, is_server_error, problem_of
from tests.support.cli_runner import until
from tests.support.proxy import Proxy

pytestmark = [pytest.mark.celery, pytest.mark.filterwarnings("ignore:Call to deprecated setex")]  # by Celery

LEASE = Lease(holder="w1", name="one@here", host="here", pid=1, boot_id="b", queues=("default",), slots=4)


class Store:
    """A store with two clients, as two processes have them, and the state of a task's result in Celery."""

    def __init__(
        self, one: Claims, other: Claims, state_of: Callable[[str], str], set_state: Callable[[str, str], object]
    ) -> None:
        self.claims, self.other, self.state_of, self.set_state = one, other, state_of, set_state


@pytest.fixture(params=["memory", "redis", "valkey", "sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[Store]:
    if request.param == "memory":
        revoked: set[str] = set()
        claims = MemoryClaims(revoked.add)
        yield Store(
            claims,
            claims,
            lambda task_id: states.REVOKED if task_id in revoked else states.PENDING,
            lambda task_id, state: revoked.discard(task_id),
        )
        return
    match request.param:
        case "sqlite":
            url = f"db+sqlite:///{tmp_path}/results.db"
        case "postgres":
            url = request.getfixturevalue("postgres").url
        case kind:
            url = request.getfixturevalue(f"shared_{kind}").url
    with app_at(url) as app, claims_of(app) as one, claims_of(app) as other:
        yield Store(
            one,
            other,
            lambda task_id: app.backend.get_state(task_id),
            lambda task_id, state: app.backend.store_result(task_id, RuntimeError(state), state),
        )


def app_at(url: str) -> closing[Celery]:
    return closing(make_app(broker_url="memory://", result_backend=url))


def claims_of(app: Celery) -> closing[Any]:
    claims = claims_for(app, timeout=2.0)
    assert claims is not None
    return closing(claims)


@pytest.fixture
def task_id() -> str:
    return str(uuid4())


@pytest.fixture
def lease() -> Lease:
    return msgspec.structs.replace(LEASE, holder=uuid4().hex)


def claim(claims: Claims, task_id: str, holder: str, delivery: str = "d") -> Any:
    return claims.claim(task_id, holder=holder, delivery=delivery)


def test_the_first_claim_is_granted_and_the_others_get_its_holder(store, task_id):
    assert isinstance(claim(store.claims, task_id, "w1"), Granted)
    assert claim(store.other, task_id, "w2") == AlreadyClaimed("w1")
    assert claim(store.other, task_id, "w1", "another delivery") == AlreadyClaimed("w1")


def test_a_claim_for_the_same_delivery_gets_the_same_reply(store, task_id):
    first = claim(store.claims, task_id, "w1")
    assert claim(store.other, task_id, "w1") == first


def test_one_of_many_concurrent_claims_is_granted(store, task_id):
    replies = []
    barrier = threading.Barrier(8)

    def try_to_claim(n: int) -> None:
        barrier.wait()
        replies.append(claim(store.claims if n % 2 else store.other, task_id, f"w{n}"))

    threads = [threading.Thread(target=try_to_claim, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(reply, Granted) for reply in replies) == 1
    assert sum(isinstance(reply, AlreadyClaimed) for reply in replies) == 7


def test_tokens_grow(store, task_id):
    tokens = []
    for n in range(3):
        tokens.append(claim(store.claims, task_id, f"w{n}").token)
        store.claims.release(task_id, holder=f"w{n}")
    assert tokens == sorted(set(tokens))


def test_a_released_task_can_be_claimed_again(store, task_id):
    claim(store.claims, task_id, "w1")
    assert not store.claims.release(task_id, holder="w2")
    assert store.other.read([task_id])[task_id].holder == "w1"
    assert isinstance(claim(store.other, task_id, "w2"), AlreadyClaimed)
    assert store.claims.release(task_id, holder="w1")
    assert isinstance(claim(store.other, task_id, "w2"), Granted)


def test_a_release_that_is_repeated_gets_the_same_reply(store, task_id, lease):
    """The reply to the first one may have been lost. The task must not count as cancelled then."""
    claim(store.claims, task_id, "w1")
    assert store.claims.release(task_id, holder="w1")
    assert store.claims.release(task_id, holder="w1")
    claim(store.claims, task_id, lease.holder)
    store.other.cancel([task_id])
    assert not store.claims.release(task_id, holder=lease.holder)
    assert not store.claims.release(task_id, holder=lease.holder)


def test_started_is_stored_with_the_claim(store, task_id):
    store.claims.claim(task_id, holder="w1", delivery="d", started_info={"hostname": "one@here"})
    if not isinstance(store.claims, MemoryClaims):
        assert store.state_of(task_id) == states.STARTED


def test_a_task_cancelled_before_it_starts_is_revoked_and_never_starts(store, task_id):
    assert list(store.claims.cancel([task_id])) == [task_id]
    assert claim(store.other, task_id, "w1") == ClaimCancelled()
    assert store.state_of(task_id) == states.REVOKED
    assert list(store.other.cancel([task_id])) in ([], [task_id])


def test_a_running_task_is_cancelled_through_its_workers_lease(store, task_id, lease):
    claim(store.claims, task_id, lease.holder)
    assert list(store.other.cancel([task_id])) == []
    assert store.state_of(task_id) == states.PENDING
    running = msgspec.structs.replace(lease, running=(task_id,))
    assert store.claims.renew(running) == Renewed(cancelled=frozenset({task_id}))
    assert not store.claims.release(task_id, holder=lease.holder)
    assert store.other.read([task_id]) == {}
    assert claim(store.other, task_id, "w2") == ClaimCancelled()


def test_unless_started_leaves_started_tasks_running(store, task_id, lease):
    claim(store.claims, task_id, lease.holder)
    unstarted = str(uuid4())
    assert list(store.other.cancel([task_id, unstarted], unless_started=True)) == [unstarted]
    assert store.claims.renew(msgspec.structs.replace(lease, running=(task_id,))) == Renewed()


def hand_back(store: Store, task_id: str, holder: str) -> bool:
    """Release a claim as a worker does: its result says that the task waits again."""
    store.set_state(task_id, states.RETRY)
    return store.claims.release(task_id, holder=holder)


def test_a_task_that_was_handed_back_can_be_cancelled_unless_it_has_started_again(store, task_id):
    store.claims.claim(task_id, holder="w1", delivery="d", started_info={"hostname": "w1"})
    assert hand_back(store, task_id, "w1")
    assert store.other.cancel([task_id], unless_started=True) == [task_id]
    assert store.state_of(task_id) == states.REVOKED
    assert claim(store.claims, task_id, "w2") == ClaimCancelled()


def test_a_task_that_was_claimed_again_has_started(store, task_id):
    claim(store.claims, task_id, "w1")
    assert hand_back(store, task_id, "w1")
    claim(store.claims, task_id, "w2")
    assert store.other.cancel([task_id], unless_started=True) == []
    assert hand_back(store, task_id, "w2")
    assert isinstance(claim(store.claims, task_id, "w3"), Granted)


def test_a_task_that_was_cancelled_and_then_handed_back_is_revoked_by_the_next_cancel(store, task_id):
    claim(store.claims, task_id, "w1")
    assert store.other.cancel([task_id]) == []
    assert not hand_back(store, task_id, "w1")
    assert store.other.cancel([task_id], unless_started=True) == [task_id]
    assert store.state_of(task_id) == states.REVOKED
    assert claim(store.claims, task_id, "w2") == ClaimCancelled()


@pytest.mark.filterwarnings("ignore:Call to deprecated setex")
@pytest.mark.parametrize("kind", ["shared_redis", "sqlite"])
def test_a_task_that_a_worker_without_claims_has_started_is_not_revoked(request, tmp_path, task_id, kind):
    url = f"db+sqlite:///{tmp_path}/results.db" if kind == "sqlite" else request.getfixturevalue(kind).url
    with app_at(url) as app, claims_of(app) as claims:
        app.backend.store_result(task_id, {"hostname": "one@here"}, states.STARTED)
        assert list(claims.cancel([task_id], unless_started=True)) == []
        assert list(claims.cancel([task_id])) == []
        assert app.backend.get_state(task_id) == states.STARTED
        assert claim(claims, task_id, "w1") == ClaimCancelled()
        started, new = str(uuid4()), str(uuid4())
        app.backend.store_result(started, {"hostname": "one@here"}, states.STARTED)
        assert list(claims.cancel([started, new], unless_started=True)) == [new]
        assert isinstance(claim(claims, started, "w1"), Granted)
        assert str(app.backend.get_result(new)) == "revoked"


def test_executors_read_claims_and_leases(store, task_id, lease):
    assert store.other.read([task_id]) == {}
    token = claim(store.claims, task_id, lease.holder).token
    (stored,) = store.other.read([task_id, "another"]).values()
    assert (stored.id, stored.holder, stored.token, stored.fenced) == (task_id, lease.holder, token, False)
    store.claims.renew(lease)
    before = store.other.leases()[lease.holder]
    assert (before.lease, before.state) == (lease, LeaseState.LIVE)
    store.claims.renew(lease)
    assert store.other.leases()[lease.holder].heartbeat_count > before.heartbeat_count


def test_the_check_for_writes_leaves_no_lease(store, lease):
    store.claims.renew(lease)
    before = store.other.leases()
    store.claims.check_writable()
    store.other.check_writable()
    assert store.other.leases() == before


def test_the_check_for_writes_writes_to_a_database(tmp_path):
    database = tmp_path / "results.db"
    with app_at(f"db+sqlite:///{database}") as app, claims_of(app) as claims:
        for beat, check in enumerate((claims.check_writable, claims.check_writable, claims.check_rights), 1):
            check()
            with closing(sqlite3.connect(database)) as connection:
                assert connection.execute("SELECT beat FROM celeriac_lease").fetchall() == [(beat,)]


def test_a_store_that_refuses_writes_can_be_read_and_fails_the_check_for_writes(request, tmp_path, lease):
    redis, postgres = request.getfixturevalue("shared_redis"), request.getfixturevalue("postgres")
    for server in (redis, postgres):
        with app_at(server.url) as app, claims_of(app) as claims:
            claims.renew(lease)
            claims.check_writable()
            with server.read_only():
                assert lease.holder in claims.leases()
                with pytest.raises(Exception, match=r"(?i)read.only") as refusal:
                    claims.check_writable()
            assert problem_of(refusal.value) is ServerProblem.REFUSING


def test_an_ended_lease_is_gone(store, lease):
    store.claims.renew(lease)
    store.claims.end_lease(lease.holder)
    assert store.other.leases()[lease.holder].state is LeaseState.GONE
    assert store.other.declare_dead(lease.holder, None)
    store.claims.end_lease(lease.holder)
    assert store.other.leases()[lease.holder].state is LeaseState.DEAD
    unknown = uuid4().hex
    store.claims.end_lease(unknown)
    assert unknown not in store.other.leases()
    assert store.other.declare_dead(unknown, None)


def test_what_is_done_for_one_task_or_worker_changes_no_other(store, lease):
    one, another, third = (str(uuid4()) for _ in range(3))
    other_lease = replace(lease, holder=uuid4().hex)
    for task_id in (one, another, third):
        claim(store.claims, task_id, lease.holder)
    assert store.claims.release(one, holder=lease.holder)
    assert set(store.other.read([one, another, third])) == {another, third}
    store.other.cancel([another])
    assert not store.claims.release(another, holder=lease.holder)
    assert set(store.other.read([another, third])) == {third}
    store.claims.renew(other_lease)
    store.claims.renew(replace(lease, number=7))
    dead, gone = replace(lease, holder=uuid4().hex), replace(lease, holder=uuid4().hex)
    store.claims.renew(dead)
    store.claims.renew(gone)
    assert store.other.declare_dead(dead.holder, store.other.leases()[other_lease.holder].heartbeat_count)
    store.claims.end_lease(gone.holder)
    assert list(store.other.fence(list(store.other.read([third]).values()))) == [third]
    record = store.other.leases()[other_lease.holder]
    assert (record.lease, record.state) == (other_lease, LeaseState.LIVE)
    assert store.claims.renew(replace(other_lease, running=(one,))) == Renewed()


def test_a_worker_that_has_renewed_since_is_not_declared_dead(store, task_id, lease):
    store.claims.renew(lease)
    count = store.other.leases()[lease.holder].heartbeat_count
    store.claims.renew(lease)
    assert not store.other.declare_dead(lease.holder, count)
    assert not store.other.declare_dead(lease.holder, None)
    assert store.other.declare_dead(lease.holder, store.other.leases()[lease.holder].heartbeat_count)
    assert store.other.declare_dead(lease.holder, count)
    assert store.claims.renew(lease) == DeclaredDead()
    assert store.other.leases()[lease.holder].state is LeaseState.DEAD
    assert store.other.leases()[lease.holder].heartbeat_count > count


def test_a_worker_whose_first_two_renewals_meet_is_not_dead(lease, tmp_path, monkeypatch):
    with app_at(f"db+sqlite:///{tmp_path}/results.db") as app, claims_of(app) as claims, claims_of(app) as other:
        run = claims._run
        has_met: list[Any] = []

        def run_late(statement: Any) -> Any:
            if statement.is_insert and not has_met:
                has_met.append(other.renew(lease))
            return run(statement)

        monkeypatch.setattr(claims, "_run", run_late)
        assert (claims.renew(lease), has_met) == (Renewed(), [Renewed()])
        assert claims.leases()[lease.holder].heartbeat_count == 2


def test_a_worker_that_was_declared_dead_gets_no_claim(store, task_id, lease):
    store.claims.renew(lease)
    assert store.other.declare_dead(lease.holder, store.other.leases()[lease.holder].heartbeat_count)
    assert claim(store.claims, task_id, lease.holder) == Superseded()
    assert store.other.read([task_id]) == {}
    assert isinstance(claim(store.other, task_id, "w2"), Granted)


def test_a_refused_claim_of_a_dead_worker_releases_none_of_its_others(store, task_id, lease):
    claim(store.claims, task_id, lease.holder)
    store.claims.renew(lease)
    assert store.other.declare_dead(lease.holder, store.other.leases()[lease.holder].heartbeat_count)
    assert claim(store.claims, str(uuid4()), lease.holder) == Superseded()
    assert list(store.other.fence(list(store.other.read([task_id]).values()))) == [task_id]


def test_a_worker_without_a_lease_can_be_declared_dead(store, lease):
    assert store.other.declare_dead(lease.holder, None)
    assert store.claims.renew(lease) == DeclaredDead()


def test_a_fenced_task_cannot_be_claimed_again(store, task_id, lease):
    claim(store.claims, task_id, lease.holder)
    (stored,) = store.other.read([task_id]).values()
    assert list(store.other.fence([stored])) == [task_id]
    assert list(store.other.fence([stored])) == [task_id]
    claim(store.claims, another := str(uuid4()), lease.holder)
    assert list(store.other.fence(list(store.other.read([another]).values()))) == [another]
    assert claim(store.claims, task_id, "w2") == Superseded()
    assert claim(store.claims, task_id, lease.holder) == Superseded()
    assert not store.claims.release(task_id, holder=lease.holder)
    running = msgspec.structs.replace(lease, running=(task_id,))
    assert store.claims.renew(running) == Renewed(fenced=frozenset({task_id}))


def test_a_worker_learns_that_another_one_has_the_claim_of_its_task(store, task_id, lease):
    claim(store.claims, task_id, "w2")
    running = replace(lease, running=(task_id,))
    assert store.other.renew(running) == Renewed(fenced=frozenset({task_id}))
    store.claims.cancel([task_id])
    assert store.other.renew(running) == Renewed(fenced=frozenset({task_id}))


def test_a_worker_without_a_lease_is_not_declared_dead_by_a_count(store, lease):
    assert not store.other.declare_dead(lease.holder, 1)
    assert isinstance(store.claims.renew(lease), Renewed)


def test_of_no_claims_none_is_fenced(store, task_id):
    assert list(store.claims.fence([])) == []
    assert list(store.claims.fence([Claim(task_id, "w1", 1)])) == []
    assert isinstance(claim(store.claims, task_id, "w1"), Granted)


def test_a_result_is_revoked_once_in_memory():
    revoked: list[str] = []
    claims = MemoryClaims(revoked.append)
    assert [claims.cancel(["t"]), claims.cancel(["t"])] == [["t"], []]
    assert revoked == ["t"]


def test_memory_forgets_tasks_that_have_no_message():
    claims = MemoryClaims()
    claim(claims, "claimed", "w1")
    claims.cancel(["cancelled"])
    tasks = ("claimed", "cancelled", "unknown")
    assert [claims.knows(task) for task in tasks] == [True, True, False]
    claims.forget(["claimed", "unknown"])
    assert [claims.knows(task) for task in tasks] == [False, True, False]
    assert isinstance(claim(claims.anew(), "claimed", "w2"), Granted)


def test_a_claim_replaced_by_another_worker_is_not_fenced(store, task_id):
    claim(store.claims, task_id, "w1")
    (stored,) = store.other.read([task_id]).values()
    store.claims.release(task_id, holder="w1")
    claim(store.claims, task_id, "w2")
    assert list(store.other.fence([stored])) == []
    assert list(store.other.fence([replace(stored, holder="w2")])) == [task_id]


def test_tombstones_are_kept_longer_than_claims(shared_redis, task_id):
    with app_at(shared_redis.url) as app, claims_of(app) as claims, closing(Redis(port=shared_redis.port)) as client:
        claim(claims, task_id, "w1")
        ttl = {"claimed": client.ttl(f"celeriac-claim-{task_id}")}
        claims.fence(list(claims.read([task_id]).values()))
        ttl["fenced"] = client.ttl(f"celeriac-claim-{task_id}")
        other = str(uuid4())
        claims.cancel([other])
        ttl["cancelled"] = client.ttl(f"celeriac-claim-{other}")
    assert CLAIM_KEPT - 60 < ttl["claimed"] <= CLAIM_KEPT < TOMBSTONE_KEPT - 60 <= min(ttl["fenced"], ttl["cancelled"])


def test_those_who_wait_for_a_result_learn_of_a_start_and_of_a_cancellation(shared_redis, task_id):
    other = str(uuid4())
    with (
        app_at(shared_redis.url) as app,
        claims_of(app) as claims,
        closing(Redis(port=shared_redis.port)) as client,
        client.pubsub() as subscription,
    ):
        subscription.subscribe(f"celery-task-meta-{task_id}", f"celery-task-meta-{other}")
        assert [subscription.get_message(timeout=30)["type"] for _ in range(2)] == ["subscribe"] * 2
        claims.claim(task_id, holder="w1", delivery="d", started_info={"hostname": "one@here"})
        claims.cancel([other])
        told = [msgspec.json.decode(subscription.get_message(timeout=30)["data"]) for _ in range(2)]
    assert [(each["task_id"], each["status"]) for each in told] == [(task_id, states.STARTED), (other, states.REVOKED)]


def test_a_renewal_keeps_the_claims_of_running_tasks(shared_redis, task_id, lease):
    with app_at(shared_redis.url) as app, claims_of(app) as claims, closing(Redis(port=shared_redis.port)) as client:
        claim(claims, task_id, lease.holder)
        kept = client.ttl(f"celeriac-claim-{task_id}")
        client.expire(f"celeriac-claim-{task_id}", 60)
        claims.renew(replace(lease, running=(task_id,)))
        assert client.ttl(f"celeriac-claim-{task_id}") >= kept - 60


def test_a_lease_expires_after_the_last_sign_of_its_worker(shared_redis, task_id, lease):
    key = f"celeriac-lease-{lease.holder}"
    with app_at(shared_redis.url) as app, claims_of(app) as claims, closing(Redis(port=shared_redis.port)) as client:
        for call in (
            lambda: claims.renew(lease),
            lambda: claim(claims, task_id, lease.holder),
            lambda: claims.declare_dead(lease.holder, claims.leases()[lease.holder].heartbeat_count),
        ):
            call()
            assert LEASE_KEPT - 60 < client.ttl(key) <= LEASE_KEPT
            client.persist(key)
        other = uuid4().hex
        assert claims.declare_dead(other, None)
        assert LEASE_KEPT - 60 < client.ttl(f"celeriac-lease-{other}") <= LEASE_KEPT


def test_a_claim_is_kept_longer_than_the_visibility_timeout_of_its_broker():
    week = 7 * 24 * 3600
    app = make_app(
        broker_url="redis://h", result_backend="redis://h", broker_transport_options={"visibility_timeout": week}
    )
    assert claim_kept(app) > week


def test_a_database_keeps_running_tasks_and_tombstones_and_deletes_old_claims(tmp_path, lease):
    now, database = time.time(), tmp_path / "results.db"
    with app_at(f"db+sqlite:///{database}") as app, claims_of(app) as claims:
        claims.renew(lease)
        for name, holder in (("ended", "w1"), ("running", lease.holder), ("fenced", "w1")):
            claim(claims, name, holder)
        claims.fence(list(claims.read(["fenced"]).values()))
        claims.cancel(["cancelled"])
        for after, left in (
            (CLAIM_KEPT - 60, {"ended", "running", "fenced", "cancelled"}),
            (CLAIM_KEPT + 60, {"running", "fenced", "cancelled"}),
            (TOMBSTONE_KEPT + 60, {"running"}),
        ):
            with pytest.MonkeyPatch.context() as patch, closing(cleaner(app)) as cleaning_claims:
                patch.setattr("celeriac.backend.claims.database.time.time", lambda after=after: now + after)
                claims.renew(lease)
                cleaning_claims.renew(lease)
            assert stored_ids(database) == left


def cleaner(app: Celery) -> DatabaseClaims:
    """Return claims that delete expired rows with each renewal."""
    return DatabaseClaims(app, timeout=2.0, cleaning_interval=0.0)


def stored_ids(database: Path) -> set[str]:
    with closing(sqlite3.connect(database)) as connection:
        return {task_id for (task_id,) in connection.execute("SELECT task_id FROM celeriac_claim")}


@pytest.mark.parametrize("kind", ["shared_redis", "postgres"])
def test_a_call_without_a_reply_ends_when_its_connections_are_cut(request, lease, kind):
    server = request.getfixturevalue(kind)
    with (
        Proxy(server.port) as proxy,
        app_at(server.url.replace(f":{server.port}/", f":{proxy.port}/")) as app,
        claims_of(app) as claims,
        closing(claims.anew()) as others,
        ThreadPoolExecutor(1) as pool,
    ):
        assert claims.renew(lease) == Renewed()
        proxy.swallow()
        renewal = pool.submit(claims.renew, lease)
        until(lambda: (claims.cut(), renewal.done())[1], "the end of the renewal")
        error = renewal.exception()
        assert error is not None
        assert is_server_error(error)
        proxy.heal()
        assert claims.renew(lease) == Renewed()
        assert others.renew(lease) == Renewed()


@pytest.mark.parametrize("kind", ["shared_redis", "postgres"])
def test_a_check_of_rights_fails_as_a_renewal_would_and_leaves_no_lease(request, lease, kind):
    server = request.getfixturevalue(kind)
    with app_at(server.url) as app, claims_of(app) as claims:
        claims.check_rights()
        before = claims.leases()
        with server.read_only():
            for call in (claims.check_rights, lambda: claims.renew(lease)):
                with pytest.raises(Exception, match=r"(?i)read.only") as refusal:
                    call()
                assert is_server_error(refusal.value)
        assert claims.leases() == before


def test_the_age_of_a_heartbeat_starts_again_with_each_renewal(store):
    assert store.claims.heartbeat_ages([]) == {}
    store.claims.renew(LEASE)
    ages = store.other.heartbeat_ages(["w1", "unknown"])
    if isinstance(store.claims, MemoryClaims):
        assert ages == {}
    else:
        assert list(ages) == ["w1"]
        assert 0 <= ages["w1"] < 10
