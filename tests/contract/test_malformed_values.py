"""Values that another program has written into the store: each affects only itself, and the store heals."""

from __future__ import annotations

import logging
import pickle
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from celery import states
from redis import Redis
from redis.exceptions import ResponseError

from celeriac.backend.claims import claims_for
from celeriac.backend.claims.claim import Claims, Granted, Lease, LeaseState, Renewed
from celeriac.backend.claims.lease_monitor import LeaseMonitor
from celeriac.backend.claims.redis import BATCH_SIZE
from celeriac.backend.results import results_for
from celeriac.broker.app import make_app
from celeriac.config.settings import read_settings
from celeriac.executor.interfaces import Unreadable
from celeriac.task.result import Result
from celeriac.worker.app import worker_app
from tests.support.cli_runner import WAIT_TIMEOUT, until

pytestmark = [pytest.mark.filterwarnings("ignore:Call to deprecated setex"), pytest.mark.celery]

REPORT = {"reason": None, "detail": None, "execution": {"host": "h", "exit_code": 0}}


def new_lease() -> Lease:
    holder = uuid4().hex
    return Lease(holder=holder, name=f"{holder}@h", host="h", pid=1, boot_id="b", queues=("q",), slots=4, number=1)


@pytest.fixture
def redis(shared_redis) -> Iterator[Any]:
    with closing(Redis.from_url(shared_redis.url)) as client:
        client.flushdb()
        yield client


@pytest.fixture
def claims(shared_redis) -> Iterator[Claims]:
    with closing(make_app(broker_url="memory://", result_backend=shared_redis.url)) as app:
        claims = claims_for(app, timeout=2.0)
        assert claims is not None
        yield claims
        claims.close()


def write_malformed_leases(redis: Any) -> None:
    for holder, fields in {
        b"content": {"standing": "live", "content": "x", "beat": "1"},
        b"count": {"standing": "live", "content": "{}", "beat": "x"},
        b"state": {"standing": "evil", "content": "{}", "beat": "1"},
        b"\xff\xfe": {"standing": "live", "content": "{}", "beat": "1"},
        b"long" * 2**18: {"standing": "live", "content": "{}", "beat": "1"},
        b"slots": {
            "standing": "live",
            "content": msgspec.json.encode({**msgspec.to_builtins(new_lease()), "holder": "slots", "slots": 10**18}),
            "beat": "1",
        },
    }.items():
        redis.hset(b"celeriac-lease-" + holder, mapping=fields)
        redis.sadd("celeriac-leases", holder)
    redis.set("celeriac-lease-text", "a text")
    redis.sadd("celeriac-leases", "text")


def test_malformed_leases_hide_no_other_lease_and_are_logged_once(redis, claims, caplog):
    lease = new_lease()
    claims.renew(lease)
    write_malformed_leases(redis)
    for _ in range(3):
        leases = claims.leases()
        assert leases[lease.holder].lease == lease
    assert [leases[holder].lease for holder in ("content", "slots", "\udcff\udcfe")] == [None] * 3
    assert not leases.keys() & {"count", "state", "text"}
    logged = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(logged) == 3
    assert max(map(len, logged)) < 300


def test_more_leases_than_one_script_reads_are_all_returned(redis, claims):
    expected = {lease.holder: lease for lease in (new_lease() for _ in range(2 * BATCH_SIZE + 1))}
    with redis.pipeline() as pipeline:
        for lease in expected.values():
            fields = {"standing": "live", "content": msgspec.json.encode(lease), "beat": "1"}
            pipeline.hset(f"celeriac-lease-{lease.holder}", mapping=fields)
        pipeline.sadd("celeriac-leases", "expired", *expected)
        pipeline.execute()
    assert {holder: record.lease for holder, record in claims.leases().items()} == expected
    assert redis.scard("celeriac-leases") == len(expected)


def test_a_lease_monitor_goes_on_beside_malformed_leases_and_declares_their_workers_dead(redis, claims, caplog):
    write_malformed_leases(redis)
    with closing(LeaseMonitor(claims, on_news=lambda: None, poll_interval=0.05)) as monitor:
        lease = new_lease()
        claims.renew(lease)
        until(lambda: monitor.find(lease.holder) == lease, "the lease of the good worker")
        until(lambda: monitor.is_dead("content"), "the end of the worker whose lease is malformed", WAIT_TIMEOUT)
    assert claims.leases()["content"].state is LeaseState.DEAD
    assert all(message.isprintable() and len(message) < 1_000 for message in caplog.messages)


