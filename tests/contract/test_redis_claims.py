"""Claims on Redis: what they leave on the server, and their connections."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from threading import Thread
from typing import Any
from uuid import uuid4

import pytest
from msgspec.structs import replace
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from celeriac.backend.claims.claim import CLAIM_KEPT, Lease, LeaseState
from celeriac.backend.claims.redis import WRITE_CHECK_KEPT, RedisClaims
from celeriac.broker.app import make_app
from tests.support.cli_runner import until

pytestmark = [pytest.mark.celery, pytest.mark.filterwarnings("ignore:Call to deprecated setex")]  # by Celery


@pytest.fixture
def redis(shared_redis) -> Iterator[Any]:
    with closing(Redis.from_url(shared_redis.url)) as client:
        yield client


@pytest.fixture
def claims(shared_redis) -> Iterator[RedisClaims]:
    app = make_app(broker_url="memory://", result_backend=shared_redis.url)
    with closing(app), closing(RedisClaims(app, timeout=2.0)) as claims:
        yield claims


@pytest.fixture
def lease() -> Lease:
    holder = uuid4().hex
    return Lease(holder=holder, name="one@here", host="here", pid=1, boot_id="b", queues=("q",), slots=4)


def clients(redis: Any) -> set[str]:
    return {client["id"] for client in redis.client_list()}


def test_the_check_for_writes_writes_a_key_that_expires(redis, claims):
    redis.delete("celeriac-writable")
    claims.check_writable()
    assert redis.get("celeriac-writable") == b"1"
    assert 0 < redis.ttl("celeriac-writable") <= WRITE_CHECK_KEPT
    redis.delete("celeriac-writable")
    claims.check_rights()
    assert 0 < redis.ttl("celeriac-writable") <= WRITE_CHECK_KEPT


def test_the_check_of_rights_publishes_for_no_task(redis, claims):
    with redis.pubsub() as subscription:
        subscription.psubscribe("celery-task-meta-*")
        assert subscription.get_message(timeout=30)["type"] == "psubscribe"
        claims.check_rights()
        assert subscription.get_message(timeout=30)["channel"] == b"celery-task-meta-celeriac-check"


def test_the_time_is_that_of_the_server(redis, claims):
    def now() -> float:
        seconds, microseconds = redis.time()
        return float(seconds + microseconds / 1e6)

    before, time, after = now(), claims.now(), now()
    assert before - 1e-6 <= time <= after + 1e-6


def test_a_worker_that_has_claimed_a_task_since_is_not_declared_dead(claims, lease):
    claims.renew(lease)
    count = claims.leases()[lease.holder].heartbeat_count
    claims.claim(str(uuid4()), holder=lease.holder, delivery="d")
    assert not claims.declare_dead(lease.holder, count)


def test_a_worker_is_declared_dead_over_a_lease_that_is_no_hash(redis, claims, lease):
    redis.set(f"celeriac-lease-{lease.holder}", "garbage")
    assert claims.declare_dead(lease.holder, None)
    assert claims.leases()[lease.holder].state is LeaseState.DEAD


def test_a_renewal_writes_no_claim_that_is_kept_for_long_enough(redis, claims, lease):
    task_id = str(uuid4())
    claims.claim(task_id, holder=lease.holder, delivery="d")
    enough = int(CLAIM_KEPT * 0.95)
    redis.expire(f"celeriac-claim-{task_id}", enough)
    claims.renew(replace(lease, running=(task_id,)))
    assert redis.ttl(f"celeriac-claim-{task_id}") <= enough


def test_a_claim_without_a_start_stores_no_result(redis, claims):
    task_id = str(uuid4())
    claims.claim(task_id, holder="w1", delivery="d")
    assert not redis.exists(f"celery-task-meta-{task_id}")


def test_a_release_without_a_claim_changes_nothing(redis, claims):
    task_id = str(uuid4())
    redis.set(f"celery-task-meta-{task_id}", "a result", ex=60)
    assert claims.release(task_id, holder="w1")
    assert not redis.exists(f"celeriac-claim-{task_id}")
    assert claims.cancel([task_id], unless_started=True) == []


@pytest.mark.parametrize(("expires", "least", "most"), [(3600, 1, 3600), (None, -1, -1)])
def test_results_that_claims_store_are_kept_as_long_as_others(shared_redis, redis, expires, least, most):
    started, cancelled = str(uuid4()), str(uuid4())
    app = make_app(broker_url="memory://", result_backend=shared_redis.url, result_expires=expires)
    with closing(app), closing(RedisClaims(app, timeout=2.0)) as claims:
        claims.claim(started, holder="w1", delivery="d", started_info={"hostname": "one@here"})
        assert claims.cancel([cancelled]) == [cancelled]
    assert all(least <= redis.ttl(f"celery-task-meta-{task_id}") <= most for task_id in (started, cancelled))


def test_the_connections_are_closed_when_they_are_cut(redis, claims):
    claims.cut()
    before = clients(redis)
    claims.check_writable()
    (own,) = clients(redis) - before
    claims.cut()
    until(lambda: own not in clients(redis), "the end of the connection")
    claims.check_writable()


def test_a_call_under_way_ends_when_its_connection_is_cut(redis, claims):
    errors: list[Exception] = []

    def call() -> None:
        try:
            claims._connect().blpop("nothing", timeout=0)
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    thread = Thread(target=call)
    thread.start()
    until(lambda: any(client["cmd"] == "blpop" for client in redis.client_list()), "the call")
    claims.cut()
    thread.join()
    assert isinstance(errors[0], RedisConnectionError)


def test_a_server_that_refuses_reads_does_not_seem_to_have_no_leases(shared_redis, redis, claims, lease):
    claims.renew(lease)
    redis.acl_setuser("blind", enabled=True, nopass=True, keys=["*"], channels=["*"], commands=["+@all", "-hmget"])
    try:
        url = shared_redis.url.replace("redis://", "redis://blind:any@")
        app = make_app(broker_url="memory://", result_backend=url)
        with closing(app), closing(RedisClaims(app, timeout=2.0)) as blind, pytest.raises(ResponseError):
            blind.leases()
    finally:
        redis.acl_deluser("blind")


def test_an_unavailable_server_is_one_of_the_errors_of_claims():
    app = make_app(broker_url="memory://", result_backend="redis://127.0.0.1:1/0")
    with closing(app), closing(RedisClaims(app, timeout=2.0)) as claims:
        errors: tuple[type[Exception], ...] = claims.errors
        with pytest.raises(errors):
            claims.leases()
