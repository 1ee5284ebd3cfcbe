"""Requests to a running executor, to cancel and to explain tasks: in memory. `test_cancel.py` uses real brokers."""

from __future__ import annotations

import pytest

from celeriac.config.executor_config import Config
from celeriac.errors import UnknownTask
from celeriac.executor import history
from celeriac.executor.capacity import Capacity
from celeriac.executor.executor import CeleryExecutor
from celeriac.executor.interfaces import LedgerTraits
from celeriac.executor.requests import (
    CancelOutcome,
    CancelReply,
    CancelRequest,
    CancelResult,
    DemandReply,
    DemandRequest,
    ErrorReply,
    ExplainReply,
    ExplainRequest,
    OwnerRequest,
    PriorityOutcome,
    PriorityReply,
    PriorityRequest,
    Reply,
    WaitReason,
)
from celeriac.ledger.memory import MemoryLedger
from celeriac.task.result import Execution, Output, Reason, Result
from celeriac.task.state import State
from celeriac.task.task import Task
from celeriac.testing import InMemoryControlChannel

REVOKED, CALLED_BACK, UNKNOWN = CancelOutcome.REVOKED, CancelOutcome.CALLED_BACK, CancelOutcome.UNKNOWN


class Workers:
    """The capacity of the live workers, by queue."""

    def __init__(self) -> None:
        self.slots: dict[str, int] | None = None
        self.held: dict[str, str] = {}

    def by_queue(self) -> dict[str, int] | None:
        return self.slots

    def why_held(self, queue: str) -> str | None:
        return self.held.get(queue)

    def shares(self) -> None:
        return None


def executor_with(broker, clock, channel=None, capacity: Capacity | None = None, **settings) -> CeleryExecutor:
    config = Config(**{"parallelism": 2, **settings})
    return CeleryExecutor(
        config,
        publisher=broker,
        results=broker,
        revoker=broker,
        capacity=capacity,
        control_channel=channel,
        clock=clock,
        wall_clock=clock,
    )


@pytest.fixture
def executor(broker, clock, channel) -> CeleryExecutor:
    return executor_with(broker, clock, channel)


def queue(executor: CeleryExecutor, *keys: object, **fields) -> None:
    for key in keys:
        executor.queue_command(key, "true", **fields)


def fates(reply: Reply) -> dict[str, tuple[CancelOutcome, State | None]]:
    assert isinstance(reply, CancelReply)
    return {fate.name: (fate.outcome, fate.state) for fate in reply.fates}


def now(executor: CeleryExecutor, key: object) -> tuple[WaitReason, str]:
    """Return what the task waits for."""
    status = executor.explain(key).now
    return status.waits_for, status.words


# — cancel —


def test_cancel_revokes_waiting_tasks_and_cancels_those_in_flight(broker, executor, channel):
    queue(executor, "a", "b", "waits")
    executor.heartbeat()
    broker.start("a")
    broker.obeys_revokes = False
    replies = channel.ask(CancelRequest(names=("a", "waits", "unknown")))
    executor.sync()
    (reply,) = replies
    assert fates(reply) == {
        "a": (CALLED_BACK, State.RUNNING),
        "waits": (REVOKED, State.REVOKED),
        "unknown": (UNKNOWN, None),
    }
    assert reply.is_last
    assert broker.revoked == [broker.message("a").message_id]
    assert [executor.has_task(key) for key in ("a", "b", "waits")] == [True, True, False]


def test_cancel_of_a_queue_leaves_other_queues_alone(broker, executor, channel):
    queue(executor, *range(4), queue="gpu")
    queue(executor, "other")
    executor.heartbeat()
    broker.start(0)
    broker.obeys_revokes = False
    replies = channel.ask(CancelRequest(names=("0",), queues=("gpu", "none")))
    executor.sync()
    (reply,) = replies
    assert reply.emptied == {"gpu": 2, "none": 0}
    assert fates(reply) == {"0": (CALLED_BACK, State.RUNNING), "1": (CALLED_BACK, State.QUEUED)}
    assert len(reply.fates) == 2
    assert (executor.tasks_waiting, executor.has_task("other")) == (1, True)