def test_a_renewal_heals_a_lease_that_is_no_hash_and_a_set_that_is_no_set(redis, claims):
    lease = new_lease()
    redis.set(f"celeriac-lease-{lease.holder}", "garbage")
    redis.set("celeriac-leases", "garbage")
    with pytest.raises(ResponseError):
        claims.leases()
    assert claims.renew(lease) == Renewed(frozenset(), frozenset())
    assert claims.leases()[lease.holder].lease == lease


@pytest.mark.parametrize("count", ["x", "1.5", str(2**63 - 1), ""])
def test_a_renewal_heals_a_count_that_is_no_number(redis, claims, count):
    lease = new_lease()
    claims.renew(lease)
    redis.hset(f"celeriac-lease-{lease.holder}", "beat", count)
    claims.renew(lease)
    before = claims.leases()[lease.holder].heartbeat_count
    claims.renew(lease)
    assert claims.leases()[lease.holder].heartbeat_count == before + 1


def test_a_renewal_heals_claims_that_are_no_hashes(redis, claims):
    lease = msgspec.structs.replace(new_lease(), running=("t1", "t2"))
    redis.set("celeriac-claim-t1", "garbage")
    assert claims.renew(lease) == Renewed(frozenset(), frozenset())


def test_a_worker_renews_its_lease_with_ids_that_cannot_be_stored(claims):
    lease = msgspec.structs.replace(new_lease(), running=("good", "\ud800", 5), held=("\udfff",))
    assert claims.renew(lease) == Renewed(frozenset(), frozenset())
    stored = claims.leases()[lease.holder].lease
    assert stored == msgspec.structs.replace(lease, running=("good",), held=())


def test_malformed_claims_hide_no_other_claim(redis, claims):
    claims.claim("good", holder="w1", delivery="d")
    redis.hset("celeriac-claim-token", mapping={"holder": "w2", "token": "x"})
    redis.hset("celeriac-claim-holder", mapping={"holder": b"\xff", "token": "3"})
    redis.set("celeriac-claim-text", "garbage")
    redis.rpush("celeriac-claim-list", "garbage")
    found = claims.read(["good", "token", "holder", "text", "list", "unknown"])
    assert {task_id: claim.holder for task_id, claim in found.items()} == {
        "good": "w1",
        "token": "w2",
        "holder": "\udcff",
    }


def test_a_claim_of_a_holder_that_is_not_utf_8_can_be_fenced(redis, claims):
    redis.hset("celeriac-claim-t", mapping={"holder": b"\xff", "token": "3"})
    claim = claims.read(["t"])["t"]
    assert claims.declare_dead(claim.holder, None)
    assert claims.leases()[claim.holder].state is LeaseState.DEAD
    assert claims.fence([claim]) == ["t"]


@pytest.mark.parametrize("key", ["celeriac-claim-t", "celeriac-lease-w1", "celeriac-token"])
def test_a_claim_is_granted_over_a_key_of_another_type(redis, claims, key):
    redis.rpush(key, "garbage")
    reply = claims.claim("t", holder="w1", delivery="d")
    assert isinstance(reply, Granted)
    assert claims.claim("t", holder="w1", delivery="d") == reply
    assert claims.read(["t"])["t"].holder == "w1"
    second = claims.claim("u", holder="w1", delivery="d")
    assert second.token > reply.token


def test_a_task_is_cancelled_over_a_claim_that_is_no_hash(redis, claims):
    redis.set("celeriac-claim-t", "garbage")
    assert claims.cancel(["t"]) == ["t"]


# — a database —


def test_malformed_rows_hide_no_other_lease_or_claim(tmp_path, caplog):
    url = f"db+sqlite:///{tmp_path}/results.db"
    with closing(make_app(broker_url="memory://", result_backend=url)) as app:
        claims = claims_for(app, timeout=2.0)
        assert claims is not None
        with closing(claims):
            lease = new_lease()
            claims.renew(lease)
            claims.claim("good", holder=lease.holder, delivery="d")
            with closing(sqlite3.connect(tmp_path / "results.db")) as database:
                rows = [
                    ("content", 1, "live", "x", 1e12),
                    ("count", "x", "live", "{}", 1e12),
                    ("state", 1, "evil", "{}", 1e12),
                    ("blob", 1, "live", b"\xff", 1e12),
                ]
                database.executemany("INSERT INTO celeriac_lease VALUES (?, ?, ?, ?, ?)", rows)
                database.execute("INSERT INTO celeriac_lease VALUES (CAST(x'ff' AS TEXT), 1, 'live', 'x', 1e12)")
                database.execute(
                    "INSERT INTO celeriac_claim (task_id, holder, delivery, cancelled, fenced, at)"
                    " VALUES ('odd', CAST(x'ff' AS TEXT), 5, 0, 0, 1e12)"
                )
                database.commit()
            for _ in range(3):
                leases = claims.leases()
            assert leases[lease.holder].lease == lease
            assert [leases[holder].lease for holder in ("content", "blob", "\udcff")] == [None] * 3
            assert not leases.keys() & {"count", "state"}
            assert claims.read(["good", "odd"])["good"].holder == lease.holder
            assert len(caplog.records) == 2


