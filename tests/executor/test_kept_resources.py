"""Resources that a waiting task keeps, and the workers at which tasks in flight count."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from celeriac.config.executor_config import Config
from celeriac.executor.capacity import WorkerShare
from celeriac.executor.executor import CeleryExecutor
from celeriac.task.amounts import NOTHING, Amounts
from celeriac.task.task import Task
from celeriac.testing import InMemoryBroker, ManualClock
from tests.executor.test_resources import executor_for as executor_here
from tests.executor.test_worker_resources import Workers, beat, executor_for, queue, sent, share, why


@pytest.fixture
def broker() -> InMemoryBroker:
    return InMemoryBroker()


def test_a_task_keeps_nothing_while_a_more_urgent_one_waits_for_the_same(broker, clock):
    executor = executor_here(broker, clock)
    queue(executor, "runs", cpus=4)
    executor.heartbeat()
    queue(executor, "first", cpus=1)
    queue(executor, "second", cpus=1, memory="8G")
    queue(executor, "third", memory="1G")
    executor.heartbeat()
    assert sent(broker) == ["runs", "third"]


def test_all_but_one_of_the_slots_of_a_task_that_waits_for_resources_are_kept(broker, clock):
    executor = executor_here(broker, clock, parallelism=4)
    queue(executor, "runs", gpus=2)
    executor.heartbeat()
    queue(executor, "waits", gpus=1, slots=2)
    queue(executor, "a", "b", "c")
    executor.heartbeat()
    assert sent(broker) == ["runs", "a", "b"]


def test_it_is_not_logged_that_a_task_waits_for_others(broker, clock, caplog):
    executor = executor_for(Workers(one=4), broker, clock)
    queue(executor, "runs", cpus=4)
    executor.heartbeat()
    queue(executor, "waits", cpus=2)
    beat(executor, clock)
    assert (sent(broker), caplog.messages) == (["runs"], [])
    assert why(executor, "waits")[1] == "it waits for 2 CPUs; free: 0"


def test_no_less_than_nothing_is_free_where_adopted_tasks_take_too_much(broker, clock):
    executor = executor_here(broker, clock)
    executor.adopt_tasks([Task(key=key, command="true", cpus=3) for key in "ab"])
    queue(executor, "waits", cpus=1)
    beat(executor, clock)
    assert why(executor, "waits")[1] == "it waits for 1 CPU; free: 0"


def test_the_workers_are_looked_up_once_for_each_batch(broker, clock):
    class Counted(Workers):
        calls = 0

        def shares(self) -> Mapping[str, WorkerShare] | None:
            self.calls += 1
            return super().shares()

    workers = Counted(one=4, two=4)
    executor = executor_for(workers, broker, clock)
    queue(executor, "a", "b", "c", cpus=2)
    queue(executor, "large", cpus=4)
    executor.heartbeat()
    assert (sent(broker), workers.calls) == (["a", "b", "c"], 1)


def test_a_task_stays_at_its_worker_when_another_one_comes(broker, clock):
    workers = Workers(one=3, two=4)
    executor = executor_for(workers, broker, clock)
    queue(executor, "ends", cpus=3)
    queue(executor, "stays", cpus=2)
    executor.heartbeat()
    broker.succeed("ends")
    workers.now = {**(workers.now or {}), "three": share(1)}
    queue(executor, "large", cpus=4)
    beat(executor, clock)
    assert sent(broker) == ["ends", "stays"]
    assert why(executor, "large")[1] == "it waits for 4 CPUs; free: 2"


def test_a_task_counts_where_a_more_urgent_one_keeps_nothing(broker, clock):
    executor = executor_for(Workers(one=4, two=5), broker, clock)
    queue(executor, "one", cpus=3)
    queue(executor, "two", cpus=4)
    executor.heartbeat()
    queue(executor, "large", cpus=4, priority=1)
    queue(executor, "small", cpus=1)
    beat(executor, clock)
    assert sent(broker) == ["one", "two", "small"]
    broker.succeed("one")
    beat(executor, clock)
    assert sent(broker) == ["one", "two", "small", "large"]


def test_what_tasks_hold_is_added_up_over_all_workers(broker, clock):
    executor = executor_for(Workers(one=4, two=4), broker, clock)
    queue(executor, "a", "b", cpus=3, memory="1G")
    executor.heartbeat()
    resources = executor.adjustments.resources
    assert resources.in_use == Amounts(milli_cpus=6_000, memory=2 * 2**30)
    broker.succeed("a")
    beat(executor, clock)
    assert resources.in_use == Amounts(milli_cpus=3_000, memory=2**30)
    broker.succeed("b")
    beat(executor, clock)
    assert resources.in_use == NOTHING


def test_a_worker_of_all_queues_counts_for_each(broker, clock):
    workers = Workers()
    workers.now = {"any": WorkerShare(Amounts(milli_cpus=2_000), None), "gpu": share(9, "gpu")}
    executor = executor_for(workers, broker, clock)
    queue(executor, "a", cpus=2)
    queue(executor, "b", cpus=2, queue="gpu")
    queue(executor, "c", cpus=1)
    executor.heartbeat()
    assert sent(broker) == ["a", "b"]


@pytest.mark.parametrize("known", [False, True])
def test_tasks_without_needs_start_whatever_is_known_of_the_workers(broker: InMemoryBroker, clock: ManualClock, known):
    workers = Workers(one=1)
    workers.now = workers.now if known else None
    executor = CeleryExecutor(
        Config(parallelism=9), publisher=broker, results=broker, revoker=broker, capacity=workers, clock=clock
    )
    queue(executor, "a", "b")
    executor.heartbeat()
    assert sent(broker) == ["a", "b"]
