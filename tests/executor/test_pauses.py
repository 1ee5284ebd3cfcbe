"""Pauses and changed limits of an executor, in memory. The model test covers their combinations."""

from __future__ import annotations

import pytest

from celeriac.config.executor_config import Config
from celeriac.errors import InvalidConfig
from celeriac.executor.executor import CeleryExecutor
from celeriac.executor.pauses import Pause
from celeriac.executor.requests import (
    ErrorReply,
    LimitsReply,
    LimitsRequest,
    PauseReply,
    PauseRequest,
    WaitReason,
)
from celeriac.ledger.owned_run import RunKey
from celeriac.runs.job_file import PlainJobs, read_whole
from celeriac.testing import InMemoryBroker


@pytest.fixture
def executor(broker, clock, channel) -> CeleryExecutor:
    return CeleryExecutor(
        Config(parallelism=2),
        publisher=broker,
        results=broker,
        revoker=broker,
        control_channel=channel,
        clock=clock,
        wall_clock=clock,
    )


def sent(broker: InMemoryBroker) -> list[str]:
    return [str(task.key) for task in broker.messages]


def queue(executor: CeleryExecutor, *keys: str, **fields) -> None:
    for key in keys:
        executor.queue_command(key, "true", **fields)


def test_a_request_pauses_the_executor_and_another_one_resumes_it(executor, broker, channel):
    queue(executor, "a")
    executor.heartbeat()
    queue(executor, "b")
    replies = channel.ask(PauseRequest(asked_by="ada"))
    executor.sync()
    assert replies == [PauseReply(changed=True, paused=True, waiting=1, in_flight=1)]
    broker.succeed("a")
    executor.heartbeat()
    assert (sent(broker), executor.tasks_in_flight) == (["a"], 0)
    status = executor.explain("b").now
    assert (status.waits_for, status.facts["asked_by"]) == (WaitReason.PAUSED, "ada")
    assert status.words == "waiting: place 1 of queue 'default' (priority 0); the run is paused by ada"
    assert executor.adjustments.pauses.words() == executor.adjustments.why_held() == "paused by ada"
    replies = channel.ask(PauseRequest(resume=True))
    executor.heartbeat()
    assert replies == [PauseReply(changed=True, paused=False, waiting=1, in_flight=0)]
    executor.heartbeat()
    assert sent(broker) == ["a", "b"]


def test_a_request_pauses_some_queues_and_is_logged_if_it_changes_anything(executor, broker, channel, caplog):
    queue(executor, "a")
    queue(executor, "b", queue="gpu")
    asked = (
        PauseRequest(queues=("gpu", "net", "gpu"), asked_by="ada"),
        PauseRequest(queues=("gpu",), asked_by="bob"),
        PauseRequest(asked_by="ada"),
        PauseRequest(resume=True, asked_by="ada"),
        PauseRequest(queues=("net",), resume=True, asked_by="bob"),
    )
    replies = [channel.ask(request) for request in asked]
    with caplog.at_level("WARNING", "celeriac"):
        executor.sync()
    both, waiting = ("gpu", "net"), {"waiting": 2, "in_flight": 0}
    assert [reply for (reply,) in replies] == [
        PauseReply(changed=True, paused=False, queues=both, **waiting),
        PauseReply(changed=False, paused=False, queues=both, **waiting),
        PauseReply(changed=True, paused=True, queues=both, **waiting),
        PauseReply(changed=True, paused=False, queues=both, **waiting),
        PauseReply(changed=True, paused=False, queues=("gpu",), **waiting),
    ]
    assert caplog.messages == [
        "paused queue 'gpu', queue 'net', queue 'gpu', asked by ada",
        "paused all tasks, asked by ada",
        "resumed all tasks, asked by ada",
        "resumed queue 'net', asked by bob",
    ]
    executor.heartbeat()
    assert sent(broker) == ["a"]


def test_a_wide_task_of_a_paused_queue_holds_back_nothing(executor, broker):
    queue(executor, "runs")
    executor.heartbeat()
    executor.adjustments.pause("wide")
    queue(executor, "wide", queue="wide", slots=2, priority=9)
    queue(executor, "narrow")
    executor.heartbeat()
    assert sent(broker) == ["runs", "narrow"]


def test_an_unconfirmed_task_is_not_sent_again_during_a_pause(executor, broker, clock):
    broker.leave_unsure("a", delivered=False)
    queue(executor, "a")
    executor.heartbeat()
    broker.heal()
    executor.adjustments.pause()
    clock.advance(60)
    executor.heartbeat()
    assert sent(broker) == []
    executor.adjustments.resume()
    executor.heartbeat()
    assert sent(broker) == ["a"]


