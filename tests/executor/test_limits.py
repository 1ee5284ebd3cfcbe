"""Limits of concurrency keys and rates, in memory: within one executor."""

from __future__ import annotations

import pytest

from celeriac.config.executor_config import Config
from celeriac.errors import InvalidConfig, InvalidTask
from celeriac.executor.executor import CeleryExecutor
from celeriac.executor.limit import Refusal
from celeriac.executor.places import LocalPlaces
from celeriac.executor.requests import WaitReason
from celeriac.runs.job_file import PlainJobs, read_whole
from celeriac.testing import InMemoryBroker


@pytest.fixture
def make(broker, clock):
    def make(places: LocalPlaces | None = None, **limits) -> CeleryExecutor:
        config = Config(parallelism=limits.pop("parallelism", 9), **limits)
        return CeleryExecutor(
            config,
            publisher=broker,
            results=broker,
            revoker=broker,
            open_places=None if places is None else lambda: places,
            clock=clock,
            wall_clock=clock,
        )

    return make


def queue(executor: CeleryExecutor, *keys: str, **fields) -> None:
    for key in keys:
        executor.queue_command(key, "true", **fields)


def sent(broker: InMemoryBroker) -> list[str]:
    return [str(task.key) for task in broker.messages]


def test_so_many_tasks_of_a_key_run_at_once_and_hold_no_others_back(make, broker):
    executor = make(concurrency_limits={"db": 2})
    queue(executor, "a", "b", "c", "d", concurrency_key="db")
    queue(executor, "x", "y")
    executor.heartbeat()
    assert sent(broker) == ["a", "b", "x", "y"]
    status = executor.explain("c").now
    assert (status.waits_for, status.facts["limit"], status.facts["running"]) == (WaitReason.LIMIT, 2, 2)
    assert status.words.endswith("waits for the limit of key 'db': 2 of 2 run")
    broker.succeed("b")
    executor.heartbeat()
    executor.heartbeat()
    assert sent(broker)[4:] == ["c"]


def test_the_most_urgent_task_of_a_key_gets_the_place(make, broker):
    executor = make(concurrency_limits={"*": 1})
    queue(executor, "a", "b", concurrency_key="db")
    executor.heartbeat()
    queue(executor, "urgent", concurrency_key="db", priority=5)
    queue(executor, "other", concurrency_key="disk")
    executor.heartbeat()
    executor.reprioritise("b", 7)
    for key in ("a", "b"):
        broker.succeed(key)
        executor.heartbeat()
        executor.heartbeat()
    assert sent(broker) == ["a", "other", "b", "urgent"]


def test_a_failed_attempt_and_a_revoked_task_free_their_places(make, broker, clock):
    executor = make(concurrency_limits={"db": 1})
    queue(executor, "a", concurrency_key="db", retries=1, retry_delay=5)
    queue(executor, "b", "c", concurrency_key="db")
    executor.heartbeat()
    broker.fail("a")
    executor.heartbeat()
    executor.heartbeat()
    executor.revoke_task("b")
    executor.heartbeat()
    clock.advance(10)
    executor.heartbeat()
    assert sent(broker) == ["a", "b", "a"]
    broker.succeed("a")
    executor.heartbeat()
    executor.heartbeat()
    assert sent(broker) == ["a", "b", "a", "c"]


def test_a_task_that_could_not_be_sent_gives_its_place_back(make, broker, clock):
    executor = make(concurrency_limits={"db": 1}, queue_rates={"default": "1/h"})
    queue(executor, "a", concurrency_key="db")
    broker.refuse()
    executor.heartbeat()
    broker.heal()
    clock.advance(60)
    executor.heartbeat()
    assert sent(broker) == ["a"]


def test_a_task_that_was_not_sent_leaves_its_place_of_a_rate_to_others(make, broker, clock):
    executor = make(queue_rates={"net": "1/h"})
    queue(executor, "a", queue="net")
    broker.refuse()
    executor.heartbeat()
    broker.heal()
    executor.revoke_task("a")
    queue(executor, "b", queue="net")
    clock.advance(60)
    executor.heartbeat()
    assert sent(broker) == ["b"]


def test_a_task_that_was_set_aside_gets_the_last_slot(make, broker):
    executor = make(parallelism=2, concurrency_limits={"db": 1})
    queue(executor, "a", "b", concurrency_key="db")
    queue(executor, "x")
    executor.heartbeat()
    assert sent(broker) == ["a", "x"]
    broker.succeed("a")
    executor.heartbeat()
    executor.heartbeat()
    assert sent(broker) == ["a", "x", "b"]


def test_the_window_of_a_rate_begins_with_the_start_and_not_with_the_end(make, broker, clock):
    executor = make(queue_rates={"net": "1/m"})
    queue(executor, "a", "b", queue="net")
    executor.heartbeat()
    broker.start("a")
    executor.heartbeat()
    clock.advance(30)
    broker.succeed("a")
    executor.heartbeat()
    clock.advance(31)
    executor.heartbeat()
    assert sent(broker) == ["a", "b"]