def test_revoke_tasks_of_a_queue_returns_their_keys(broker, executor):
    queue(executor, "a", "b", "c", queue="gpu")
    queue(executor, "d")
    executor.trigger_tasks(1)
    assert sorted(executor.revoke_tasks(queue="gpu")) == ["a", "b", "c"]
    assert broker.revoked == [broker.message("a").message_id]
    assert executor.tasks_waiting == 1
    assert executor.revoke_tasks(queue="gpu") == ["a"]  # in flight until its end is known


def test_cancel_with_wait_gets_a_second_reply_when_the_last_task_has_ended(broker, executor, channel):
    queue(executor, "a", "b")
    executor.heartbeat()
    broker.obeys_revokes = False
    replies = channel.ask(CancelRequest(names=("a", "b"), wait=60))
    executor.sync()
    assert [reply.is_last for reply in replies] == [False]
    broker.put(broker.message("a").message_id, Result(State.REVOKED, Reason.REVOKED, "revoked while it ran"))
    executor.heartbeat()
    assert len(replies) == 1
    broker.succeed("b")
    executor.heartbeat()
    assert [reply.is_last for reply in replies] == [False, True]
    assert replies[1].fates == (
        CancelResult(name="a", outcome=CALLED_BACK, state=State.REVOKED, detail="revoked while it ran"),
        CancelResult(name="b", outcome=CALLED_BACK, state=State.SUCCESS),
    )
    executor.heartbeat()
    assert len(replies) == 2


def test_cancel_with_wait_gets_a_second_reply_when_the_time_is_up(broker, executor, channel, clock):
    queue(executor, "a")
    executor.heartbeat()
    broker.start("a")
    broker.obeys_revokes = False
    broker.pushes = True
    replies = channel.ask(CancelRequest(names=("a",), wait=7))
    executor.sync()
    before = clock.now
    while len(replies) < 2:
        executor.wait(60)
        executor.sync()
    assert clock.now - before == pytest.approx(7)
    assert fates(replies[1]) == {"a": (CALLED_BACK, State.RUNNING)}


def test_cancel_with_wait_gets_one_reply_if_all_have_ended_and_two_however_short_the_wait(broker, executor, channel):
    queue(executor, "a", "b", "waits")
    executor.heartbeat()
    broker.obeys_revokes = False
    at_once, later = (channel.ask(CancelRequest(names=(name,), wait=0.5)) for name in ("waits", "a"))
    executor.sync()
    assert [reply.is_last for reply in (*at_once, *later)] == [True, False]


def test_cancel_of_a_queue_counts_more_tasks_than_the_history_keeps(executor, channel, monkeypatch):
    monkeypatch.setattr(history, "MAX_ENDED", 2)
    queue(executor, 1, 2, 3)
    replies = channel.ask(CancelRequest(queues=("default",)))
    executor.sync()
    assert replies == [CancelReply(emptied={"default": 3})]


def test_cancel_with_wait_of_a_task_that_has_no_event_yet(broker, executor, channel, clock):
    broker.obeys_revokes = False
    executor.adopt_tasks([Task(key="a", command="true")], State.RUNNING)
    replies = channel.ask(CancelRequest(names=("a",), wait=7))
    executor.sync()
    clock.advance(7)
    executor.sync()
    assert fates(replies[1]) == {"a": (CALLED_BACK, None)}


def test_a_cancelled_task_counts_as_ended_if_its_key_is_used_again(broker, executor, channel):
    queue(executor, "a")
    executor.heartbeat()
    broker.obeys_revokes = False
    replies = channel.ask(CancelRequest(names=("a",), wait=60))
    executor.sync()
    executor.success("a")
    queue(executor, "a")
    executor.heartbeat()
    assert fates(replies[1]) == {"a": (CALLED_BACK, State.SUCCESS)}
    assert executor.has_task("a")


def test_cancel_of_an_ended_task_returns_its_state(broker, executor, channel):
    queue(executor, "a")
    executor.heartbeat()
    broker.fail("a")
    executor.heartbeat()
    replies = channel.ask(CancelRequest(names=("a",)))
    executor.sync()
    assert replies[0].fates == (
        CancelResult(name="a", outcome=CancelOutcome.HAD_ENDED, state=State.FAILED, detail="exit code 1"),
    )
    assert broker.revoked == []


