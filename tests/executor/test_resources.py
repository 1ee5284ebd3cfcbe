"""Test the CPUs, memory and GPUs that tasks share, one rule at a time. `test_executor_model.py` tests histories."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celeriac.config.executor_config import Config
from celeriac.errors import InvalidTask
from celeriac.executor import priority_queue
from celeriac.executor.executor import CeleryExecutor
from celeriac.executor.requests import WaitReason
from celeriac.task.amounts import NOTHING, Amounts, amounts_of, missing
from celeriac.task.result import Reason, Result
from celeriac.task.state import State
from celeriac.task.task import OnWorkerLost
from celeriac.testing import InMemoryBroker, ManualClock

THERE_IS = Amounts(milli_cpus=4_000, memory=8 * 2**30, gpus=2)


def executor_for(broker: InMemoryBroker, clock: ManualClock, parallelism: int = 8) -> CeleryExecutor:
    executor = CeleryExecutor(
        Config(parallelism=parallelism), publisher=broker, results=broker, revoker=broker, clock=clock
    )
    executor.adjustments.limit_resources(lambda: THERE_IS)
    return executor


@pytest.fixture
def executor(broker: InMemoryBroker, clock: ManualClock) -> CeleryExecutor:
    return executor_for(broker, clock)


def sent(broker: InMemoryBroker) -> list[object]:
    return [task.key for task in broker.messages]


def now(executor: CeleryExecutor, key: str) -> tuple[WaitReason, str]:
    status = executor.explain(key).now
    return status.waits_for, status.words.partition("; ")[2]


def queue(executor: CeleryExecutor, key: str, **fields: Any) -> None:
    executor.queue_command(key, "true", **fields)


def test_tasks_share_what_there_is(executor, broker):
    for key in "abc":
        queue(executor, key, cpus=1.5, memory="3G")
    executor.heartbeat()
    assert sent(broker) == ["a", "b"]
    assert now(executor, "c") == (WaitReason.RESOURCES, "it waits for 1.5 CPUs; free: 1")
    broker.succeed("a")
    executor.sync()
    executor.heartbeat()
    assert sent(broker) == ["a", "b", "c"]


def test_what_a_task_waits_for_is_explained(executor):
    queue(executor, "a", memory="5G")
    queue(executor, "b", memory="8G")
    queue(executor, "c", memory="2G")
    executor.heartbeat()
    assert now(executor, "b") == (WaitReason.RESOURCES, "it waits for 8 GiB of memory; free: 3 GiB")
    assert now(executor, "c") == (WaitReason.OTHERS, "a more urgent task waits for 8 GiB of memory")
    assert executor.explain("b").now.facts["free"] == 3 * 2**30


def test_a_task_that_fits_goes_past_one_that_waits_for_another_resource(executor, broker):
    for key in ("gpu-1", "gpu-2", "gpu-3"):
        queue(executor, key, gpus=2, cpus=1)
    for key in ("cpu-1", "cpu-2", "cpu-3"):
        queue(executor, key, cpus=1)
    queue(executor, "none")
    executor.heartbeat()
    assert sent(broker) == ["gpu-1", "cpu-1", "cpu-2", "none"], "one CPU is kept for gpu-2"


def test_no_slot_stays_open_for_a_task_that_waits_for_another_resource(broker, clock):
    executor = executor_for(broker, clock, parallelism=2)
    queue(executor, "running", gpus=2)
    queue(executor, "waiting", gpus=1)
    queue(executor, "other")
    executor.heartbeat()
    assert sent(broker) == ["running", "other"]
    queue(executor, "third")
    broker.succeed("running")
    executor.sync()
    executor.heartbeat()
    assert sent(broker) == ["running", "other", "waiting"]


def test_a_larger_task_is_not_starved_by_smaller_ones(executor, broker):
    for number in range(4):
        queue(executor, f"small-{number}", cpus=1)
    executor.heartbeat()
    queue(executor, "large", cpus=3)
    for number in range(4, 12):
        queue(executor, f"small-{number}", cpus=1)
        broker.succeed(f"small-{number - 4}")
        executor.sync()
        executor.heartbeat()
        if "large" in sent(broker):
            break
    assert sent(broker)[4:] == ["large"], "it starts when three CPUs are free, and nothing starts before it"


@pytest.mark.parametrize("end", ["retry", "lost", "revoke", "fail"])
def test_every_end_of_an_attempt_gives_back_what_it_held(executor, broker, end):
    queue(executor, "a", gpus=2, retries=1, retry_delay=60.0, on_worker_lost=OnWorkerLost.FAIL)
    executor.heartbeat()
    assert executor.adjustments.resources.in_use.gpus == 2
    message = broker.messages[0].message_id
    if end == "retry":
        broker.fail("a")
    elif end == "lost":
        broker.put(message, Result(State.FAILED, Reason.LOST))
    elif end == "revoke":
        executor.revoke_task("a")
    else:
        executor.fail("a")
    executor.sync()
    executor.sync()
    assert executor.adjustments.resources.in_use == NOTHING


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cpus": 4.5}, "cpus: asks for 4.5 CPUs, and there are 4; ask for less, or set cpus to what there is"),
        ({"memory": "9G"}, "memory: asks for 9 GiB of memory, and there are 8 GiB; ask for less, or set memory "),
        ({"gpus": 3}, "gpus: asks for 3 GPUs, and there are 2; ask for less, or set gpus to what there is"),
    ],
)
def test_a_task_that_needs_more_than_there_is_is_refused(executor, fields, message):
    with pytest.raises(InvalidTask) as caught:
        queue(executor, "a", **fields)
    assert str(caught.value).startswith(message)


def test_an_executor_that_does_not_know_its_workers_leaves_it_to_them_what_fits(broker):
    executor = CeleryExecutor(Config(parallelism=8), publisher=broker, results=broker, revoker=broker)
    for key in "abc":
        queue(executor, key, memory="100G")
    executor.heartbeat()
    assert sent(broker) == ["a", "b", "c"]


def test_what_there_is_is_found_out_when_it_is_first_needed(broker):
    calls: list[None] = []

    def find() -> Amounts:
        calls.append(None)
        return THERE_IS

    executor = CeleryExecutor(Config(), publisher=broker, results=broker, revoker=broker)
    executor.adjustments.limit_resources(find)
    queue(executor, "plain")
    executor.heartbeat()
    assert not calls
    queue(executor, "a", cpus=1)
    queue(executor, "b", cpus=1)
    executor.heartbeat()
    assert len(calls) == 1


def test_many_kinds_of_needs_share_a_heap(broker, clock, monkeypatch):
    monkeypatch.setattr(priority_queue, "MAX_GROUPS", 2)
    executor = executor_for(broker, clock)
    for number in range(1, 8):
        queue(executor, f"t{number}", memory=number * 2**30, priority=number)
    queue(executor, "plain", priority=-1)
    keys: list[object] = []
    for _ in range(20):
        executor.heartbeat()
        for task in broker.unfinished:
            keys.append(task.key)
            broker.succeed(task.key)
        executor.sync()
    assert sorted(map(str, keys)) == ["plain", *(f"t{number}" for number in range(1, 8))]


NEEDS = st.fixed_dictionaries(
    {},
    optional={
        "cpus": st.integers(1, 4_000).map(lambda milli: milli / 1_000),
        "memory": st.integers(1, THERE_IS.memory),
        "gpus": st.integers(0, 2),
    },
)


@settings(deadline=None)
@given(
    st.lists(st.tuples(NEEDS, st.integers(0, 2), st.integers(1, 3)), max_size=12),
    st.integers(3, 5),
    st.randoms(use_true_random=False),
)
def test_the_most_urgent_task_starts_as_soon_as_it_could_alone(wanted, parallelism, random):
    clock = ManualClock()
    broker = InMemoryBroker(clock)
    executor = executor_for(broker, clock, parallelism)
    for number, (needs, priority, slots) in enumerate(wanted):
        queue(executor, f"t{number}", priority=priority, slots=slots, **needs)
    waiting = sorted(executor.tasks(), key=lambda task: (-task.priority, int(str(task.key)[1:])))
    held: set[object] = set()  # what was in flight when the most urgent waiting task became it
    while waiting:
        executor.heartbeat()
        running = list(broker.unfinished)
        in_use = NOTHING
        for task in running:
            in_use = in_use.plus(amounts_of(task) or NOTHING)
        assert not missing(in_use, THERE_IS)
        assert sum(task.slots for task in running) <= parallelism
        first, keys = waiting[0], {task.key for task in running}
        waiting = [task for task in waiting if task.key not in keys]
        if first in waiting:
            held = held & keys if held else keys
            assert held, "it waits only for tasks that were in flight before"
        else:
            held = set()
        if running:
            broker.succeed(random.choice(running).key)
        executor.sync()
