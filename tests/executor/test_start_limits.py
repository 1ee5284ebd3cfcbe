"""Limits of the machine, and the delay between two starts, of an executor in memory."""

from __future__ import annotations

import pytest

from celeriac.config.executor_config import Config
from celeriac.errors import InvalidConfig
from celeriac.executor.executor import CeleryExecutor
from celeriac.executor.requests import WaitReason
from celeriac.executor.start_gate import Readings
from celeriac.task.state import State


class Machine:
    """A machine with a load that a test sets."""

    def __init__(self) -> None:
        self.load, self.reads = 0.0, 0

    def read(self) -> Readings:
        self.reads += 1
        return Readings(load=self.load, cpus=2, free_memory=None)


@pytest.fixture
def machine() -> Machine:
    return Machine()


def executor_of(config: Config, broker, clock, machine: Machine | None) -> CeleryExecutor:
    return CeleryExecutor(
        config,
        publisher=broker,
        results=broker,
        revoker=broker,
        clock=clock,
        wall_clock=clock,
        readings=machine.read if machine is not None else None,
    )


def sent(broker) -> list[str]:
    return [str(task.key) for task in broker.messages]


def test_a_task_waits_for_the_load_and_says_so(broker, clock, machine):
    executor = executor_of(Config(parallelism=2, max_load="400%"), broker, clock, machine)
    executor.heartbeat()
    assert machine.reads == 0  # nothing waits
    executor.queue_command("a", "true")
    executor.heartbeat()
    machine.load = 9.2
    clock.advance(1.0)
    executor.queue_command("b", "true")
    executor.heartbeat()
    assert (sent(broker), executor.adjustments.why_held()) == (["a"], "waits: load 9.2 is above 8")
    status = executor.explain("b").now
    assert status.waits_for is WaitReason.LOAD
    assert status.words == "waiting: place 1 of queue 'default' (priority 0); load 9.2 is above 8"
    assert (status.facts["load"], status.facts["max_load"]) == (9.2, 8.0)
    broker.succeed("a")
    executor.heartbeat()
    machine.load = 1.0
    begun = clock()
    while len(broker.messages) < 2:
        executor.wait(60.0)
        executor.heartbeat()
    assert clock() - begun <= 1.0
    assert (sent(broker), executor.adjustments.why_held()) == (["a", "b"], "")


def test_an_executor_whose_tasks_wait_for_no_load_sleeps(broker, clock, machine):
    broker.pushes = True
    executor = executor_of(Config(parallelism=2, max_load=4, reconcile_interval_pushed=10_000), broker, clock, machine)
    executor.sync()
    executor.queue_command("a", "true")
    executor.heartbeat()
    begun = clock()
    executor.wait(40.0)
    assert clock() == begun + 40.0


def test_tasks_of_workers_elsewhere_do_not_wait_for_this_machine(broker, clock):
    executor = executor_of(Config(parallelism=2, max_load=0.001, min_free_memory=2**60), broker, clock, None)
    executor.queue_command("a", "true")
    executor.heartbeat()
    assert sent(broker) == ["a"]


@pytest.mark.parametrize("delay", [1, 2.0])
def test_starts_are_a_delay_apart(broker, clock, delay):
    executor = executor_of(Config(parallelism=9, delay=delay), broker, clock, None)
    begun, times = clock(), []
    for key in "abcd":
        executor.queue_command(key, "true")
    for _ in range(50):
        before = len(broker.messages)
        executor.heartbeat()
        times += [clock() - begun] * (len(broker.messages) - before)
        executor.wait(60.0)
        if len(times) == 4:
            break
    assert times == [delay * number for number in range(4)]


def test_a_held_task_is_cancelled_at_once(broker, clock, machine):
    machine.load = 5.0
    executor = executor_of(Config(max_load=1), broker, clock, machine)
    executor.queue_command("a", "true")
    executor.heartbeat()
    executor.revoke_task("a")
    assert [event.state for event in executor.get_event_buffer()] == [State.REVOKED]
    executor.heartbeat()
    assert executor.adjustments.why_held() == ""


@pytest.mark.parametrize("load", [0, -1, "0%", "8", "x%", "nan%", True, float("inf"), [1]])
def test_a_load_that_is_none_is_refused(load):
    with pytest.raises(InvalidConfig, match=r"max_load: .*; give for example 8 or 100%"):
        Config(max_load=load)


@pytest.mark.parametrize("config", [{"min_free_memory": 0}, {"min_free_memory": "1G"}, {"delay": -1}, {"delay": "1"}])
def test_other_limits_are_checked(config):
    with pytest.raises(InvalidConfig):
        Config(**config)