def test_names_match_keys_as_text_and_ambiguous_names_cancel_nothing(executor, channel):
    queue(executor, 1, "1", ("a", 2))
    replies = channel.ask(CancelRequest(names=("1", "('a', 2)", "2")))
    executor.sync()
    ((ambiguous, exact, unknown),) = (reply.fates for reply in replies)
    assert (ambiguous.outcome, ambiguous.detail) == (CancelOutcome.AMBIGUOUS, "2 tasks have this name: 1, '1'")
    assert (exact.outcome, unknown.outcome) == (REVOKED, UNKNOWN)
    assert [executor.has_task(key) for key in (1, "1", ("a", 2))] == [True, True, False]


def test_a_name_of_a_key_that_is_no_text_is_found_wherever_its_task_is(broker, executor, channel):
    queue(executor, 1)
    executor.heartbeat()
    executor.adopt_tasks([Task(key=3, command="true")])
    broker.succeed(1)
    executor.heartbeat()
    queue(executor, 2, slots=2)
    ended, waits, sent, unknown = (channel.ask(ExplainRequest(name=name)) for name in "1234")
    executor.sync()
    states = (State.SUCCESS, State.WAITING, State.QUEUED)
    assert [tuple(each.state for each in reply.explanations) for reply in (*ended, *waits, *sent)] == [
        (s,) for s in states
    ]
    assert unknown == [ExplainReply(())]


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (CancelRequest(), "the request has neither a key nor a queue"),
        (CancelRequest(names=("a",), wait=-1), "wait: -1 is not a number of seconds, 0 or more"),
        (CancelRequest(names=("a",), wait=float("nan")), "wait: nan is not a number of seconds, 0 or more"),
        ("hello", "unknown request: an executor knows cancel, explain, priority, pause, limits and demand"),
    ],
)
def test_an_invalid_request_gets_an_error_and_changes_nothing(executor, channel, request_, error):
    queue(executor, "a")
    refused, explained = channel.ask(request_), channel.ask(ExplainRequest(name="a"))
    executor.heartbeat()
    assert refused == [ErrorReply(error)]
    assert isinstance(explained[0], ExplainReply)
    assert executor.has_task("a")


# — priority —


def test_a_priority_changes_the_order_of_waiting_tasks(broker, clock, channel):
    executor = executor_with(broker, clock, channel, parallelism=1)
    queue(executor, "a", "b", "c")
    executor.heartbeat()
    for name, outcome in (
        ("c", PriorityOutcome.CHANGED),
        ("a", PriorityOutcome.NOT_WAITING),
        ("none", PriorityOutcome.UNKNOWN),
    ):
        replies = channel.ask(PriorityRequest(name=name, priority=7))
        executor.sync()
        assert replies == [PriorityReply(outcome)]
    broker.succeed("a")
    executor.heartbeat()
    executor.heartbeat()
    assert executor.explain("c").state is State.QUEUED
    assert executor.explain("c").priority == 7
    assert executor.explain("b").state is State.WAITING


def test_a_change_of_a_priority_is_an_event_and_no_attempt(executor, channel, clock):
    executor.queue_command("a", "true", slots=2)
    executor.queue_command("b", "true", needs=("a",))
    executor.heartbeat()
    channel.ask(PriorityRequest(name="b", priority=7, asked_by="REST (operator)"))
    executor.sync()
    (event,) = [event for event in executor.get_event_buffer() if event.key == "b"]
    assert (event.state, event.reason, event.priority, event.attempt) == (State.WAITING, None, 7, 1)
    assert event.detail == "priority changed from 0 to 7, asked by REST (operator)"
    assert executor.explain("b").moves == (event,)
    executor.reprioritise("b", 8)
    assert executor.get_event_buffer() == []


# — the owner of a run —


def owner_of_jobs(broker, clock, channel) -> CeleryExecutor:
    ledger = MemoryLedger()
    ledger.traits = LedgerTraits(run="jobs")
    return CeleryExecutor(
        Config(parallelism=1),
        publisher=broker,
        results=broker,
        revoker=broker,
        control_channel=channel,
        ledger=ledger,
        clock=clock,
        wall_clock=clock,
    )


def to_owner(run: str = "jobs", **request) -> OwnerRequest:
    return OwnerRequest(executor="1@host", run=run, asked_by="REST (operator)", **request)