def test_a_paused_executor_sleeps(executor, broker, clock):
    queue(executor, "a", "b")
    queue(executor, "c", queue="other")
    executor.adjustments.pause()
    executor.heartbeat()
    before = clock.now
    executor.wait(50.0)
    assert clock.now == before + 50.0
    executor.adjustments.resume()
    for name in ("default", "other"):
        executor.adjustments.pause(name)
    executor.heartbeat()
    before = clock.now
    executor.wait(50.0)
    assert clock.now == before + 50.0


def test_a_pause_of_a_queue_outlasts_the_pause_of_all(executor, broker):
    adjustments = executor.adjustments
    assert adjustments.pause("other")
    assert adjustments.pause()
    assert not adjustments.pause()
    queue(executor, "a")
    queue(executor, "b", queue="other")
    assert adjustments.resume()
    assert not adjustments.resume()
    executor.heartbeat()
    assert sent(broker) == ["a"]
    assert adjustments.pauses.words() == "queue 'other' paused"
    assert adjustments.resume("other")
    executor.heartbeat()
    assert sent(broker) == ["a", "b"]


def test_a_pause_of_a_queue_is_told_from_one_that_is_there_already(executor, clock):
    adjustments = executor.adjustments
    assert adjustments.pause("q", asked_by="ada")
    since = clock.now
    clock.advance(1)
    assert not adjustments.pause("q", asked_by="bob")
    assert adjustments.pauses.queues == {"q": Pause("ada", since)}
    assert adjustments.resume("q")
    assert not adjustments.resume("q")
    assert adjustments.pause()
    assert adjustments.pauses.whole == Pause("its own process", clock.now)


def test_a_heartbeat_is_due_once_a_pause_ends(executor, broker, clock):
    queue(executor, "a")
    queue(executor, "b", queue="other")
    executor.adjustments.pause("other")
    executor.adjustments.pause()
    executor.heartbeat()
    before = clock.now
    for name in (None, "other"):
        executor.adjustments.resume(name)
        executor.wait(60.0)
        executor.heartbeat()
    assert (sent(broker), clock.now) == (["a", "b"], before)


def test_limits_are_changed_together_or_not_at_all(executor, broker):
    adjustments = executor.adjustments
    adjustments.change_limits(parallelism=4, queue_limits={"a": 1, "b": 2})
    adjustments.change_limits(queue_limits={"a": None})
    queue(executor, "wide", slots=3)
    shared = {"concurrency_limits": {"db": 1}}
    with pytest.raises(InvalidConfig, match="a task asks for 3 of 2"):
        adjustments.change_limits(parallelism=2, shared_limits=shared)
    with pytest.raises(InvalidConfig, match="'unknown' is none; the names are concurrency_limits, "):
        adjustments.change_limits(parallelism=9, shared_limits={**shared, "unknown": {}})
    assert (executor.stats().parallelism, adjustments.shared_limits) == (4, {})
    queue(executor, "a1", "a2", queue="a", slots=2)
    executor.heartbeat()
    assert sent(broker) == ["wide"]
    adjustments.change_limits(parallelism=7)
    executor.heartbeat()
    assert sent(broker) == ["wide", "a1", "a2"]


def test_a_request_changes_limits_or_is_refused(executor, broker, channel):
    queue(executor, "a", "b", "c", "d")
    executor.heartbeat()
    replies = channel.ask(LimitsRequest(parallelism=4, queue_limits={"default": 3, "unknown": None}))
    executor.heartbeat()
    assert replies == [LimitsReply(parallelism=4, queue_limits={"default": 3})]
    replies = channel.ask(LimitsRequest(queue_limits={"gpu": 1}))
    executor.sync()
    assert replies == [LimitsReply(parallelism=4, queue_limits={"default": 3, "gpu": 1})]
    channel.ask(LimitsRequest(queue_limits={"gpu": None}))
    executor.sync()
    executor.heartbeat()
    assert sent(broker) == ["a", "b", "c"]
    changed = {"concurrency_limits": {"db": 1}}
    replies = channel.ask(LimitsRequest(shared_limits=changed))
    executor.sync()
    assert isinstance(replies[0], LimitsReply)
    assert executor.adjustments.shared_limits["concurrency_limits"] == {"db": 1}
    queue(executor, "wide", slots=3)
    replies = channel.ask(LimitsRequest(parallelism=2))
    executor.sync()
    (reply,) = replies
    assert isinstance(reply, ErrorReply)
    assert reply.error == "limits: a task asks for 3 of 2; give a higher limit, or cancel it"
    assert executor.stats().parallelism == 4