@pytest.mark.parametrize("fields", [{"queue": "net"}, {"concurrency_key": "api"}])
def test_no_window_has_more_starts_than_the_rate(make, broker, clock, fields):
    executor = make(queue_rates={"net": "3/m"}, concurrency_rates={"api": "3/m"})
    queue(executor, *(f"k{n}" for n in range(9)), **fields)
    starts: list[float] = []
    began = clock.now
    for second in range(200):
        executor.heartbeat()
        for task in broker.messages[len(starts) :]:
            starts.append(clock.now)
            if second % 2:
                broker.start(task.key)
            broker.succeed(task.key)
        clock.advance(1)
    assert [start - began for start in starts] == [0, 0, 0, 61, 61, 61, 122, 122, 122]
    assert not executor.tasks_waiting


def test_a_rate_says_when_the_next_task_may_start(make, broker, clock):
    executor = make(queue_rates={"net": "1/m"})
    queue(executor, "a", "b", queue="net")
    executor.heartbeat()
    broker.succeed("a")
    executor.heartbeat()
    executor.heartbeat()
    status = executor.explain("b").now
    assert status.words.endswith("waits for the rate of queue 'net', 1/m: next try in 60.0 s")
    executor.heartbeat()
    executor.wait(60)
    executor.heartbeat()
    assert sent(broker) == ["a", "b"]


class LeasedPlaces(LocalPlaces):
    """A store that keeps places only for as long as they are renewed."""

    renew_interval: float | None = 20.0

    def __init__(self, clock) -> None:
        super().__init__(clock)
        self.renewed: list[list[tuple[str, ...]]] = []

    def renew(self, requests):
        self.renewed.append([tuple(limit.name for limit in request.limits) for request in requests])


def test_places_are_renewed_while_they_are_held(make, broker, clock):
    places = LeasedPlaces(clock)
    executor = make(places, concurrency_limits={"db": 3})
    queue(executor, "a", concurrency_key="db")
    executor.heartbeat()
    executor.heartbeat()
    began = clock.now
    while not places.renewed:
        executor.wait(60)
        executor.heartbeat()
    assert (clock.now, places.renewed) == (began + 20, [[("key:db",)]])
    executor.adjustments.change_limits(shared_limits={"queue_rates": {"default": "5/m"}})
    broker.succeed("a")
    executor.heartbeat()
    clock.advance(60)
    executor.heartbeat()
    assert len(places.renewed) == 1
    executor.get_event_buffer()
    began = clock.now
    executor.wait(60)
    assert clock.now == began + 60


def test_tasks_in_flight_take_places_of_a_first_limit(make, broker, clock):
    places = LocalPlaces(clock)
    one, other = (make(places, concurrency_limits=limits) for limits in ({"db": 1}, {"db": 1, "disk": 1}))
    one.adjustments.change_limits(shared_limits={"concurrency_limits": {"db": None}})
    queue(one, "a", concurrency_key="db")
    one.heartbeat()
    broker.start("a")
    one.heartbeat()
    one.adjustments.change_limits(shared_limits={"concurrency_limits": {"db": 1}})
    queue(other, "b", concurrency_key="db")
    queue(other, "c", concurrency_key="disk")
    other.heartbeat()
    assert sent(broker) == ["a", "c"]


def test_a_limit_that_other_executors_use_is_explained(make, clock):
    class FullStore(LocalPlaces):
        """A store in which others hold all places. It takes longer to answer than an executor waits."""

        def reserve(self, requests):
            clock.advance(1)
            return {each.id: Refusal(each.limits[0], 3, 0.25) for each in requests}

    executor = make(FullStore(clock), concurrency_limits={"db": 3})
    queue(executor, "a", concurrency_key="db")
    executor.heartbeat()
    assert executor.explain("a").now.words.endswith(
        "waits for the limit of key 'db': 3 of 3 run, 3 of them of other executors"
    )
    assert executor.tasks_in_flight == 0


def test_a_store_of_places_that_does_not_answer_is_not_asked_again_at_once(make, clock):
    class LostStore(LocalPlaces):
        asked = 0

        def reserve(self, requests):
            self.asked += 1
            return {each.id: Refusal(each.limits[0], 0, 5.0, "it is unavailable") for each in requests}

    places = LostStore(clock)
    executor = make(places, concurrency_limits={"db": 3})
    queue(executor, "a", "b", concurrency_key="db")
    for _ in range(3):
        executor.heartbeat()
    assert places.asked == 1
    clock.advance(5)
    executor.heartbeat()
    assert places.asked == 2


def test_a_key_without_a_limit_is_refused(make):
    executor = make(concurrency_limits={"db": 1})
    with pytest.raises(
        InvalidTask, match="has the key 'bd', which has no limit; give one, such as --concurrency-limit"
    ):
        queue(executor, "a", concurrency_key="bd")
    with pytest.raises(InvalidTask, match="concurrency_key"):
        queue(make(), "a", concurrency_key="db")


