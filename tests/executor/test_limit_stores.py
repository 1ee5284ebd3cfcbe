"""Calls of the store of places by an executor with limits, and how it explains the replies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from celeriac.config.executor_config import Config
from celeriac.executor import places as places_module
from celeriac.executor.executor import CeleryExecutor
from celeriac.executor.limit import Limit, PlaceRequest, Refusal
from celeriac.executor.places import LocalPlaces
from celeriac.task.task import Task
from celeriac.testing import InMemoryBroker, ManualClock


class Store(LocalPlaces):
    """A store of places that notes what it is asked for. A test may let it refuse."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.asked: list[int] = []
        """How many tasks each request was for."""

        self.refusal: Callable[[PlaceRequest], Refusal] | None = None
        self.ended_ids: list[str] = []
        self.renewed: list[int] = []

    def reserve(self, requests: Sequence[PlaceRequest]) -> Mapping[str, Refusal]:
        self.asked.append(len(requests))
        if self.refusal is not None:
            return {request.id: self.refusal(request) for request in requests}
        return super().reserve(requests)

    def renew(self, requests: Sequence[PlaceRequest]) -> None:
        self.renewed.append(len(requests))

    def ended(self, request: PlaceRequest, *, was_sent: bool) -> None:
        self.ended_ids.append(request.id)
        super().ended(request, was_sent=was_sent)


@pytest.fixture
def store(clock: ManualClock) -> Store:
    return Store(clock)


@pytest.fixture
def make(broker: InMemoryBroker, clock: ManualClock, store: Store) -> Callable[..., CeleryExecutor]:
    def make(**config: Any) -> CeleryExecutor:
        return CeleryExecutor(
            Config(**{"parallelism": 9, **config}),
            publisher=broker,
            results=broker,
            revoker=broker,
            open_places=lambda: store,
            clock=clock,
            wall_clock=clock,
        )

    return make


def queue(executor: CeleryExecutor, *keys: str, **fields: Any) -> None:
    for key in keys:
        executor.queue_command(key, "true", **fields)


def sent(broker: InMemoryBroker) -> list[str]:
    return [str(task.key) for task in broker.messages]


def beat(executor: CeleryExecutor, times: int = 2) -> None:
    for _ in range(times):
        executor.heartbeat()


def test_no_place_is_asked_for_that_the_own_tasks_have(make, broker, store):
    executor = make(concurrency_limits={"db": 2}, queue_rates={"net": "1/m"})
    queue(executor, "free")
    beat(executor)
    assert store.asked == []
    queue(executor, "a", "b", "c", concurrency_key="db")
    queue(executor, "d", "e", queue="net")
    beat(executor)
    assert (sent(broker), store.asked) == (["free", "a", "b", "d"], [3, 1])  # and then when d may end


def test_a_raised_limit_is_asked_at_once(make, broker):
    executor = make(queue_rates={"net": "1/h"})
    queue(executor, "a", "b", queue="net")
    beat(executor)
    broker.succeed("a")
    beat(executor)
    assert sent(broker) == ["a"]
    executor.adjustments.change_limits(shared_limits={"queue_rates": {"net": "2/h"}})
    beat(executor)
    assert sent(broker) == ["a", "b"]


def test_tasks_in_flight_do_not_count_for_a_new_rate_and_count_once_for_a_limit(make, broker, store):
    executor = make(concurrency_limits={"db": 1})
    executor.adjustments.change_limits(shared_limits={"concurrency_limits": {"db": None}})
    queue(executor, "a", concurrency_key="db")
    for change in ({"concurrency_limits": {"db": 2}}, {"concurrency_rates": {"db": "9/h"}}):
        beat(executor)
        executor.adjustments.change_limits(shared_limits=change)
        executor.adjustments.change_limits(shared_limits={"queue_rates": {"default": "2/h"}})
    queue(executor, "b", "c", concurrency_key="db")
    queue(executor, "d")
    beat(executor, 1)
    assert (sent(broker), store.asked) == (["a", "b", "d"], [1, 2])


@pytest.fixture
def leased(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "renew_interval", 20.0)


@pytest.mark.usefixtures("leased")
def test_places_that_tasks_in_flight_take_are_renewed_at_once(make, store, clock):
    executor = make(concurrency_limits={"db": 1})
    executor.adjustments.change_limits(shared_limits={"concurrency_limits": {"db": None}})
    queue(executor, "a", "b", concurrency_key="db")
    queue(executor, "c")
    beat(executor)
    executor.adjustments.change_limits(shared_limits={"concurrency_limits": {"db": 9}})
    before = clock.now
    executor.wait(60)
    executor.heartbeat()
    assert (clock.now - before, store.renewed) == (0.0, [2])
    beat(executor)
    assert store.renewed == [2]


