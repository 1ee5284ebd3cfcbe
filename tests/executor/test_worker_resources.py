"""Test tasks that share the resources of several workers, which the broker chooses from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celeriac.config.executor_config import Config
from celeriac.executor.capacity import WorkerShare
from celeriac.executor.executor import CeleryExecutor
from celeriac.executor.requests import WaitReason
from celeriac.task.amounts import Amounts, amounts_of, missing
from celeriac.task.task import Task
from celeriac.testing import InMemoryBroker, ManualClock


class Workers:
    """A `Capacity` that a test sets."""

    def __init__(self, **cpus: int) -> None:
        self.now: Mapping[str, WorkerShare] | None = {name: share(number) for name, number in cpus.items()}

    def by_queue(self) -> Mapping[str, int]:
        return {"default": 100, "gpu": 100}

    def why_held(self, queue: str) -> str | None:
        return None

    def shares(self) -> Mapping[str, WorkerShare] | None:
        return self.now


def share(cpus: int, *queues: str, gpus: int = 0) -> WorkerShare:
    return WorkerShare(Amounts(milli_cpus=1_000 * cpus, memory=2**40, gpus=gpus), frozenset(queues or ("default",)))


def executor_for(workers: Workers, broker: InMemoryBroker, clock: ManualClock) -> CeleryExecutor:
    config = Config(parallelism=1_000)
    return CeleryExecutor(config, publisher=broker, results=broker, revoker=broker, capacity=workers, clock=clock)


def sent(broker: InMemoryBroker) -> list[object]:
    return [task.key for task in broker.messages]


def queue(executor: CeleryExecutor, *keys: str, **fields: Any) -> None:
    for key in keys:
        executor.queue_command(key, "true", **fields)


def why(executor: CeleryExecutor, key: str) -> tuple[WaitReason, str]:
    now = executor.explain(key).now
    return now.waits_for, now.words.partition("; ")[2]


def beat(executor: CeleryExecutor, clock: ManualClock) -> None:
    clock.advance(1.0)
    executor.sync()
    executor.heartbeat()


def test_what_is_sent_fits_the_workers_one_by_one(broker, clock):
    """Send two of the three: together the workers have nine CPUs, and no worker has six."""
    executor = executor_for(Workers(one=4, two=5), broker, clock)
    queue(executor, "a", "b", "c", cpus=3)
    executor.heartbeat()
    assert sent(broker) == ["a", "b"]
    assert why(executor, "c") == (WaitReason.RESOURCES, "it waits for 3 CPUs; free: 2")
    broker.succeed("a")
    beat(executor, clock)
    assert sent(broker) == ["a", "b", "c"]


def test_only_the_workers_of_its_queue_count(broker, clock):
    workers = Workers()
    workers.now = {"cpu": share(8), "gpu": share(2, "gpu", gpus=1)}
    executor = executor_for(workers, broker, clock)
    queue(executor, "cpu", cpus=4)
    queue(executor, "gpu", cpus=4, queue="gpu")
    queue(executor, "wrong", gpus=1)
    executor.heartbeat()
    assert sent(broker) == ["cpu"]
    assert why(executor, "gpu") == (WaitReason.WORKERS, "no live worker of queue 'gpu' has 4 CPUs")
    assert why(executor, "wrong") == (WaitReason.WORKERS, "no live worker of queue 'default' has 1 GPU")


def test_a_worker_with_enough_may_come_later(broker, clock, caplog):
    workers = Workers(small=2)
    executor = executor_for(workers, broker, clock)
    queue(executor, "large", cpus=8)
    queue(executor, "small", cpus=1)
    with caplog.at_level(logging.WARNING, "celeriac"):
        for _ in range(3):
            beat(executor, clock)
    assert [record.getMessage() for record in caplog.records] == [
        "no live worker of queue 'default' has 8 CPUs: task 'large' waits"
    ]
    assert sent(broker) == ["small"]
    workers.now = {**(workers.now or {}), "large": share(8)}
    beat(executor, clock)
    assert sent(broker) == ["small", "large"]


def test_while_the_workers_are_not_known_tasks_with_needs_wait(broker, clock, caplog):
    workers = Workers()
    workers.now = None
    executor = executor_for(workers, broker, clock)
    queue(executor, "needs", cpus=1)
    queue(executor, "none")
    executor.heartbeat()
    assert sent(broker) == ["none"]
    assert why(executor, "needs") == (WaitReason.WORKERS, "the live workers are not known yet")
    assert caplog.messages == []
    workers.now = {"one": share(1)}
    beat(executor, clock)
    assert sent(broker) == ["none", "needs"]


def test_a_worker_that_has_gone_gives_its_tasks_no_more_room(broker, clock):
    workers = Workers(one=1, two=1)
    executor = executor_for(workers, broker, clock)
    queue(executor, "a", "b", "c", cpus=1)
    executor.heartbeat()
    workers.now = {"one": share(1)}
    beat(executor, clock)
    assert sent(broker) == ["a", "b"]
    broker.succeed("a")
    broker.succeed("b")
    beat(executor, clock)
    assert sent(broker) == ["a", "b", "c"]


def test_what_was_in_flight_before_the_workers_were_known_counts(broker, clock):
    workers = Workers(one=2)
    first = executor_for(workers, broker, clock)
    queue(first, "a", "b", cpus=1)
    first.heartbeat()
    known, workers.now = workers.now, None
    second = executor_for(workers, broker, clock)
    second.adopt_tasks(list(broker.messages))
    queue(second, "c", cpus=1)
    second.heartbeat()
    workers.now = known
    beat(second, clock)
    assert sent(broker) == ["a", "b"]
    broker.succeed("a")
    beat(second, clock)
    assert sent(broker) == ["a", "b", "c"]


def test_tasks_in_flight_count_again_after_their_workers_were_not_known(broker, clock):
    workers = Workers(one=2)
    executor = executor_for(workers, broker, clock)
    queue(executor, "a", cpus=1)
    executor.heartbeat()
    known, workers.now = workers.now, None
    queue(executor, "b", "c", cpus=1)
    beat(executor, clock)
    assert sent(broker) == ["a"]
    workers.now = known
    beat(executor, clock)
    assert sent(broker) == ["a", "b"]


def test_adopted_tasks_count_at_the_workers_that_have_room_for_them(broker, clock):
    executor = executor_for(Workers(one=1, two=2), broker, clock)
    executor.heartbeat()
    executor.adopt_tasks([Task(key=key, command="true", cpus=1) for key in "ab"])
    queue(executor, "large", cpus=2)
    beat(executor, clock)
    assert sent(broker) == []
    assert why(executor, "large") == (WaitReason.RESOURCES, "it waits for 2 CPUs; free: 1")


def test_a_task_leaves_the_larger_worker_to_others(broker, clock):
    executor = executor_for(Workers(large=8, small=2), broker, clock)
    queue(executor, "small", cpus=2)
    queue(executor, "large", cpus=8)
    executor.heartbeat()
    assert sent(broker) == ["small", "large"]


def test_explain_names_what_is_missing_at_the_closest_worker(broker, clock):
    """Let a task wait for four fifths of its CPUs at one worker, and for its whole GPU at the other."""
    workers = Workers()
    workers.now = {"gpu in use": share(10, gpus=1), "cpus in use": share(5, gpus=1)}
    executor = executor_for(workers, broker, clock)
    queue(executor, "cpus", cpus=4)
    queue(executor, "gpu", cpus=2, gpus=1)
    executor.heartbeat()
    assert sent(broker) == ["cpus", "gpu"]
    queue(executor, "both", cpus=5, gpus=1)
    assert why(executor, "both") == (WaitReason.RESOURCES, "it waits for 5 CPUs; free: 1")


def test_explain_names_the_more_urgent_task_that_waits_for_resources(broker, clock):
    executor = executor_for(Workers(one=4), broker, clock)
    queue(executor, "runs", cpus=3)
    executor.heartbeat()
    queue(executor, "large", cpus=4)
    queue(executor, "small", cpus=1)
    status = executor.explain("small").now
    assert (status.waits_for, status.facts["first"]) == (WaitReason.OTHERS, "large")


def test_a_large_task_is_not_starved_by_smaller_ones_at_several_workers(broker, clock):
    executor = executor_for(Workers(one=4, two=4), broker, clock)
    queue(executor, *(f"small-{number}" for number in range(8)), cpus=1)
    executor.heartbeat()
    queue(executor, "large", cpus=4)
    queue(executor, *(f"small-{number}" for number in range(8, 40)), cpus=1)
    for number in range(40):
        if "large" in sent(broker):
            break
        broker.succeed(f"small-{number}")
        beat(executor, clock)
    assert sent(broker).index("large") <= 16, "four CPUs of one worker were kept for it"


AMOUNT = st.integers(0, 4)
NEEDS = st.fixed_dictionaries({"cpus": st.integers(1, 4), "gpus": st.integers(0, 2)})


@settings(max_examples=200, deadline=None)
@given(
    workers=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 3)), min_size=1, max_size=4),
    needs=st.lists(NEEDS, min_size=1, max_size=20),
    ends=st.lists(st.integers(0, 30), max_size=40),
)
def test_what_is_in_flight_fits_and_all_that_can_starts(workers, needs, ends):
    broker, clock = InMemoryBroker(), ManualClock()
    known = Workers()
    known.now = {str(number): share(cpus, gpus=gpus) for number, (cpus, gpus) in enumerate(workers)}
    executor = executor_for(known, broker, clock)
    for number, fields in enumerate(needs):
        queue(executor, str(number), **fields)
    possible = {
        str(number)
        for number, fields in enumerate(needs)
        if any(fields["cpus"] <= cpus and fields["gpus"] <= gpus for cpus, gpus in workers)
    }
    running: list[Task] = []
    begun: set[object] = set()
    for end in [*ends, *range(len(needs) * 2)]:
        executor.heartbeat()
        running += [task for task in broker.messages if task.key not in begun]
        begun |= {task.key for task in running}
        assert fits(running, [share.total for share in (known.now or {}).values()])
        if running:
            broker.succeed(running.pop(end % len(running)).key)
        clock.advance(1.0)
        executor.sync()
    assert begun == possible


def fits(tasks: list[Task], totals: list[Amounts]) -> bool:
    """Return whether tasks can be shared out among workers."""
    if not tasks:
        return True
    needs = amounts_of(tasks[0])
    assert needs is not None
    return any(
        not missing(needs, total) and fits(tasks[1:], [*totals[:at], total.minus(needs), *totals[at + 1 :]])
        for at, total in enumerate(totals)
    )


@pytest.fixture
def broker() -> InMemoryBroker:
    return InMemoryBroker()