def test_the_owner_of_a_run_cancels_its_tasks_or_all_of_it(broker, clock, channel):
    executor = owner_of_jobs(broker, clock, channel)
    queue(executor, "a", "b", "c", "d")
    executor.heartbeat()
    replies = [
        channel.ask(to_owner(cancel=CancelRequest(names=("b",)))),
        channel.ask(to_owner(priority=PriorityRequest(name="d", priority=7))),
        channel.ask(to_owner("others", cancel=CancelRequest())),
        channel.ask(to_owner()),
    ]
    executor.sync()
    assert fates(replies[0][0]) == {"b": (REVOKED, State.REVOKED)}
    assert replies[1] == [PriorityReply(PriorityOutcome.CHANGED)]
    assert replies[2] == [ErrorReply("this executor does not own run 'others'")]
    assert replies[3] == [ErrorReply("the request must hold one of cancel, priority, pause and limits")]
    assert (executor.tasks_waiting, executor.is_draining) == (2, False)
    whole = channel.ask(to_owner(cancel=CancelRequest()))
    executor.sync()
    assert whole == [CancelReply(emptied={"jobs": 2})]
    assert (executor.tasks_waiting, executor.is_draining) == (0, True)
    assert broker.revoked == [broker.message("a").message_id]
    details = {event.key: event.detail for event in executor.get_event_buffer()}
    assert details["c"] == "revoked while it waited: the run was cancelled, asked by REST (operator)"


def test_an_executor_of_several_runs_is_no_owner_of_one(executor, channel):
    queue(executor, "a")
    replies = channel.ask(to_owner(cancel=CancelRequest()))
    executor.sync()
    assert (replies, executor.tasks_waiting) == ([ErrorReply("this executor does not own run 'jobs'")], 1)


def test_a_priority_of_an_ambiguous_name_or_out_of_range_changes_nothing(executor, channel):
    queue(executor, 1, "1", "a")
    ambiguous = channel.ask(PriorityRequest(name="1", priority=7))
    beyond = channel.ask(PriorityRequest(name="a", priority=2**40))
    executor.sync()
    assert ambiguous == [PriorityReply(PriorityOutcome.AMBIGUOUS)]
    (error,) = beyond
    assert isinstance(error, ErrorReply)
    assert "is not a whole number from" in error.error
    assert executor.explain("a").priority == 0


# — explain —


def test_explain_returns_all_events_without_output(broker, executor, clock, channel):
    arrived = clock.now
    queue(executor, "k", retries=1, retry_delay=0.0, queue="gpu", priority=3)
    clock.advance(5)
    executor.heartbeat()
    broker.start("k")
    executor.heartbeat()
    execution = Execution(host="h", pid=7, exit_code=1, stdout=Output(size=9, tail="a secret", path="p"))
    broker.put(broker.message("k").message_id, Result(State.FAILED, Reason.EXIT_CODE, "exit code 1", execution))
    executor.heartbeat()
    executor.heartbeat()
    ended = Execution(host="h", pid=8, exit_code=0, stderr=Output(size=9, tail="a secret", path="p"))
    broker.put(broker.message("k").message_id, Result(State.SUCCESS, execution=ended))
    executor.heartbeat()
    replies = channel.ask(ExplainRequest(name="k"))
    executor.sync()
    explanation = executor.explain("k")
    assert replies == [ExplainReply((explanation,))]
    assert (explanation.arrived, explanation.state, explanation.attempt, explanation.queue, explanation.priority) == (
        arrived,
        State.SUCCESS,
        2,
        "gpu",
        3,
    )
    states = [State.QUEUED, State.RUNNING, State.WAITING, State.QUEUED, State.SUCCESS]
    assert [event.state for event in explanation.moves] == states
    assert explanation.moves[0].when == arrived + 5
    failed = explanation.moves[2].execution
    assert failed is not None
    assert (failed.host, failed.pid, failed.stdout) == ("h", 7, Output())
    last = explanation.moves[-1].execution
    assert last is not None
    assert (last.pid, last.stderr) == (8, Output())
    assert explanation.now.words == "ended: success"
    assert executor.get_event_buffer()[2].execution == execution


def test_one_request_explains_several_tasks(executor, channel):
    queue(executor, "j")
    queue(executor, "k")
    replies = channel.ask(ExplainRequest(name="k", others=("nothing", "j")))
    executor.sync()
    assert replies == [ExplainReply((executor.explain("k"), executor.explain("j")))]