def test_a_pickle_that_would_exhaust_memory_hides_no_other_row(postgres):
    app = make_app(broker_url="memory://", result_backend=postgres.url)
    bombs = [b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fx.", b"\x80\x04K\x01r\xff\xff\xff\xff.", doubling_pickle()]
    with closing(app), closing(results_for(app, timeout=5.0)) as reader:
        for n, bomb in enumerate(bombs):
            app.backend.store_result(f"bomb-{n}", REPORT, states.SUCCESS)
            postgres.sql(rf"UPDATE celery_taskmeta SET result = '\x{bomb.hex()}' WHERE task_id = 'bomb-{n}'")
        app.backend.store_result("good", REPORT, states.SUCCESS)
        ids = ["good", *(f"bomb-{n}" for n in range(len(bombs)))]
        results: dict[str, Any] = {}

        def has_all() -> bool:
            results.update(reader.read(ids))
            return len(results) == len(ids)

        until(has_all, "the results")
    assert isinstance(results.pop("good"), Result)
    assert {type(result) for result in results.values()} == {Unreadable}


def doubling_pickle() -> bytes:
    """Return some 250 bytes that cost minutes: a key of a table, of tuples that contain each other twice."""
    value: Any = ()
    for _ in range(30):
        value = (value, value)
    return b"\x80\x04}" + pickle.dumps(value, 4)[2:-1].replace(b"\x95", b"\x95", 1) + b"Ns."


# — results —


@pytest.mark.parametrize(
    "value",
    [
        b"garbage",
        b"null",
        b"[" * 100_000,
        b'{"status":"SUCCESS","result":5}',
        b'{"status":["SUCCESS"]}',
        b"\xff",
        b"{}",
    ],
    ids=range(7),
)
def test_a_worker_stores_its_result_in_place_of_garbage(redis, shared_redis, value):
    settings = {"broker": shared_redis.url, "backend": shared_redis.url}
    with closing(worker_app(read_settings(settings, environment={}).connection)) as app:
        redis.set("celery-task-meta-t", value)
        app.backend.store_result("t", REPORT, states.SUCCESS)
        with closing(results_for(app, timeout=5.0)) as reader:
            until(lambda: isinstance(reader.read(["t"]).get("t"), Result), "the result")


def test_a_worker_stores_its_result_in_place_of_a_list(redis, shared_redis):
    settings = {"broker": shared_redis.url, "backend": shared_redis.url}
    with closing(worker_app(read_settings(settings, environment={}).connection)) as app:
        redis.rpush("celery-task-meta-t", "garbage")
        with closing(results_for(app, timeout=5.0)) as reader:
            assert reader.read(["t"]) == {}
            app.backend.store_result("t", REPORT, states.SUCCESS)
            until(lambda: isinstance(reader.read(["t"]).get("t"), Result), "the result")


def test_a_worker_keeps_a_result_that_can_be_read(redis, shared_redis):
    settings = {"broker": shared_redis.url, "backend": shared_redis.url}
    with closing(worker_app(read_settings(settings, environment={}).connection)) as app:
        app.backend.store_result("t", REPORT, states.SUCCESS)
        app.backend.store_result("t", ValueError("late"), states.FAILURE)
        assert app.backend.get_task_meta("t", cache=False)["status"] == states.SUCCESS


def test_the_change_feed_goes_on_after_messages_on_odd_channels(redis, shared_redis):
    app = make_app(broker_url="memory://", result_backend=shared_redis.url)
    with closing(app), closing(results_for(app, timeout=5.0)) as reader:
        changed: set[str] = set()

        def has_changed(task_id: str) -> bool:
            changed.update(reader.changed())
            return task_id in changed and reader.pushes

        redis.publish("celery-task-meta-first", b"")
        until(lambda: reader.changed() is not None and reader.pushes, "the subscription")
        redis.publish(b"celery-task-meta-\xff", b"\xff")
        redis.publish(b"celery-task-meta-", b"")
        redis.publish(b"celery-task-meta-" + b"x" * 1_000_000, b"x" * 1_000_000)
        redis.publish("celery-task-meta-good", b"garbage")
        until(lambda: has_changed("good"), "the change of the good task")