@pytest.mark.parametrize(
    "limits",
    [
        {"concurrency_limits": {"db": 0}},
        {"concurrency_limits": {"db": 10_001}},
        {"concurrency_rates": {"db": "10"}},
        {"queue_rates": {"net": "0/s"}},
        {"queue_rates": {"net": 5}},
    ],
)
def test_limits_that_mean_nothing_are_refused(limits):
    with pytest.raises(InvalidConfig, match=r"limits\[|rates\["):
        Config(**limits)


def test_jobs_of_a_full_key_do_not_hide_those_behind_them(make, broker, tmp_path):
    executor = make(concurrency_limits={"db": 1})
    (tmp_path / "jobs.jsonl").write_text(
        '{"command": "true", "concurrency_key": "db"}\n' * 2_000 + '{"command": "true", "key": "last"}\n'
    )
    jobs = read_whole(str(tmp_path / "jobs.jsonl"), "auto", {}, None, None, None)
    assert isinstance(jobs, PlainJobs)
    executor.accept_tasks(jobs.sources())
    for _ in range(12):
        executor.heartbeat()
    assert sent(broker) == ["1", "last"]


def test_changed_limits_count_at_once(make, broker):
    executor = make(concurrency_limits={"db": 1})
    queue(executor, "a", "b", "c", concurrency_key="db")
    executor.heartbeat()
    executor.adjustments.change_limits(shared_limits={"concurrency_limits": {"db": 2, "disk": 1}})
    queue(executor, "d", concurrency_key="disk")
    executor.heartbeat()
    assert sent(broker) == ["a", "b", "d"]
    for wrong in ({"concurrency_limits": {"db": 0}}, {"queue_rates": {"net": 5}}, {"limits": {"db": 1}}):
        with pytest.raises(InvalidConfig):
            executor.adjustments.change_limits(shared_limits=wrong)
    executor.adjustments.change_limits(shared_limits={"concurrency_limits": {"db": 1}})
    broker.succeed("a")
    executor.heartbeat()
    executor.heartbeat()
    assert sent(broker) == ["a", "b", "d"]


def test_a_first_limit_counts_from_then_on(make, broker, clock):
    executor = make()
    queue(executor, "a", "b", queue="net")
    executor.adjustments.change_limits(shared_limits={"queue_rates": {"net": "1/m"}})
    executor.heartbeat()
    assert sent(broker) == ["a"]
    assert "waits for the rate of queue 'net'" in executor.explain("b").now.words
    executor.adjustments.change_limits(shared_limits={"concurrency_limits": {"db": 1}})
    queue(executor, "c", "d", concurrency_key="db")
    executor.heartbeat()
    assert sent(broker) == ["a", "c"]


def test_a_removed_limit_holds_nothing_back(make, broker):
    executor = make(concurrency_limits={"db": 1}, queue_rates={"net": "1/h"})
    queue(executor, "a", "b", concurrency_key="db")
    queue(executor, "c", "d", queue="net")
    executor.heartbeat()
    assert sent(broker) == ["a", "c"]
    gone = {"concurrency_limits": {"db": None, "unknown": None}, "queue_rates": {"net": None}}
    executor.adjustments.change_limits(shared_limits=gone)
    queue(executor, "e", concurrency_key="db")
    executor.heartbeat()
    assert sent(broker) == ["a", "c", "b", "d", "e"]
    assert executor.adjustments.shared_limits == {}


def test_tasks_in_flight_count_for_a_limit_that_is_given_again(make, broker):
    executor = make(concurrency_limits={"db": 1})
    executor.adjustments.change_limits(shared_limits={"concurrency_limits": {"db": None}})
    queue(executor, "a", "b", concurrency_key="db")
    executor.heartbeat()
    executor.adjustments.change_limits(shared_limits={"concurrency_limits": {"db": 2}})
    queue(executor, "c", "d", concurrency_key="db")
    executor.heartbeat()
    assert sent(broker) == ["a", "b"]
    for number, key in enumerate("abc", start=3):
        broker.succeed(key)
        executor.heartbeat()
        executor.heartbeat()
        assert len(sent(broker)) == min(number, 4)


def test_a_first_limit_is_refused_if_no_store_can_keep_it(broker, clock):
    def refuse():
        raise InvalidConfig("backend", "it cannot keep limits of keys and rates", "give another")

    executor = CeleryExecutor(Config(), publisher=broker, results=broker, revoker=broker, open_places=refuse)
    with pytest.raises(InvalidConfig, match="cannot keep limits"):
        executor.adjustments.change_limits(shared_limits={"queue_rates": {"net": "1/m"}}, parallelism=3)
    executor.adjustments.change_limits(shared_limits={"queue_rates": {"net": None}})
    assert executor.adjustments.shared_limits == {}
