"""Explain what a task waits for, with all of its facts. `test_control.py` has the words, and the requests."""

from __future__ import annotations

import pytest

from celeriac.config.executor_config import Config
from celeriac.executor.executor import CeleryExecutor
from celeriac.executor.interfaces import UnfinishedTask
from celeriac.executor.requests import WaitReason
from celeriac.task.amounts import Amounts
from celeriac.task.result import Execution, Reason, Result
from celeriac.task.state import State
from celeriac.task.task import Task


@pytest.fixture
def executor(broker, clock) -> CeleryExecutor:
    executor = CeleryExecutor(
        Config(parallelism=4), publisher=broker, results=broker, revoker=broker, clock=clock, wall_clock=clock
    )
    executor.adjustments.limit_resources(lambda: Amounts(milli_cpus=4_000, memory=2**33, gpus=2))
    return executor


def queue(executor: CeleryExecutor, *keys: str, **fields) -> None:
    for key in keys:
        executor.queue_command(key, "true", **fields)


def why(executor: CeleryExecutor, key: str) -> tuple[WaitReason, str]:
    """Return why a task waits, without its place."""
    now = executor.explain(key).now
    return now.waits_for, now.words.partition("; ")[2]


def facts(executor: CeleryExecutor, key: str) -> dict[str, int | float | str]:
    """Return the facts without those of its place."""
    place = {"place": 1, "queue": "default", "priority": 0}
    found = executor.explain(key).now.facts
    return {name: fact for name, fact in found.items() if (name, fact) not in place.items()}


def test_a_task_whose_delay_is_over_is_sent_soon(executor, broker, clock):
    queue(executor, "a", retries=1, retry_delay=10)
    executor.heartbeat()
    broker.fail("a")
    executor.heartbeat()
    (failed,), failed_at = executor.explain("a").moves[1:], clock.now
    clock.advance(2.0)
    assert facts(executor, "a") == {"seconds": round(failed.retry_in - 2.0, 3)}
    clock.now = failed_at + failed.retry_in
    assert why(executor, "a") == (WaitReason.HEARTBEAT, "sent by one of the next heartbeats")


def test_a_task_that_waits_since_an_earlier_executor_has_no_events(executor, clock):
    task = Task(key="a", command="true", attempt=2)
    executor.recovery.resume([UnfinishedTask(task, State.WAITING, clock.now, not_before=clock.now + 30.0)])
    explanation = executor.explain("a")
    assert (explanation.now.words, explanation.now.facts) == ("waiting: next attempt in 30.0 s", {"seconds": 30.0})
    assert (explanation.moves, explanation.left_out) == ((), 0)


def test_a_pause_says_since_when(executor, clock):
    queue(executor, "a")
    since = clock.now
    executor.adjustments.pause(asked_by="ada")
    clock.advance(5)
    assert facts(executor, "a") == {"asked_by": "ada", "since": since}


def test_an_outage_says_how_long_it_lasts(executor, broker, clock):
    broker.refuse()
    queue(executor, "a")
    executor.heartbeat()
    seconds = float(facts(executor, "a")["seconds"])
    clock.advance(0.0504)
    left = facts(executor, "a")
    assert left == {"seconds": pytest.approx(seconds - 0.0504, abs=0.001)}
    assert left == {"seconds": round(float(left["seconds"]), 3)}


def test_a_task_that_waits_for_more_than_is_free_says_how_much(executor):
    queue(executor, "runs", cpus=2.5, slots=2)
    executor.heartbeat()
    queue(executor, "cpus", cpus=3.5, priority=1)
    queue(executor, "slots", slots=3)
    assert facts(executor, "cpus") == {"priority": 1, "resource": "cpus", "needs": 3.5, "free": 1.5}
    assert facts(executor, "slots") == {"place": 2, "parallelism": 4, "in_use": 2, "slots": 3}


def test_a_limit_of_a_queue_holds_back_its_own_tasks(broker, clock):
    executor = CeleryExecutor(Config(queue_limits={"gpu": 1}), publisher=broker, results=broker, revoker=broker)
    queue(executor, "runs", "waits", queue="gpu", priority=9)
    executor.heartbeat()
    queue(executor, "other")
    assert facts(executor, "waits") == {"queue": "gpu", "priority": 9, "limit": 1}
    assert why(executor, "other") == (WaitReason.HEARTBEAT, "sent by one of the next heartbeats")


def test_the_most_urgent_of_several_tasks_that_lack_resources_is_named(executor):
    queue(executor, "runs", cpus=1, gpus=1, memory="1G")
    executor.heartbeat()
    queue(executor, "gpus", gpus=2, priority=2)
    queue(executor, "memory", memory="8G", priority=1)
    queue(executor, "waits", cpus=1, gpus=1, memory="1G")
    assert executor.explain("waits").now.facts["first"] == "gpus"


def test_a_task_waits_for_its_turn_while_a_more_urgent_one_keeps_slots(executor):
    """Let a task with three slots keep two of the three open ones until it has its CPUs."""
    queue(executor, "runs", cpus=3)
    executor.heartbeat()
    queue(executor, "first", cpus=4, slots=3)
    queue(executor, "two", slots=2, queue="other")
    queue(executor, "one", queue="other")
    assert why(executor, "first") == (WaitReason.RESOURCES, "it waits for 4 CPUs; free: 1")
    assert why(executor, "two") == (WaitReason.OTHERS, "a more urgent task waits for 4 CPUs")
    assert executor.explain("two").now.facts["first"] == "first"
    executor.revoke_task("two")
    assert why(executor, "one") == (WaitReason.HEARTBEAT, "sent by one of the next heartbeats")


def test_a_more_urgent_task_that_fits_holds_nobody_back(executor):
    queue(executor, "all", slots=4, priority=1)
    queue(executor, "one")
    assert why(executor, "one") == (WaitReason.HEARTBEAT, "sent by one of the next heartbeats")


def test_an_adopted_task_is_new_to_this_executor(executor, clock):
    executor.adopt_tasks([Task(key="a", command="true", queue="gpu", priority=5)])
    executor.adopt_tasks([Task(key="b", command="true")], State.RUNNING)
    now = executor.explain("a").now
    assert now.words == "queued: at the broker for 0.0 s, 0 of this executor's tasks before it"
    assert now.facts == {"seconds": 0.0, "ahead": 0, "queue": "gpu", "level": 5}
    now = executor.explain("b").now
    assert (now.words, now.facts) == ("running for 0.0 s", {"seconds": 0.0})
    clock.advance(1.23456)
    assert (facts(executor, "a")["seconds"], facts(executor, "b")["seconds"]) == (1.235, 1.235)


def test_a_running_task_is_where_its_present_attempt_runs(executor, broker):
    queue(executor, "a", retries=1, retry_delay=0.0)
    executor.heartbeat()
    first = Execution(host="elsewhere", pid=7, exit_code=1)
    broker.put(broker.message("a").message_id, Result(State.FAILED, Reason.EXIT_CODE, "exit code 1", first))
    executor.heartbeat()
    executor.heartbeat()
    broker.start("a")
    executor.heartbeat()
    now = executor.explain("a").now
    assert (now.waits_for, now.words) == (WaitReason.END, "running on in-memory for 0.0 s")
    assert now.facts == {"seconds": 0.0, "host": "in-memory"}


def test_a_task_may_run_without_a_known_place(executor, broker):
    queue(executor, "a")
    executor.heartbeat()
    broker.put(broker.message("a").message_id, Result(State.RUNNING))
    executor.heartbeat()
    now = executor.explain("a").now
    assert (now.words, now.facts) == ("running for 0.0 s", {"seconds": 0.0})
