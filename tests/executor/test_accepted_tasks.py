"""Tasks that an executor accepts together and queues in parts, so that the first of many start at once."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from random import Random
from typing import Any

import pytest

from celeriac.config.executor_config import Config
from celeriac.errors import ExecutorEnded, InvalidTask
from celeriac.executor import dependencies
from celeriac.executor.accepted import MIN_READY
from celeriac.executor.executor import CeleryExecutor
from celeriac.executor.intake import PART
from celeriac.executor.interfaces import Ledger, LedgerTraits
from celeriac.executor.requests import (
    CancelOutcome,
    CancelReply,
    CancelRequest,
    DemandReply,
    DemandRequest,
    ExplainReply,
    ExplainRequest,
    PriorityOutcome,
    PriorityReply,
    PriorityRequest,
    WaitReason,
)
from celeriac.ledger.memory import MemoryLedger
from celeriac.ledger.run_store import RunStore
from celeriac.runs.job_file import PlainJobs
from celeriac.runs.job_file.draft import Draft
from celeriac.runs.job_file.job_source import PlainJobSource
from celeriac.task.state import State
from celeriac.task.task import Task
from celeriac.telemetry import metrics
from celeriac.testing import InMemoryBroker, InMemoryControlChannel

NUMBER = 3 * PART + 1
LAST = str(NUMBER)


@pytest.fixture
def broker(clock) -> InMemoryBroker:
    return InMemoryBroker(clock)


def executor_with(broker, clock, channel, ledger: Ledger | None = None) -> CeleryExecutor:
    return CeleryExecutor(
        Config(parallelism=2),
        publisher=broker,
        results=broker,
        revoker=broker,
        control_channel=channel,
        ledger=ledger,
        clock=clock,
        wall_clock=clock,
    )


@pytest.fixture
def executor(broker, clock, channel) -> CeleryExecutor:
    executor = executor_with(broker, clock, channel)
    executor.accept_tasks(many())
    return executor


def many(number: int = NUMBER) -> list[PlainJobSource]:
    return source_of([{}] * number)


def source_of(fields: Sequence[Mapping[str, Any]]) -> list[PlainJobSource]:
    """Return the sources of jobs with these fields, whose keys are numbers from 1."""
    return PlainJobs([Draft("true", number, each) for number, each in enumerate(fields, start=1)], []).sources()


@pytest.fixture
def store(tmp_path) -> Iterator[RunStore]:
    with RunStore(f"sqlite:///{tmp_path / 'ledger.db'}") as store:
        yield store


def open_ledger(store: RunStore, *, has_source: bool) -> Ledger:
    traits = LedgerTraits(revokes_together=True, has_source=has_source)
    run = store.create_run("run", total=NUMBER)
    return store.open_run(run, "run", keeps_events=False, traits=traits)


def queued(executor: CeleryExecutor) -> int:
    return sum(1 for _ in executor.tasks())


def test_each_heartbeat_queues_a_part_and_all_count_as_waiting(broker, executor, clock):
    assert (executor.tasks_waiting, queued(executor)) == (NUMBER, 0)
    executor.heartbeat()
    assert [task.key for task in broker.messages] == ["1", "2"]
    assert (executor.tasks_waiting, executor.tasks_in_flight, queued(executor)) == (NUMBER - 2, 2, PART)
    assert executor.stats().tasks_waiting == NUMBER - 2
    started = clock()
    executor.wait(60.0)
    assert clock() == started, "a heartbeat has something to do"
    for _ in range(3):
        executor.heartbeat()
    assert (executor.tasks_waiting, queued(executor)) == (NUMBER - 2, NUMBER)


def test_they_run_in_order(broker, executor):
    while executor.tasks_waiting or executor.tasks_in_flight:
        executor.heartbeat()
        for task in list(broker.unfinished):
            broker.succeed(task.key)
    assert [task.key for batch in broker.batches for task in batch] == [str(n) for n in range(1, NUMBER + 1)]


def test_no_more_are_queued_while_many_are_ready(broker, channel, clock):
    executor = executor_with(broker, clock, channel)
    executor.accept_tasks(many(MIN_READY + 4 * PART))
    for _ in range(10):
        executor.heartbeat()
    number = executor.stats().tasks_waiting
    assert (number, MIN_READY <= queued(executor) - 2 < MIN_READY + PART) == (MIN_READY + 4 * PART - 2, True)
    started = clock()
    executor.wait(60.0)
    assert clock() > started, "a heartbeat has nothing to do"
    while executor.tasks_waiting or executor.tasks_in_flight:
        executor.heartbeat()
        for task in list(broker.unfinished):
            broker.succeed(task.key)
    assert [task.key for batch in broker.batches for task in batch] == [str(n + 1) for n in range(number + 2)]


def test_tasks_that_wait_for_a_retry_do_not_keep_others_from_being_queued(broker, channel, clock):
    executor = executor_with(broker, clock, channel)
    number = MIN_READY + 2 * PART
    executor.accept_tasks(source_of([{"retries": 1, "retry_delay": 1e6}] * number))
    for _ in range(2 * number):
        executor.heartbeat()
        for task in list(broker.unfinished):
            broker.fail(task.key)
    assert [task.key for batch in broker.batches for task in batch] == [str(n + 1) for n in range(number)]


def test_the_most_urgent_start_first_and_equal_ones_of_all_queues_in_order(broker, channel, clock):
    executor = executor_with(broker, clock, channel)
    fields = [{"priority": n % 3 % 2, "queue": "ab"[n % 5 % 2]} for n in range(4 * PART)]
    executor.accept_tasks(source_of(fields))
    while executor.tasks_waiting or executor.tasks_in_flight:
        executor.heartbeat()
        for task in list(broker.unfinished):
            broker.succeed(task.key)
    order = sorted(range(len(fields)), key=lambda n: -int(str(fields[n]["priority"])))
    assert [task.key for batch in broker.batches for task in batch] == [str(n + 1) for n in order]


def test_a_task_that_a_request_names_keeps_its_place(broker, channel, clock):
    executor = executor_with(broker, clock, channel)
    number = MIN_READY + 4 * PART
    executor.accept_tasks(source_of([{"priority": 2}, {"priority": 1}] * (number // 2)))
    cancelled = channel.ask(CancelRequest(names=("1001",)))
    executor.heartbeat()
    explained = channel.ask(ExplainRequest(name=str(number)))
    executor.heartbeat()
    assert isinstance(cancelled[0], CancelReply)
    assert isinstance(explained[0], ExplainReply)
    assert explained[0].explanations[0].now.facts["place"] == number - 3
    assert queued(executor) < MIN_READY


def test_a_request_changes_the_priority_of_one_of_them(executor, channel):
    changed = channel.ask(PriorityRequest(name=LAST, priority=7))
    executor.sync()
    assert changed == [PriorityReply(PriorityOutcome.CHANGED)]
    assert executor.explain(LAST).priority == 7


def test_a_request_for_a_queue_finds_all_of_its_tasks(broker, executor, channel):
    cancelled = channel.ask(CancelRequest(queues=("default",)))
    executor.heartbeat()
    assert isinstance(cancelled[0], CancelReply)
    assert cancelled[0].emptied == {"default": NUMBER - 2}
    assert executor.tasks_waiting == 0


def test_a_request_finds_each_of_them(executor, channel):
    explained, cancelled = channel.ask(ExplainRequest(name=LAST)), channel.ask(CancelRequest(names=(str(NUMBER - 1),)))
    executor.heartbeat()
    assert isinstance(explained[0], ExplainReply)
    assert isinstance(cancelled[0], CancelReply)
    assert [task.now.waits_for for task in explained[0].explanations] == [WaitReason.SLOTS]
    assert cancelled[0].fates[0].outcome is CancelOutcome.REVOKED
    assert executor.tasks_waiting == NUMBER - 3


@pytest.mark.parametrize("how", ["end", "terminate"])
def test_the_end_revokes_them_with_an_event_for_each(broker, executor, how):
    executor.heartbeat()
    for task in list(broker.unfinished):
        broker.succeed(task.key)
    getattr(executor, how)()
    executor.sync()
    ends = {event.key: event.state for event in executor.get_event_buffer() if event.state.is_final}
    revoked = [key for key, state in ends.items() if state is State.REVOKED]
    assert len(ends) == NUMBER
    assert len(revoked) == NUMBER - 2
    assert executor.tasks_waiting == 0


def test_revoked_silently_only_those_that_were_sent_have_an_event(broker, executor):
    executor.heartbeat()
    broker.fail("1")
    broker.succeed("2")
    executor.sync()
    before = executor.tasks_waiting
    assert executor.revoke_waiting(silently=True) == before
    assert [(event.key, event.state) for event in executor.get_event_buffer() if event.state is State.REVOKED] == []
    assert executor.tasks_waiting == executor.tasks_in_flight == 0
    with pytest.raises(ExecutorEnded):
        executor.accept_tasks(many())
    with pytest.raises(ExecutorEnded):
        executor.queue_command("new", "true")


def test_a_task_that_waits_for_a_retry_has_an_event_when_it_is_revoked(broker, clock, channel):
    executor = executor_with(broker, clock, channel)
    executor.accept_tasks(source_of([{"retries": 1}] * 3))
    executor.heartbeat()
    broker.fail("1")
    executor.sync()
    broker.succeed("2")
    executor.sync()
    assert executor.revoke_waiting(silently=True) == 1
    assert [event.key for event in executor.get_event_buffer() if event.state is State.REVOKED] == ["1"]


def test_with_a_file_to_read_again_the_ledger_gets_a_part_before_the_first_starts(broker, clock, channel, store):
    ledger = open_ledger(store, has_source=True)
    executor = executor_with(broker, clock, channel, ledger)
    executor.accept_tasks(many())
    executor.heartbeat()
    assert [task.key for task in broker.messages] == ["1", "2"]
    assert len(list(ledger.unfinished())) == PART
    for task in list(broker.unfinished):
        broker.succeed(task.key)
    executor.sync()
    assert executor.revoke_waiting(silently=True) == NUMBER - 2
    assert executor.end()
    assert list(ledger.unfinished()) == []
    keys = [str(number) for number in range(1, NUMBER + 1)]
    recorded = store.task_states(1, keys)
    assert (recorded["1"], recorded["3"]) == ((State.SUCCESS, None), (State.REVOKED, "never ran: the executor ended"))
    assert len(recorded) == PART


def test_without_a_file_to_read_again_the_ledger_gets_all(broker, clock, channel, store):
    executor = executor_with(broker, clock, channel, open_ledger(store, has_source=False))
    executor.accept_tasks(many())
    assert executor.tasks_unwritten == NUMBER
    assert executor.revoke_waiting(silently=True) == NUMBER
    assert executor.end()
    recorded = store.task_states(1, [str(number) for number in range(1, NUMBER + 1)])
    assert set(recorded.values()) == {(State.REVOKED, "never ran: the executor ended")}
    assert len(recorded) == NUMBER


def ends_of(executor: CeleryExecutor, broker: InMemoryBroker, failing: Collection[str]) -> dict[object, State]:
    """Run all tasks. Return their final states."""
    ends: dict[object, State] = {}
    while executor.tasks_waiting or executor.tasks_in_flight:
        executor.heartbeat()
        for task in list(broker.unfinished):
            (broker.fail if task.key in failing else broker.succeed)(task.key)
        executor.sync()
        ends |= {event.key: event.state for event in executor.get_event_buffer() if event.state.is_final}
    return ends


@pytest.mark.parametrize("seed", range(4))
def test_tasks_with_needs_end_as_if_all_were_queued_at_once(clock, channel, monkeypatch, seed):
    monkeypatch.setattr(dependencies, "MAX_REMEMBERED", 5)
    random = Random(seed)
    fields: list[dict[str, Any]] = [{} for _ in range(NUMBER)]
    for number in range(1, NUMBER):
        needs = random.sample(range(1, number + 1), k=min(number, random.choice([0, 0, 1, 2])))
        fields[number] = {"needs": tuple(map(str, needs)), "on_need_failed": random.choice(["skip", "skip", "run"])}
    failing = {str(number) for number in range(1, NUMBER + 1) if random.random() < 0.1}
    jobs = PlainJobs(
        [Draft("true", number, each) for number, each in enumerate(fields, start=1)],
        [Task(key="any", command="true")],
        has_needs=True,
    )
    brokers = [InMemoryBroker(clock), InMemoryBroker(clock)]
    in_parts, at_once = (executor_with(broker, clock, InMemoryControlChannel()) for broker in brokers)
    in_parts.accept_tasks(jobs.sources())
    at_once.queue_tasks(list(jobs))
    ends = [ends_of(executor, broker, failing) for executor, broker in zip((in_parts, at_once), brokers, strict=True)]
    assert ends[0] == ends[1]
    assert set(ends[0].values()) == {State.SUCCESS, State.FAILED, State.SKIPPED}
    assert len(ends[0]) == NUMBER


def test_a_request_for_a_task_with_needs_finds_it(broker, channel, clock):
    executor = executor_with(broker, clock, channel)
    drafts = [Draft("true", number, {"needs": (str(number - 1),)} if number > 1 else {}) for number in range(1, 3_000)]
    executor.accept_tasks(PlainJobs(drafts, [Task(key="any", command="true")], has_needs=True).sources())
    explained = channel.ask(ExplainRequest(name="2999"))
    executor.heartbeat()
    assert isinstance(explained[0], ExplainReply)
    assert explained[0].explanations[0].now.waits_for is WaitReason.NEEDS


def test_tasks_that_are_only_accepted_are_demanded(executor, channel):
    executor.heartbeat()
    replies = channel.ask(DemandRequest())
    executor.sync()
    (reply,) = replies
    assert isinstance(reply, DemandReply)
    assert (reply.waiting, reply.open_slots) == ({}, 0)
    executor.adjustments.change_limits(parallelism=2 * NUMBER)
    replies = channel.ask(DemandRequest())
    executor.sync()
    assert sum(replies[0].waiting.values()) == NUMBER - 2


def test_an_executor_rests_once_all_are_queued(broker, channel, clock):
    executor = executor_with(broker, clock, channel)
    executor.accept_tasks(many(3))
    executor.heartbeat()
    executor.heartbeat()
    started = clock()
    executor.wait(60.0)
    assert clock() > started


def test_tasks_are_revoked_together_before_any_was_queued(executor):
    assert executor.revoke_waiting(silently=True) == NUMBER
    assert (executor.tasks_waiting, executor.get_event_buffer()) == (0, [])
    assert executor.revoke_waiting(silently=True) == 0


def test_each_that_is_revoked_has_an_event_of_its_first_attempt(executor):
    assert executor.revoke_waiting(silently=False) == 0
    events = executor.get_event_buffer()
    assert len(events) == NUMBER
    assert {(event.attempt, event.state) for event in events} == {(1, State.REVOKED)}


def test_those_that_are_revoked_without_an_event_are_counted(executor):
    executor.heartbeat()
    assert executor.revoke_waiting(silently=True) == NUMBER - 2
    ends = {family.metric: family.numbers for family in executor.telemetry.read()}[metrics.TASK_ENDS]
    assert [*ends] == [(("default", "revoked", "revoked"), NUMBER - 2)]


def test_each_has_an_event_if_the_ledger_records_each_end(broker, clock, channel):
    ledger = MemoryLedger()
    executor = executor_with(broker, clock, channel, ledger)
    executor.accept_tasks(many(5))
    executor.heartbeat()
    assert [unfinished.task.key for unfinished in ledger.unfinished()] == [str(n + 1) for n in range(5)]
    assert executor.revoke_waiting(silently=True) == 0
    assert executor.flush()
    assert [unfinished.task.key for unfinished in ledger.unfinished()] == ["1", "2"]
    assert sum(event.state is State.REVOKED for event in executor.get_event_buffer()) == 3


def test_tasks_of_several_queues_share_a_part(broker, clock, channel):
    executor = executor_with(broker, clock, channel)
    executor.accept_tasks(source_of([{"queue": queue} for queue in "ab" for _ in range(PART)]))
    executor.heartbeat()
    assert queued(executor) == PART


def test_none_are_queued_while_the_executor_drains(executor, channel):
    executor.drain()
    channel.ask(ExplainRequest(name="1"))
    executor.heartbeat()
    assert (queued(executor), executor.tasks_waiting) == (0, NUMBER)


@pytest.mark.parametrize("has_needs", [False, True])
def test_only_the_last_ends_are_remembered_once_all_are_queued(broker, channel, clock, monkeypatch, has_needs):
    monkeypatch.setattr(dependencies, "MAX_REMEMBERED", 2)
    executor = executor_with(broker, clock, channel)
    fields = [{"needs": ("1",)} if has_needs and number == 4 else {} for number in range(1, 5)]
    drafts = [Draft("true", number, each) for number, each in enumerate(fields, start=1)]
    executor.accept_tasks(PlainJobs(drafts, [Task(key="any", command="true")], has_needs=has_needs).sources())
    assert len(ends_of(executor, broker, ())) == 4
    executor.queue_command("late", "true", needs=["4"])
    with pytest.raises(InvalidTask, match="ended long ago"):
        executor.queue_command("too late", "true", needs=["1"])