def test_an_unknown_task_cannot_be_explained(executor, channel):
    with pytest.raises(UnknownTask):
        executor.explain("k")
    replies = channel.ask(ExplainRequest(name="k"))
    executor.sync()
    assert replies == [ExplainReply(())]


def test_a_key_that_is_used_again_has_a_new_history(broker, executor, clock):
    queue(executor, "k")
    executor.heartbeat()
    broker.succeed("k")
    executor.heartbeat()
    clock.advance(10)
    queue(executor, "k")
    explanation = executor.explain("k")
    assert (explanation.state, explanation.moves, explanation.arrived) == (State.WAITING, (), clock.now)
    executor.heartbeat()
    assert [event.state for event in executor.explain("k").moves] == [State.QUEUED]


def test_the_history_keeps_a_limited_number_of_tasks_and_events(broker, executor, clock, monkeypatch):
    monkeypatch.setattr(history, "MAX_ENDED", 3)
    monkeypatch.setattr(history, "MAX_EVENTS", 4)
    for n in range(5):
        queue(executor, n)
        executor.revoke_task(n)
    with pytest.raises(UnknownTask):
        executor.explain(1)
    assert executor.explain(2).state is State.REVOKED
    queue(executor, "k", retries=9, retry_delay=0.0)
    for _ in range(3):
        executor.heartbeat()
        broker.fail("k")
        executor.heartbeat()
    explanation = executor.explain("k")
    assert explanation.left_out == 2
    assert [(event.state, event.attempt) for event in explanation.moves] == [
        (State.QUEUED, 1),
        (State.WAITING, 2),
        (State.QUEUED, 3),
        (State.WAITING, 3),
    ]


def test_the_history_keeps_the_last_of_the_tasks_that_are_revoked_together(executor, monkeypatch):
    monkeypatch.setattr("celeriac.executor.lifecycle.MAX_ENDED", 2)
    queue(executor, 1, 2, 3)
    executor.terminate()
    with pytest.raises(UnknownTask):
        executor.explain(1)
    assert [executor.explain(key).state for key in (2, 3)] == [State.REVOKED, State.REVOKED]


def test_explain_waiting_for_slots(executor):
    queue(executor, "a", "b", priority=9)
    executor.heartbeat()
    queue(executor, "low", "other", queue="gpu")
    queue(executor, "high", queue="gpu", priority=5)
    place = "waiting: place {} of queue 'gpu' (priority {}); all 2 slots are in use"
    assert now(executor, "high") == (WaitReason.SLOTS, place.format(1, 5))
    assert now(executor, "other") == (WaitReason.SLOTS, place.format(3, 0))
    executor.revoke_task("low")
    assert now(executor, "other") == (WaitReason.SLOTS, place.format(2, 0))
    facts = executor.explain("other").now.facts
    assert facts == {"place": 2, "queue": "gpu", "priority": 0, "parallelism": 2, "in_use": 2}


def test_explain_waiting_for_needs(executor, channel):
    queue(executor, "a", "b", 3, "d")
    queue(executor, "one", needs=["a"])
    queue(executor, "three", needs=["a", "b", 3])
    queue(executor, "many", needs=["a", "b", 3, "d", "one"])
    assert now(executor, "one") == (WaitReason.NEEDS, "waiting: it needs 'a' to end")
    assert now(executor, "three") == (WaitReason.NEEDS, "waiting: it needs 'a', 'b', 3 to end")
    assert now(executor, "many") == (WaitReason.NEEDS, "waiting: it needs 'a', 'b', 3 and 2 more to end")
    executor.success("a")
    assert now(executor, "many") == (WaitReason.NEEDS, "waiting: it needs 'b', 3, 'd' and 1 more to end")
    explanation = executor.explain("many")
    assert (explanation.state, explanation.now.facts) == (State.WAITING, {"needs": 4, "first": "b"})
    replies = channel.ask(ExplainRequest(name="many"))
    executor.sync()
    assert replies == [ExplainReply((explanation,))]
    executor.drain()
    assert now(executor, "many")[0] is WaitReason.NOTHING_MORE


def test_cancel_of_tasks_that_need_each_other_revokes_or_skips_all(executor, channel):
    queue(executor, "a")
    queue(executor, "b", needs=["a"])
    queue(executor, "c", needs=["b"])
    replies = channel.ask(CancelRequest(names=("a", "b", "unknown")))
    executor.sync()
    assert fates(replies[0]) == {
        "a": (REVOKED, State.REVOKED),
        "b": (REVOKED, State.SKIPPED),
        "unknown": (UNKNOWN, None),
    }
    replies = channel.ask(CancelRequest(names=("c",)))
    executor.sync()
    assert fates(replies[0]) == {"c": (CancelOutcome.HAD_ENDED, State.SKIPPED)}