@pytest.mark.usefixtures("leased")
def test_the_places_of_adopted_tasks_are_renewed_at_once_and_then_at_intervals(make, store, clock):
    executor = make(concurrency_limits={"db": 9})
    executor.adopt_tasks([Task(key="a", command="true", concurrency_key="db")])
    beat(executor)
    assert store.renewed == [1]
    clock.advance(19.5)
    beat(executor)
    queue(executor, "b", concurrency_key="db")
    beat(executor)
    assert store.renewed == [1]
    clock.advance(0.5)
    beat(executor)
    assert store.renewed == [1, 2]


def test_an_executor_rests_whose_places_need_no_renewal(make, clock):
    executor = make(concurrency_limits={"db": 9})
    executor.adopt_tasks([Task(key="a", command="true", concurrency_key="db")])
    beat(executor)
    before = clock.now
    executor.wait(60)
    assert clock.now > before


def test_an_executor_rests_until_a_limit_that_others_use_may_have_a_place(make, broker, store, clock):
    executor = make(concurrency_limits={"db": 1})
    store.refusal = lambda request: Refusal(request.limits[0], 1, 0.25)
    queue(executor, "a", concurrency_key="db")
    beat(executor)
    assert store.asked == [1]
    begun = clock.now
    executor.wait(60)
    assert clock.now == begun + 0.25
    store.refusal = None
    beat(executor)
    assert (sent(broker), store.asked) == (["a"], [1, 1])


def test_an_executor_rests_while_the_last_place_of_a_rate_has_not_started(make, broker, clock):
    executor = make(queue_rates={"net": "1/m"})
    queue(executor, "a", "b", "c", queue="net")
    beat(executor)
    broker.start("a")
    beat(executor)
    clock.advance(60)
    beat(executor, 3)
    assert sent(broker) == ["a", "b"]
    before = clock.now
    executor.wait(60)
    assert clock.now > before


def test_a_rate_that_was_full_and_is_not_any_more_holds_nothing_back(make, broker, clock):
    executor = make(queue_rates={"net": "1/m"})
    queue(executor, "a", "b", queue="net")
    for key in "ab":
        beat(executor)
        broker.succeed(key)
        beat(executor)
        clock.advance(60)
    beat(executor)
    assert sent(broker) == ["a", "b"]
    queue(executor, "c", queue="net")
    assert why(executor, "c") == ("sent by one of the next heartbeats", {})


def test_the_end_of_an_own_task_is_a_reason_to_ask_again(make, broker, store):
    executor = make(concurrency_limits={"db": 2})
    queue(executor, "a", concurrency_key="db")
    beat(executor)
    store.refusal = lambda request: Refusal(request.limits[0], 2, 3600.0)
    queue(executor, "b", concurrency_key="db")
    beat(executor)
    assert store.asked == [1, 1]
    store.refusal = None
    broker.succeed("a")
    beat(executor)
    assert sent(broker) == ["a", "b"]


def test_the_end_of_an_own_task_does_not_change_when_a_rate_has_a_place(make, broker, store):
    executor = make(queue_rates={"net": "1/h"})
    queue(executor, "a", "b", queue="net")
    beat(executor)
    broker.start("a")
    beat(executor)
    asked = len(store.asked)
    broker.succeed("a")
    beat(executor)
    assert (len(store.asked), sent(broker)) == (asked, ["a"])


def test_a_refused_task_gives_nothing_back_unless_the_store_did_not_answer(make, broker, store, clock):
    executor = make(concurrency_limits={"db": 1})
    queue(executor, "a", concurrency_key="db")
    (task,) = executor.tasks()
    store.refusal = lambda request: Refusal(request.limits[0], 1, 1.0)
    beat(executor)
    assert (store.asked, store.ended_ids) == ([1], [])
    store.refusal = lambda request: Refusal(request.limits[0], 0, 1.0, "it is unavailable")
    clock.advance(1)
    beat(executor)
    assert (store.asked, store.ended_ids) == ([1, 1], [task.message_id])
    store.refusal = None
    clock.advance(1)
    beat(executor)
    broker.succeed("a")
    beat(executor)
    assert (store.asked, store.ended_ids) == ([1, 1, 1], [task.message_id] * 2)


def test_an_unconfirmed_task_that_gets_its_place_again_gives_it_back(make, broker, store, clock):
    executor = make(concurrency_limits={"db": 1})
    broker.leave_unsure("a", delivered=True)
    queue(executor, "a", concurrency_key="db")
    executor.heartbeat()
    store.refusal = lambda request: Refusal(request.limits[0], 1, 5.0)
    clock.advance(60)
    executor.heartbeat()
    assert store.asked == [1, 1]
    store.refusal = None
    clock.advance(60)
    executor.heartbeat()
    broker.succeed("a")
    executor.heartbeat()
    assert store.ended_ids == [broker.message("a").message_id]


