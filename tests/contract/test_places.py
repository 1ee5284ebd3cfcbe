"""Places of limits: one suite for every store, and a property test against a model of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from random import Random
from typing import Any
from uuid import uuid4

import pytest
from msgspec.structs import replace

from celeriac.backend.claims import claims_for
from celeriac.backend.claims.claim import Claims, Lease
from celeriac.backend.claims.memory import MemoryClaims
from celeriac.backend.claims.open import places_for
from celeriac.backend.claims.place_state import Moment, State
from celeriac.backend.claims.place_use import note_of
from celeriac.backend.claims.places import LeaveReason, Places, TakeReply
from celeriac.broker.app import make_app
from celeriac.executor.limit import Limit, PlaceRequest
from tests.simulation.places import MemoryPlaces
from tests.support.cli_runner import until
from tests.support.long import LONG

pytestmark = pytest.mark.celery

LEASE = Lease(holder="w1", name="one@here", host="here", pid=1, boot_id="b", queues=("default",), slots=4)


class Store:
    """A store with two clients, as an executor and a worker have them, and a live worker."""

    def __init__(self, places: Places, other: Places, claims: Claims) -> None:
        self.places, self.other, self.claims = places, other, claims
        self.name = f"key:{uuid4().hex}"

    def limit(self, number: int, period: float | None = None) -> Limit:
        return Limit(self.name, number, period)

    def holder(self) -> str:
        """Return the lease of a new worker."""
        holder = uuid4().hex
        self.claims.renew(replace(LEASE, holder=holder))
        return holder

    def reserve(self, limit: Limit, *ids: str, asker: str = "one") -> list[str]:
        """Return those that were refused."""
        return list(self.places.reserve(asker, [PlaceRequest(task_id, (limit,)) for task_id in ids]))

    def take(self, limit: Limit, task_id: str, holder: str, delivery: str = "d") -> TakeReply:
        return self.other.take(PlaceRequest(task_id, (limit,)), holder=holder, delivery=delivery)

    def leave(self, limit: Limit, task_id: str, holder: str, reason: LeaveReason, delivery: str = "d") -> None:
        self.other.leave(PlaceRequest(task_id, (limit,)), holder=holder, delivery=delivery, reason=reason)

    def end(self, limit: Limit, task_id: str, *, was_sent: bool = True) -> None:
        self.places.reserve("one", [], [(PlaceRequest(task_id, (limit,)), was_sent)])


@pytest.fixture(params=["memory", "redis", "valkey", "sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[Store]:
    match request.param:
        case "memory":
            in_memory = MemoryClaims()
            all_places = MemoryPlaces(in_memory, time.time)
            yield Store(all_places, all_places, in_memory)
            return
        case "sqlite":
            url = f"db+sqlite:///{tmp_path}/results.db"
        case "postgres":
            url = request.getfixturevalue("postgres").url
        case kind:
            url = request.getfixturevalue(f"shared_{kind}").url
    with closing(make_app(broker_url="memory://", result_backend=url)) as app:
        places, other = places_for(app, timeout=2.0), places_for(app, timeout=2.0)
        claims = claims_for(app, timeout=2.0)
        assert places is not None
        assert other is not None
        assert claims is not None
        with closing(places), closing(other), closing(claims):
            yield Store(places, other, claims)


def test_no_more_places_than_the_number_are_given(store):
    limit = store.limit(2)
    assert store.reserve(limit, "a", "b", "c") == ["c"]
    assert store.reserve(limit, "a", "b") == []
    refusal = store.places.reserve("one", [PlaceRequest("c", (limit,))])["c"]
    assert (refusal.limit, refusal.taken) == (limit, 2)
    store.end(limit, "a", was_sent=False)
    assert store.reserve(limit, "c", "d") == ["d"]


def test_all_places_of_a_task_are_reserved_or_none(store):
    full, free = store.limit(1), Limit(f"{store.name}-2", 1)
    store.reserve(full, "a")
    assert list(store.places.reserve("one", [PlaceRequest("b", (free, full))])) == ["b"]
    assert store.reserve(free, "c") == []


def test_a_worker_takes_the_reserved_place_and_gives_it_up(store):
    limit, holder = store.limit(1), store.holder()
    store.reserve(limit, "a")
    assert store.take(limit, "b", holder) is TakeReply.FULL
    assert [store.take(limit, "a", holder) for _ in range(2)] == [TakeReply.TAKEN] * 2
    assert store.take(limit, "a", store.holder()) is TakeReply.HELD
    assert store.take(limit, "a", holder, "copy") is TakeReply.HELD
    store.end(limit, "a")  # its executor believes that it has ended
    assert store.reserve(limit, "b") == ["b"]
    store.leave(limit, "a", holder, LeaveReason.ENDED, "copy")
    assert store.reserve(limit, "b") == ["b"]
    store.leave(limit, "a", holder, LeaveReason.ENDED)
    assert store.reserve(limit, "b") == []


def test_names_of_limits_may_end_as_any_text_does(store):
    holder = store.holder()
    limits = [Limit(f"{store.name}{end}", 1) for end in ("", ":holders", ":waiting", ":tasks", ":tasks:holders")]
    for _ in range(2):
        for limit in limits:
            assert store.take(limit, "a", holder) is TakeReply.TAKEN
            assert store.reserve(limit, "b") == ["b"]
    for limit in limits:
        assert store.places.holders(limit.name) == {"a"}
        store.leave(limit, "a", holder, LeaveReason.ENDED)
        assert store.reserve(limit, "b") == []


def test_a_message_that_is_handed_back_keeps_its_place(store):
    limit, holder = store.limit(1), store.holder()
    store.take(limit, "a", holder)
    store.leave(limit, "a", holder, LeaveReason.HANDED_BACK)
    assert store.reserve(limit, "b") == ["b"]
    assert store.take(limit, "a", store.holder(), "again") is TakeReply.TAKEN


def test_a_place_of_a_killed_process_is_free_a_moment_later(store):
    limit, holder = store.limit(1), store.holder()
    store.take(limit, "a", holder, "17.first")
    store.leave(limit, "a", holder, LeaveReason.KILLED, "1.")
    assert store.places.holders(limit.name) == {"a"}  # another process has it
    store.leave(limit, "a", holder, LeaveReason.KILLED, "17.")
    store.end(limit, "a")
    assert store.reserve(limit, "b") == ["b"]
    assert store.places.holders(limit.name) == {"a|17."}  # for a moment, until its command is dead
    assert store.take(limit, "a", store.holder()) is TakeReply.FULL


def test_a_place_of_a_dead_worker_is_free(store):
    limit, holder = store.limit(1), store.holder()
    store.take(limit, "a", holder)
    assert store.reserve(limit, "b") == ["b"]
    store.claims.declare_dead(holder, 1)
    assert store.take(limit, "c", holder) is TakeReply.DEAD
    assert store.reserve(limit, "b") == []
    store.end(limit, "b")
    gone = store.holder()
    store.take(limit, "c", gone)
    store.claims.end_lease(gone)
    assert store.take(limit, "d", store.holder()) is TakeReply.TAKEN


def test_a_worker_without_a_lease_takes_no_place(store):
    store.holder()
    assert store.take(store.limit(1), "a", "no one") is TakeReply.DEAD


def test_a_reservation_ends_unless_it_is_renewed(store):
    limit = store.limit(2)
    store.places.reservation = 0.5
    store.reserve(limit, "a", "b")
    store.places.reservation = 60.0
    store.places.renew([PlaceRequest("a", (limit,))])
    until(lambda: store.reserve(limit, "c") == [], "the end of a reservation")
    store.places.renew([PlaceRequest("b", (limit,))])
    assert store.reserve(limit, "d") == ["d"]
    assert store.reserve(limit, "a") == []


def test_executors_get_places_in_turn(store):
    limit = store.limit(1)
    store.reserve(limit, "a")
    assert store.reserve(limit, "b", asker="two") == ["b"]
    assert store.reserve(limit, "c") == ["c"]
    store.end(limit, "a")
    assert store.reserve(limit, "c") == ["c"]
    assert store.reserve(limit, "b", asker="two") == []
    store.end(limit, "b")
    assert store.reserve(limit, "d", asker="two") == ["d"]
    assert store.reserve(limit, "c") == []


def test_a_place_of_a_rate_is_free_when_its_window_has_passed_since_the_start(store):
    limit, holder = store.limit(2, 0.4), store.holder()
    store.reserve(limit, "a", "b")
    time.sleep(0.5)
    assert store.reserve(limit, "c") == ["c"]  # neither has started yet
    started = time.monotonic()
    assert [store.take(limit, task_id, holder) for task_id in "ab"] == [TakeReply.TAKEN] * 2
    store.leave(limit, "a", holder, LeaveReason.ENDED)
    store.end(limit, "a")
    while store.reserve(limit, "c"):
        time.sleep(0.02)
    assert time.monotonic() - started >= 0.39


def test_the_window_of_a_rate_begins_when_the_worker_hears_that_it_has_the_place(store):
    limit, holder = store.limit(1, 1.0), store.holder()
    for _ in range(2):  # the first reply came too late
        started = time.monotonic()
        assert store.take(limit, "a", holder) is TakeReply.TAKEN
        time.sleep(0.4)
    while store.reserve(limit, "b"):
        time.sleep(0.02)
    assert time.monotonic() - started >= 0.99


def test_a_second_start_of_a_task_counts_too(store):
    limit, holder = store.limit(2, 60), store.holder()
    store.take(limit, "a", holder)
    store.leave(limit, "a", holder, LeaveReason.HANDED_BACK)
    assert store.take(limit, "a", holder, "second") is TakeReply.TAKEN
    assert store.take(limit, "a", holder, "third") is TakeReply.FULL
    store.leave(limit, "a", holder, LeaveReason.NOT_STARTED, "second")
    assert store.take(limit, "a", holder, "third") is TakeReply.TAKEN


def test_an_attempt_that_no_worker_took_may_have_started(store):
    limit = store.limit(1, 60)
    store.reserve(limit, "a")
    store.end(limit, "a")  # a worker without claims ran it
    assert store.reserve(limit, "b") == ["b"]


@pytest.mark.parametrize("store", ["sqlite", "postgres"], indirect=True)
def test_rows_of_limits_that_are_in_use_are_kept(store, monkeypatch):
    monkeypatch.setattr("celeriac.backend.claims.database_places.KEPT", -1)
    used, unused = store.limit(1), Limit(f"{store.name}-unused", 1)
    store.take(used, "a", store.holder())
    store.reserve(unused, "a")
    store.places.clean()
    assert (store.places.holders(used.name), store.places.holders(unused.name)) == ({"a"}, set())


STEPS = ("reserve", "reserve", "take", "take", "end", "unsent", "ended", "handed back", "not started", "killed", "dies")


@pytest.mark.parametrize("seed", range(100 if LONG else 2))
def test_every_store_decides_as_the_model_does(store, seed):
    """The model is `place_state`, in memory. No more than the number hold a place at any time."""
    random = Random(seed)
    limits = [store.limit(2), Limit(f"{store.name}-rate", 3, 3600.0), Limit(f"{store.name}-other", 1)]
    states = {limit.name: State() for limit in limits}
    holders = [store.holder() for _ in range(3)]
    dead: set[str] = set()
    now = 1_000.0
    for _ in range(60):
        now += 0.001
        moment = Moment(states, now, lambda holder: holder not in dead, 3600.0)
        chosen = tuple(random.sample(limits, random.choice((1, 1, 2))))
        task, holder, delivery = f"t{random.randrange(6)}", random.choice(holders), random.choice("xy")
        request, asker = PlaceRequest(task, chosen), random.choice(("one", "two"))
        match step := random.choice(STEPS):
            case "reserve":
                expected = moment.reserve(asker, [request], [])
                refusals = store.places.reserve(asker, [request])
                assert {i: (r.limit, r.taken) for i, r in refusals.items()} == {
                    i: (r.limit, r.taken) for i, r in expected.items()
                }
            case "take":
                assert store.other.take(request, holder=holder, delivery=delivery) is moment.take(
                    request, holder, delivery
                )
            case "end" | "unsent":
                moment.reserve(asker, [], [(request, step == "end")])
                store.places.reserve(asker, [], [(request, step == "end")])
            case "dies":
                if random.random() < 0.2 and len(dead) < 2:
                    dead.add(holder)
                    store.claims.declare_dead(holder, 1)
            case reason:
                moment.leave(request, holder, delivery, LeaveReason(reason))
                store.other.leave(request, holder=holder, delivery=delivery, reason=LeaveReason(reason))
        for limit in limits:
            held = set(store.places.holders(limit.name))
            assert held == set(states[limit.name].until)
            assert len(held) <= limit.number


def test_executors_tell_of_their_limits(store):
    limit, rate = store.limit(3), Limit(f"queue-rate:{uuid4().hex}", 1, 60.0)
    holder = store.holder()
    assert store.reserve(limit, "a", "b") == []
    assert store.reserve(rate, "c") == []
    assert store.take(rate, "c", holder) is TakeReply.TAKEN
    store.places.announce("one", note_of("1@here", [limit, limit, rate], []))
    store.places.announce("two", note_of("2@here", [], [limit]))
    found = {each.name: each for each in store.other.limits_in_use()}
    of_key, of_rate = found[limit.name.partition(":")[2]], found[rate.name.partition(":")[2]]
    assert (of_key.setting, of_key.number, of_key.used, of_key.full_until) == ("concurrency_limits", 3, 2, None)
    assert of_key.executors == {"1@here": 2, "2@here": 0}
    assert (of_rate.setting, of_rate.number, of_rate.period, of_rate.used) == ("queue_rates", 1, 60.0, 1)
    assert of_rate.full_until is not None
    store.places.announce("one", None)
    assert {name: each.executors for each in store.other.limits_in_use() if (name := each.name) in found} == {
        of_key.name: {"2@here": 0}
    }