def test_explain_waiting_for_several_slots_and_behind_such_a_task(broker, executor):
    queue(executor, "a")
    executor.heartbeat()
    queue(executor, "big", slots=2, priority=1)
    queue(executor, "small")
    assert now(executor, "big")[1].endswith("; it needs 2 slots, and 1 of 2 are open")
    assert now(executor, "small") == (
        WaitReason.OTHERS,
        "waiting: place 2 of queue 'default' (priority 0); a more urgent task needs 2 slots, and 1 are open",
    )
    facts = executor.explain("small").now.facts
    assert (facts["slots"], facts["open"]) == (2, 1)
    queue(executor, "next", queue="other", priority=2)
    assert now(executor, "next")[1].endswith("; sent by one of the next heartbeats")


def test_explain_waiting_at_the_limit_of_a_queue(broker, clock):
    executor = executor_with(broker, clock, parallelism=9, queue_limits={"gpu": 2})
    queue(executor, "a", "b", "c", queue="gpu")
    executor.heartbeat()
    words = "waiting: place 1 of queue 'gpu' (priority 0); queue 'gpu' is at its limit of 2"
    assert now(executor, "c") == (WaitReason.LIMIT, words)


def test_explain_waiting_for_workers(broker, clock):
    workers = Workers()
    executor = executor_with(broker, clock, capacity=workers, parallelism=9, late_binding_margin=0)
    queue(executor, "a", "b", queue="gpu")
    executor.heartbeat()
    assert now(executor, "b")[1].endswith("; the live workers are not known yet")
    workers.slots = {"cpu": 4}
    executor.heartbeat()
    assert now(executor, "b")[1].endswith("; no live worker serves queue 'gpu'")
    waits_for, words = now(executor, "a")
    assert waits_for is WaitReason.WORKERS
    assert words.endswith(" before it; no live worker serves queue 'gpu'")
    workers.slots, workers.held = {"gpu": 1}, {"gpu": "worker w1 waits: load 9.2 is above 8"}
    executor.heartbeat()
    assert now(executor, "a")[1].endswith(" before it; worker w1 waits: load 9.2 is above 8")
    waits_for, words = now(executor, "b")
    assert waits_for is WaitReason.ROOM
    assert words.endswith("; the workers of queue 'gpu' have as many tasks as they can take: 1 task")
    assert executor.explain("b").now.facts["out"] == 1


def test_explain_waiting_for_a_retry_for_the_broker_and_after_a_drain(broker, executor, clock):
    queue(executor, "k", retries=1, retry_delay=10)
    executor.heartbeat()
    broker.fail("k")
    executor.heartbeat()
    explanation = executor.explain("k")
    (failed,) = explanation.moves[1:]
    assert failed.retry_in is not None
    clock.advance(2)
    waiting = executor.explain("k").now
    assert waiting.facts == {"seconds": pytest.approx(failed.retry_in - 2, abs=0.001)}
    assert (waiting.waits_for, waiting.words) == (
        WaitReason.RETRY,
        f"waiting: next attempt in {waiting.facts['seconds']:.1f} s",
    )
    broker.refuse()
    queue(executor, "away")
    executor.heartbeat()
    waits_for, words = now(executor, "away")
    assert waits_for is WaitReason.BROKER
    assert words.startswith(
        "waiting: place 1 of queue 'default' (priority 0); the broker is unavailable, next try in 0."
    )
    executor.drain()
    assert now(executor, "k") == (WaitReason.NOTHING_MORE, "waiting: the executor starts no more tasks")


def test_explain_queued_running_and_cancelled_tasks(broker, executor, clock):
    broker.obeys_revokes = False
    queue(executor, "first", "second")
    executor.heartbeat()
    clock.advance(4)
    ahead = "queued: at the broker for 4.0 s, {} of this executor's tasks before it"
    assert now(executor, "first") == (WaitReason.START, ahead.format(0))
    broker.start("second")
    executor.heartbeat()
    clock.advance(12)
    assert now(executor, "second") == (WaitReason.END, "running on in-memory for 12.0 s")
    assert executor.explain("second").now.facts == {"seconds": 12.0, "host": "in-memory"}
    executor.revoke_task("first")
    executor.revoke_task("second")
    assert now(executor, "first")[0] is WaitReason.REVOCATION
    assert now(executor, "second") == (WaitReason.TERMINATION, "cancelling: its processes are being ended")