# — what is explained —


def why(executor: CeleryExecutor, key: str) -> tuple[str, dict[str, Any]]:
    status = executor.explain(key).now
    facts = {name: fact for name, fact in status.facts.items() if name not in ("place", "queue", "priority")}
    return status.words.partition("; ")[2], facts


def test_a_task_of_a_full_limit_says_how_many_run(make):
    executor = make(concurrency_limits={"db": 1})
    queue(executor, "a", "b", concurrency_key="db")
    beat(executor)
    assert why(executor, "b") == (
        "waits for the limit of key 'db': 1 of 1 run",
        {"limit": 1, "running": 1, "own": 1},
    )
    queue(executor, "c")
    assert why(executor, "c") == ("sent by one of the next heartbeats", {})


def test_a_task_of_a_limit_that_others_use_says_how_many_of_them(make, store):
    executor = make(concurrency_limits={"db": 3})
    queue(executor, "a", concurrency_key="db")
    beat(executor)
    store.refusal = lambda request: Refusal(request.limits[0], 3, 0.25)
    queue(executor, "b", concurrency_key="db")
    beat(executor)
    words = "waits for the limit of key 'db': 3 of 3 run, 2 of them of other executors"
    assert why(executor, "b") == (words, {"limit": 3, "running": 3, "own": 1})


def test_a_task_of_a_store_that_does_not_answer_says_so(make, store):
    executor = make(concurrency_limits={"db": 3})
    store.refusal = lambda request: Refusal(request.limits[0], 0, 5.0, "it is unavailable")
    queue(executor, "a", concurrency_key="db")
    beat(executor)
    assert why(executor, "a") == ("the places of key 'db' are not known: it is unavailable", {"limit": 3})


def test_a_task_of_a_rate_says_when_it_is_tried_next(make, broker, clock):
    executor = make(queue_rates={"net": "1/m"})
    queue(executor, "a", "b", queue="net")
    beat(executor)
    waits = "waits for the rate of queue 'net', 1/m"
    assert why(executor, "b") == (waits, {"limit": 1})  # a has not started
    broker.start("a")
    beat(executor)
    clock.advance(59.7504)
    assert why(executor, "b") == (f"{waits}: next try in 0.2 s", {"limit": 1, "seconds": 0.25})
    clock.advance(1)
    assert why(executor, "b") == (f"{waits}: next try in 0.0 s", {"limit": 1, "seconds": 0.0})


def test_a_task_behind_the_last_place_of_a_batch_waits_for_the_rate(make):
    executor = make(concurrency_limits={"db": 9}, concurrency_rates={"db": "1/m"})
    queue(executor, "a", "b", concurrency_key="db")
    executor.heartbeat()
    assert why(executor, "b") == ("waits for the rate of key 'db', 1/m", {"limit": 1})


# — the places of one executor —


def request(task_id: str, *limits: Limit) -> PlaceRequest:
    return PlaceRequest(task_id, limits)


def test_a_place_that_a_task_has_is_reserved_again_without_another(clock):
    places = LocalPlaces(clock)
    limit, rate = Limit("key:db", 2), Limit("key-rate:db", 2, 60.0)
    assert places.reserve([request("a", limit, rate), request("b", limit, rate)]) == {}
    assert places.reserve([request("a", limit, rate)]) == {}
    (refusal,) = places.reserve([request("c", limit)]).values()
    assert (refusal.limit, refusal.taken, refusal.retry_in) == (limit, 2, float("inf"))
    places.started(request("a", rate))
    clock.advance(59.5)
    places.started(request("a", rate))  # a second time: its window has begun
    (refusal,) = places.reserve([request("c", rate)]).values()
    assert (refusal.limit, refusal.retry_in) == (rate, 0.5)
    clock.advance(0.5)
    assert places.reserve([request("c", rate)]) == {}


def test_a_refused_request_takes_no_place_of_its_other_limits(clock):
    places = LocalPlaces(clock)
    full, free = Limit("key:full", 1), Limit("key:free", 1)
    assert list(places.reserve([request("a", full), request("b", free, full)])) == ["b"]
    assert places.reserve([request("c", free)]) == {}


def test_limits_without_a_place_take_no_memory_for_ever(clock, monkeypatch):
    monkeypatch.setattr(places_module, "ENDED_PLACES_SWEPT", 2)
    places = LocalPlaces(clock)
    places.reserve([request("held", Limit("key:held", 1))])
    for number in range(8):
        ended = request("a", Limit(f"key:{number}", 1))
        places.reserve([ended])
        places.ended(ended, was_sent=True)
    assert list(places._places) == ["key:held", "key:6", "key:7"]
    assert list(places.reserve([request("b", Limit("key:held", 1))])) == ["b"]