@pytest.mark.parametrize("limits", [{"parallelism": 0}, {"queue_limits": {"q": 0}}])
def test_a_limit_below_one_is_refused(executor, limits):
    with pytest.raises(InvalidConfig):
        executor.adjustments.change_limits(**limits)


def test_a_limit_fits_the_tasks_that_are_only_accepted(executor, tmp_path):
    lines = [*['{"command": "true"}\n'] * 3_000, '{"command": "true", "slots": 2, "queue": "q"}\n']
    (tmp_path / "jobs.jsonl").write_text("".join(lines))
    jobs = read_whole(str(tmp_path / "jobs.jsonl"), "auto", {}, None, None, None)
    assert isinstance(jobs, PlainJobs)
    executor.accept_tasks(jobs.sources())
    with pytest.raises(InvalidConfig, match="a task asks for 2 of 1"):
        executor.adjustments.change_limits(parallelism=1)
    with pytest.raises(InvalidConfig, match="a task asks for 2, and queue 'q' has 1"):
        executor.adjustments.change_limits(queue_limits={"q": 1})
    executor.adjustments.change_limits(parallelism=5, queue_limits={"q": 2})


def test_a_lower_limit_ends_no_task_and_starts_none(executor, broker):
    queue(executor, "a", "b", "c")
    executor.heartbeat()
    executor.adjustments.change_limits(parallelism=1)
    broker.succeed("a")
    executor.heartbeat()
    executor.heartbeat()
    assert (sent(broker), executor.tasks_in_flight) == (["a", "b"], 1)
    broker.succeed("b")
    executor.heartbeat()
    executor.heartbeat()
    assert sent(broker) == ["a", "b", "c"]


def test_a_backlog_holds_back_beside_a_pause(executor, broker, clock):
    executor.adjustments.hold_back("the journal")
    since = clock.now
    clock.advance(1)
    executor.adjustments.hold_back("another reason")
    assert executor.adjustments.pauses.backlog == Pause("the journal", since)
    queue(executor, "a")
    executor.heartbeat()
    assert (sent(broker), executor.explain("a").now.facts["asked_by"]) == ([], "the journal")
    assert not executor.adjustments.resume()
    executor.heartbeat()
    assert sent(broker) == []
    executor.adjustments.hold_back(None)
    executor.heartbeat()
    assert sent(broker) == ["a"]


def test_a_heartbeat_is_due_once_nothing_holds_back(executor, broker, clock):
    executor.adjustments.hold_back("the journal")
    queue(executor, "a")
    executor.heartbeat()
    executor.adjustments.hold_back(None)
    before = clock.now
    executor.wait(60.0)
    assert clock.now == before


def test_runs_are_paused_as_a_whole_or_by_queue(executor, broker, clock):
    for run in ("one", "two", "three"):
        executor.queue_command(RunKey(run, "a"), "true")
        executor.queue_command(RunKey(run, "b"), "true", queue="gpu")
    executor.adjustments.change_limits(parallelism=9)
    ada, bob = Pause("ada", 1.0), Pause("bob", 2.0)
    pauses = {"one": {"": ada}, "two": {"gpu": bob}}
    assert executor.adjustments.pause_runs(pauses)
    assert not executor.adjustments.pause_runs(pauses)
    executor.heartbeat()
    assert sent(broker) == ["two/a", "three/a", "three/b"]
    words = [executor.explain(RunKey(run, "b")).now.words.partition("; ")[2] for run in ("one", "two")]
    assert words == ["the run is paused by ada", "queue 'gpu' of the run is paused by bob"]
    assert executor.adjustments.pause_runs({})
    before = clock.now
    executor.wait(60.0)
    assert clock.now == before
    executor.heartbeat()
    assert sent(broker)[3:] == ["one/a", "one/b", "two/b"]


def test_a_heartbeat_is_due_once_a_limit_is_raised(executor, broker, clock):
    queue(executor, "a", "b", "c")
    executor.heartbeat()
    executor.heartbeat()
    executor.adjustments.change_limits(parallelism=3)
    before = clock.now
    executor.wait(60.0)
    assert clock.now == before