def test_explain_a_later_attempt_that_could_not_be_sent(broker, executor):
    queue(executor, "k", retries=1, retry_delay=0.0)
    executor.heartbeat()
    broker.fail("k")
    executor.heartbeat()
    broker.refuse("k")
    queue(executor, "sent")
    executor.heartbeat()
    waits_for, words = now(executor, "k")
    assert waits_for is WaitReason.RETRY
    assert words.startswith("waiting: could not be sent; retrying in ")


def test_explain_a_task_that_is_cancelled_unless_it_has_started(broker, executor):
    broker.obeys_revokes = False
    queue(executor, "k")
    executor.heartbeat()
    executor.cancel_unstarted()
    assert now(executor, "k") == (
        WaitReason.REVOCATION,
        "cancelling: waiting for confirmation that it will not start",
    )


def test_explain_counts_tasks_ahead_in_the_broker(broker, clock):
    executor = executor_with(broker, clock, parallelism=9)
    queue(executor, "low", "low too")
    executor.heartbeat()
    clock.advance(1)
    queue(executor, "high", priority=9)
    queue(executor, "elsewhere", queue="other", priority=9)
    queue(executor, "late")
    executor.heartbeat()
    ahead = {key: executor.explain(key).now.facts["ahead"] for key in ("low", "high", "elsewhere", "late")}
    assert ahead == {"low": 1, "high": 0, "elsewhere": 0, "late": 3}
    broker.start("low")
    broker.start("high")
    executor.heartbeat()
    assert executor.explain("late").now.facts["ahead"] == 1


def test_explain_an_unconfirmed_task(broker, executor, clock):
    broker.leave_unsure(delivered=True)
    queue(executor, "k")
    executor.heartbeat()
    waits_for, words = now(executor, "k")
    assert waits_for is WaitReason.CONFIRMATION
    assert words.startswith("publish not confirmed; retrying in ")
    seconds = executor.explain("k").now.facts["seconds"]
    assert 0 < seconds < 60
    clock.advance(seconds / 2)
    assert executor.explain("k").now.facts["seconds"] == pytest.approx(seconds / 2, abs=0.01)


# — demand —


def demand(executor: CeleryExecutor, channel: InMemoryControlChannel) -> Reply:
    replies = channel.ask(DemandRequest())
    executor.sync()
    (reply,) = replies
    return reply


def test_demand_counts_what_could_start_within_the_limits(broker, clock, channel):
    capacity = Workers()
    capacity.slots = {}
    executor = executor_with(broker, clock, channel, capacity, parallelism=6, queue_limits={"gpu": 1})
    queue(executor, *"abc")
    queue(executor, "g1", "g2", queue="gpu")
    queue(executor, "after", needs=["a"])
    executor.heartbeat()
    assert demand(executor, channel) == DemandReply(waiting={"default": 3, "gpu": 1}, open_slots=6)


def test_demand_does_not_count_what_is_in_flight_or_delayed(broker, executor, clock, channel):
    queue(executor, "a", "b", "c", retries=1, retry_delay=60)
    executor.heartbeat()
    assert demand(executor, channel) == DemandReply(waiting={}, open_slots=0)
    broker.fail("a")
    executor.sync()
    assert demand(executor, channel) == DemandReply(waiting={"default": 1}, open_slots=1)


def test_what_is_paused_is_no_demand(broker, executor, channel):
    queue(executor, "a")
    queue(executor, "g", queue="gpu")
    executor.adjustments.pause(asked_by="a test", queue="gpu")
    assert demand(executor, channel) == DemandReply(waiting={"default": 1}, open_slots=2)
    executor.adjustments.pause(asked_by="a test")
    assert demand(executor, channel) == DemandReply(waiting={}, open_slots=0)


def test_an_executor_that_drains_demands_nothing(executor, channel):
    queue(executor, "a")
    executor.drain()
    assert demand(executor, channel) == DemandReply(waiting={}, open_slots=0)
