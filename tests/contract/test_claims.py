"""Claims and leases: one suite over every store. Each answer is one that another worker or executor would get too."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from celery import Celery, states
from redis import Redis
from sqlalchemy import select

from celeriac.backend.claims import claims_for
from celeriac.backend.claims.claim import (
    CLAIM_KEPT,
    TOMBSTONE_KEPT,
    AlreadyClaimed,
    ClaimCancelled,
    Claims,
    DeclaredDead,
    Granted,
    Lease,
    LeaseState,
    Renewed,
    Superseded,
)
from celeriac.backend.claims.database import CLAIMS
from celeriac.backend.claims.memory import MemoryClaims
from celeriac.backend.claims.open import claim_kept
from celeriac.broker.app import make_app

pytestmark = pytest.mark.celery

LEASE = Lease(holder="w1", name="one@here", host="here", pid=1, boot_id="b", queues=("default",), slots=4)


class Store:
    """`claims` twice, as two processes have it, and what Celery says of a task's result."""

    def __init__(self, one: Claims, other: Claims, state_of: Callable[[str], str]) -> None:
        self.claims, self.other, self.state_of = one, other, state_of


@pytest.fixture(params=["memory", "redis", "valkey", "sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[Store]:
    if request.param == "memory":
        revoked: set[str] = set()
        claims = MemoryClaims(revoked.add)
        yield Store(claims, claims, lambda task_id: states.REVOKED if task_id in revoked else states.PENDING)
        return
    match request.param:
        case "sqlite":
            url = f"db+sqlite:///{tmp_path}/results.db"
        case "postgres":
            url = request.getfixturevalue("postgres").url
        case kind:
            url = request.getfixturevalue(f"shared_{kind}").url
    with app_at(url) as app, claims_of(app) as one, claims_of(app) as other:
        yield Store(one, other, lambda task_id: app.backend.get_state(task_id))


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


def claimed(claims: Claims, task_id: str, holder: str, delivery: str = "d") -> Any:
    return claims.claim(task_id, holder=holder, delivery=delivery)


def test_the_first_may_go_and_everybody_else_is_told_who_has_it(store, task_id):
    assert isinstance(claimed(store.claims, task_id, "w1"), Granted)
    assert claimed(store.other, task_id, "w2") == AlreadyClaimed("w1")
    assert claimed(store.other, task_id, "w1", "another delivery") == AlreadyClaimed("w1")


def test_asked_again_for_the_same_delivery_the_answer_is_the_same(store, task_id):
    first = claimed(store.claims, task_id, "w1")
    assert claimed(store.other, task_id, "w1") == first


def test_of_many_at_once_one_may_go(store, task_id):
    answers = []
    barrier = threading.Barrier(8)

    def ask(n: int) -> None:
        barrier.wait()
        answers.append(claimed(store.claims if n % 2 else store.other, task_id, f"w{n}"))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(answer, Granted) for answer in answers) == 1
    assert sum(isinstance(answer, AlreadyClaimed) for answer in answers) == 7


def test_tokens_grow(store, task_id):
    tokens = []
    for n in range(3):
        tokens.append(claimed(store.claims, task_id, f"w{n}").token)
        store.claims.release(task_id, holder=f"w{n}")
    assert tokens == sorted(set(tokens))


def test_what_was_given_back_may_be_claimed_anew(store, task_id):
    claimed(store.claims, task_id, "w1")
    assert not store.claims.release(task_id, holder="w2")
    assert isinstance(claimed(store.other, task_id, "w2"), AlreadyClaimed)
    assert store.claims.release(task_id, holder="w1")
    assert isinstance(claimed(store.other, task_id, "w2"), Granted)


def test_the_beginning_is_stored_with_the_claim(store, task_id):
    store.claims.claim(task_id, holder="w1", delivery="d", started_info={"hostname": "one@here"})
    if not isinstance(store.claims, MemoryClaims):
        assert store.state_of(task_id) == states.STARTED


def test_what_was_called_back_before_it_started_never_starts_and_is_revoked(store, task_id):
    assert list(store.claims.cancel([task_id])) == [task_id]
    assert claimed(store.other, task_id, "w1") == ClaimCancelled()
    assert store.state_of(task_id) == states.REVOKED
    assert list(store.other.cancel([task_id])) in ([], [task_id])


def test_what_runs_is_called_back_through_its_workers_lease(store, task_id, lease):
    claimed(store.claims, task_id, lease.holder)
    assert list(store.other.cancel([task_id])) == []
    assert store.state_of(task_id) == states.PENDING
    running = msgspec.structs.replace(lease, running=(task_id,))
    assert store.claims.renew(running) == Renewed(cancelled=frozenset({task_id}))
    assert not store.claims.release(task_id, holder=lease.holder)
    assert claimed(store.other, task_id, "w2") == ClaimCancelled()


def test_what_has_started_goes_on_if_only_the_rest_is_called_back(store, task_id, lease):
    claimed(store.claims, task_id, lease.holder)
    waiting = str(uuid4())
    assert list(store.other.cancel([task_id, waiting], unless_started=True)) == [waiting]
    assert store.claims.renew(msgspec.structs.replace(lease, running=(task_id,))) == Renewed()


def test_executors_read_claims_and_leases(store, task_id, lease):
    assert store.other.read([task_id]) == {}
    token = claimed(store.claims, task_id, lease.holder).token
    (claim,) = store.other.read([task_id, "another"]).values()
    assert (claim.id, claim.holder, claim.token, claim.fenced) == (task_id, lease.holder, token, False)
    store.claims.renew(lease)
    before = store.other.leases()[lease.holder]
    assert (before.lease, before.state) == (lease, LeaseState.LIVE)
    store.claims.renew(lease)
    assert store.other.leases()[lease.holder].heartbeat_count > before.heartbeat_count


def test_a_goodbye_is_seen(store, lease):
    store.claims.renew(lease)
    store.claims.end_lease(lease.holder)
    assert store.other.leases()[lease.holder].state is LeaseState.GONE


def test_a_worker_is_declared_dead_only_if_it_has_not_renewed_since(store, task_id, lease):
    store.claims.renew(lease)
    seen = store.other.leases()[lease.holder].heartbeat_count
    store.claims.renew(lease)
    assert not store.other.declare_dead(lease.holder, seen)
    assert not store.other.declare_dead(lease.holder, None)
    assert store.other.declare_dead(lease.holder, store.other.leases()[lease.holder].heartbeat_count)
    assert store.other.declare_dead(lease.holder, seen)
    assert store.claims.renew(lease) == DeclaredDead()
    assert store.other.leases()[lease.holder].state is LeaseState.DEAD


def test_one_that_has_no_lease_can_be_declared_dead_too(store, lease):
    assert store.other.declare_dead(lease.holder, None)
    assert store.claims.renew(lease) == DeclaredDead()


def test_what_a_dead_worker_had_claimed_cannot_be_claimed_again(store, task_id, lease):
    claimed(store.claims, task_id, lease.holder)
    (claim,) = store.other.read([task_id]).values()
    assert list(store.other.fence([claim])) == [task_id]
    assert list(store.other.fence([claim])) == [task_id]
    assert claimed(store.claims, task_id, "w2") == Superseded()
    assert claimed(store.claims, task_id, lease.holder) == Superseded()
    assert not store.claims.release(task_id, holder=lease.holder)
    running = msgspec.structs.replace(lease, running=(task_id,))
    assert store.claims.renew(running) == Renewed(fenced=frozenset({task_id}))


def test_what_another_has_claimed_since_is_not_fenced_off(store, task_id):
    claimed(store.claims, task_id, "w1")
    (claim,) = store.other.read([task_id]).values()
    store.claims.release(task_id, holder="w1")
    claimed(store.claims, task_id, "w2")
    assert list(store.other.fence([claim])) == []
    assert list(store.other.fence([replace(claim, holder="w2")])) == [task_id]


def test_what_is_never_to_start_is_remembered_longer_than_what_has_started(shared_redis, task_id):
    with app_at(shared_redis.url) as app, claims_of(app) as claims, closing(Redis(port=shared_redis.port)) as client:
        claimed(claims, task_id, "w1")
        lives = {"claimed": client.ttl(f"celeriac-claim-{task_id}")}
        claims.fence(list(claims.read([task_id]).values()))
        lives["fenced"] = client.ttl(f"celeriac-claim-{task_id}")
        other = str(uuid4())
        claims.cancel([other])
        lives["called back"] = client.ttl(f"celeriac-claim-{other}")
    assert lives["claimed"] <= CLAIM_KEPT < TOMBSTONE_KEPT - 60 <= min(lives["fenced"], lives["called back"])


def test_a_claim_outlasts_the_visibility_timeout_of_its_broker():
    week = 7 * 24 * 3600
    app = make_app(
        broker_url="redis://h", result_backend="redis://h", broker_transport_options={"visibility_timeout": week}
    )
    assert claim_kept(app) > week


def test_a_database_forgets_what_has_ended_and_keeps_what_runs_and_what_must_never_start(tmp_path, lease):
    now = time.time()
    with app_at(f"db+sqlite:///{tmp_path}/results.db") as app, claims_of(app) as claims:
        claims.renew(lease)
        for name, holder in (("ended", "w1"), ("runs", lease.holder), ("fenced", "w1")):
            claimed(claims, name, holder)
        claims.fence(list(claims.read(["fenced"]).values()))
        claims.cancel(["called back"])
        for after, left in ((CLAIM_KEPT - 60, 4), (CLAIM_KEPT + 60, 3), (TOMBSTONE_KEPT + 60, 1)):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("celeriac.backend.claims.database.time.time", lambda after=after: now + after)
                claims.renew(lease)
                claims._next_cleaning = 0.0
                claims.renew(lease)
            rows = claims._run(select(CLAIMS.c.task_id)).scalars().all()
            assert len(rows) == left, rows
