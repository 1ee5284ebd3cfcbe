"""One executor writes a ledger, the next one recovers: one suite for all ledgers. Then the failures of databases."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from random import Random
from uuid import uuid4

import pytest
from sqlalchemy import text

from celeriac import CeleryExecutor, Config, Event, Secret, State, Task
from celeriac.errors import InvalidConfig, InvalidTask, LedgerBroken, LedgerLocked, LedgerLost
from celeriac.executor.interfaces import Ledger, LedgerTraits, LostTask
from celeriac.executor.ledger_writer import MAX_NEW
from celeriac.executor.requests import WaitReason
from celeriac.ledger import (
    MemoryLedger,
    SqlLedger,
    database,
    file_database,
    prepared,
    schema,
    sql_ledger,
    transactions,
)
from celeriac.ledger.limits import driver_of
from celeriac.ledger.run_store import RunStore
from celeriac.ledger.schema import OWNERS, VERSION
from celeriac.task.task import OnNeedFailed, OnWorkerLost
from celeriac.testing import InMemoryBroker, ManualClock
from tests.support.cli_runner import until
from tests.support.servers import PostgresServer

Open = Callable[[], Ledger]
ENDS = {State.SUCCESS, State.FAILED, State.REVOKED}


class LostTasks:
    """Reports each task that is not with the broker as lost."""

    is_scanning = has_news = False

    def __init__(self, broker: InMemoryBroker) -> None:
        self._broker = broker
        self._lost: list[LostTask] = []

    def scan(self, tasks, *, requested_at, urgent=False):
        published = {task.message_id for task in self._broker.messages}
        lost = [task.message_id for task in tasks if task.message_id not in published]
        self._lost += [LostTask(each, "it is nowhere", requested_at=requested_at) for each in lost]

    def take_lost(self):
        lost, self._lost = self._lost, []
        return lost

    def is_held(self, message_id):
        return False


class World:
    """One broker and one ledger, and the executors that use them one after the other."""

    def __init__(self, open_ledger: Open) -> None:
        self.clock = ManualClock()
        self.broker = InMemoryBroker(self.clock)
        self.open_ledger = open_ledger

    def executor(self, *, outbox: bool = True, **config: object) -> CeleryExecutor:
        self.ledger = self.open_ledger()
        return CeleryExecutor(
            Config(**{"parallelism": 4, **config}),  # type: ignore[arg-type]
            publisher=self.broker,
            results=self.broker,
            revoker=self.broker,
            lost_task_detector=LostTasks(self.broker),
            ledger=self.ledger,
            outbox=outbox,
            clock=self.clock,
            wall_clock=self.clock,
            random=Random(1),
        )

    def pass_time(self, executor: CeleryExecutor, seconds: float = 0.1) -> None:
        self.clock.advance(seconds)
        executor.heartbeat()

    def run_to_the_end(self, executor: CeleryExecutor) -> list[Event]:
        events = []
        for _ in range(100):
            self.pass_time(executor, 1.0)
            for task in self.broker.unfinished:
                self.broker.succeed(task.key)
            events += executor.read_events()
            if not executor.tasks_in_flight and not executor.tasks_waiting:
                break
        executor.flush()
        return events + executor.read_events()


@pytest.fixture(params=["memory", "sqlite", "sqlalchemy", "postgresql"])
def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    if request.param == "memory":
        ledger_in_memory = MemoryLedger()
        yield World(lambda: ledger_in_memory)
        return
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    if request.param == "sqlalchemy":
        monkeypatch.setattr(sql_ledger, "open_recorder", RunStore)
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres").ledger_url
    name = f"run-{uuid4()}"
    with SqlLedger(url) as ledger:
        yield World(lambda: ledger.open_run(name))


def states(events: list[Event]) -> list[tuple[object, State]]:
    return [(event.key, event.state) for event in events]


# — recovery —


def test_waiting_tasks_are_recovered_in_order(world):
    first = world.executor()
    for number in range(9):
        first.queue_command(f"task {number}", "true", priority=number % 2)
    first.flush()

    second = world.executor()
    assert second.recover() == 9
    assert (second.tasks_waiting, second.tasks_in_flight) == (9, 0)
    second.heartbeat()
    assert [task.key for task in world.broker.batches[-1]] == [f"task {number}" for number in (1, 3, 5, 7)]


def test_blocked_tasks_are_recovered_and_unblocked_or_skipped(world):
    first = world.executor()
    first.queue_tasks(
        [
            Task(key="last", command="true", needs=("next", "done"), priority=9),
            Task(key="next", command="true", needs=("out",)),
            Task(key="tidy", command="true", needs=("bad", "waits"), on_need_failed=OnNeedFailed.RUN, priority=9),
            *(Task(key=key, command="true") for key in ("done", "bad", "out", "other", "waits")),
            Task(key="skipped", command="true", needs=("bad",)),
        ]
    )
    world.pass_time(first)
    world.broker.succeed("done")
    world.broker.fail("bad")
    world.pass_time(first)
    first.flush()

    second = world.executor()
    assert second.recover() == 6
    assert (second.tasks_waiting, second.tasks_in_flight) == (4, 2)
    assert [second.explain(key).now.facts["first"] for key in ("last", "next", "tidy")] == ["next", "out", "waits"]
    world.broker.succeed("out")
    second.fail("waits")
    events = world.run_to_the_end(second)
    last = {event.key: event.state for event in events if event.state.is_final}
    assert [last[key] for key in ("next", "last", "tidy")] == [State.SUCCESS] * 3
    order = [task.key for batch in world.broker.batches for task in batch]
    assert order.index("next") < order.index("last")
    assert "skipped" not in order


def test_recover_takes_coming_tasks_and_ended_tasks_as_dependencies(world):
    first = world.executor()
    first.queue_command("again", "true")
    first.queue_command("waits", "true", needs=["again"])
    first.queue_command("met", "true", needs=["again"], on_need_failed="run")
    first.success("again")
    first.flush()

    second = world.executor()
    assert second.recover(coming={"again"}, ended={"good": State.SUCCESS, "bad": State.FAILED}) == 2
    second.heartbeat()
    assert (second.tasks_waiting, second.tasks_in_flight) == (2, 0)
    second.queue_tasks(
        [
            Task(key="again", command="true"),
            Task(key="a", command="true", needs=("good",)),
            Task(key="b", command="true", needs=("bad",)),
        ]
    )
    ends = {event.key: event.state for event in world.run_to_the_end(second) if event.state.is_final}
    assert {key: ends[key] for key in ("b", "a", "waits", "met")} == {
        "b": State.SKIPPED,
        **dict.fromkeys(("a", "waits", "met"), State.SUCCESS),
    }
    sent = [task.key for batch in world.broker.batches for task in batch]
    assert sent[:2] == ["again", "a"]


def test_an_end_and_the_skipped_tasks_are_written_in_one_batch(world):
    """So no crash can come between them."""
    first = world.executor()
    first.queue_tasks([Task(key="0", command="true"), *(chained(n) for n in range(1, 50))])
    first.fail("0")
    first.flush()
    second = world.executor()
    assert second.recover() == 0


def chained(n: int) -> Task:
    return Task(key=str(n), command="true", needs=(str(n - 1),))


def test_a_task_is_recovered_with_all_its_fields(world):
    task = Task(
        key="all of it",
        command=("printf", "%s", "ünïcödé \udc80"),
        queue="gpu",
        priority=-3,
        slots=2,
        env={"A": "1", "PASSWORD": Secret("hush")},
        cwd="/tmp",
        timeout=1.5,
        grace=2,
        retries=3,
        retry_delay=0.5,
        on_worker_lost=OnWorkerLost.FAIL,
        max_lost=5,
    )
    first = world.executor()
    first.queue_task(task)
    first.flush()

    (unfinished,) = world.ledger.unfinished()
    assert unfinished.task == task
    assert isinstance(unfinished.task.env["PASSWORD"], Secret)


def test_a_published_task_is_recovered_in_flight_and_not_sent_again(world):
    first = world.executor()
    first.queue_command("a", "true")
    first.heartbeat()

    second = world.executor()
    second.recover()
    assert (second.tasks_waiting, second.tasks_in_flight) == (0, 1)
    assert states(world.run_to_the_end(second)) == [("a", State.SUCCESS)]
    assert len(world.broker.messages) == 1


def test_a_task_that_was_never_sent_is_sent_once_under_its_id(world):
    first = world.executor()
    task = first.queue_command("a", "true")
    world.broker.publish = lambda tasks, timeout: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        first.heartbeat()
    del world.broker.publish

    second = world.executor()
    second.recover()
    events = world.run_to_the_end(second)
    assert [message.message_id for message in world.broker.messages] == [task.id]
    assert states(events)[-1] == ("a", State.SUCCESS)


def test_a_result_that_came_between_executors_is_reported_and_not_run_again(world):
    first = world.executor()
    for key in ("good", "bad"):
        first.queue_command(key, "true")
    first.heartbeat()
    world.broker.succeed("good")
    world.broker.fail("bad", exit_code=3)

    second = world.executor()
    second.recover()
    ends = {event.key: event for event in second.read_events()}
    assert (ends["good"].state, ends["bad"].state) == (State.SUCCESS, State.FAILED)
    assert ends["bad"].detail == "exit code 3"
    assert len(world.broker.messages) == 2


def test_a_result_is_deleted_after_the_ledger_has_it(world):
    executor = world.executor()
    task = executor.queue_command("a", "true")
    executor.heartbeat()
    world.broker.succeed("a")
    world.clock.advance(0.01)
    executor.sync()
    assert executor.get_event_buffer()[-1].state is State.SUCCESS
    executor.sync()
    assert world.broker.forgotten == []
    world.pass_time(executor, 1.0)
    assert world.broker.forgotten == [task.id]


def test_a_retry_keeps_its_attempt_and_its_delay(world):
    first = world.executor()
    first.queue_command("a", "true", retries=1, retry_delay=60)
    first.heartbeat()
    world.broker.fail("a")
    world.pass_time(first)
    first.flush()

    second = world.executor()
    second.recover()
    second.heartbeat()
    assert len(world.broker.messages) == 1
    world.pass_time(second, 100)
    assert world.broker.messages[-1].attempt == 2


def test_a_cancelled_task_stays_cancelled(world):
    world.broker.obeys_revokes = False
    first = world.executor()
    task = first.queue_command("a", "true")
    first.heartbeat()
    world.broker.start("a")
    world.pass_time(first)
    first.revoke_task("a")
    first.flush()

    world.broker.obeys_revokes = True
    world.broker.revoked.clear()
    second = world.executor()
    second.recover()
    assert world.broker.revoked == [task.id]
    assert states(world.run_to_the_end(second))[-1] == ("a", State.REVOKED)


def test_an_ended_task_is_not_recovered(world):
    first = world.executor()
    first.queue_command("a", "true")
    world.run_to_the_end(first)
    assert world.executor().recover() == 0


def test_tasks_of_a_broker_that_ended_with_its_process_are_requeued(world):
    first = world.executor(outbox=False)
    first.queue_command("a", "true")
    first.heartbeat()
    world.broker.start("a")
    world.pass_time(first)
    first.flush()

    second = world.executor(outbox=False)
    second.recover()
    assert (second.tasks_waiting, second.tasks_in_flight) == (1, 0)


def test_without_an_outbox_a_task_is_in_the_ledger_before_it_runs(world):
    first = world.executor(outbox=False)
    task = first.queue_command("a", "true")
    first.trigger_tasks(first.slots_available)
    assert world.broker.messages == [task]

    second = world.executor(outbox=False)
    assert second.recover() == 1
    second.heartbeat()
    assert [message.message_id for message in world.broker.messages] == [task.id, task.id]


def test_recover_refuses_a_task_with_too_many_slots_and_adopts_nothing(world):
    first = world.executor()
    first.queue_command("small", "true")
    first.queue_command("large", "true", slots=4)
    first.flush()

    second = world.executor(parallelism=3)
    with pytest.raises(InvalidTask, match="slots"):
        second.recover()
    assert second.tasks_waiting == 0


def test_a_key_can_be_used_again_after_its_task_has_ended(world):
    executor = world.executor()
    executor.queue_command("a", "true")
    world.run_to_the_end(executor)
    again = executor.queue_command("a", "false")
    executor.flush()
    (unfinished,) = world.ledger.unfinished()
    assert unfinished.task == again


# — events with numbers —


def test_unacknowledged_ends_are_read_again_in_order_with_their_numbers(world):
    first = world.executor()
    for number in range(4):
        first.queue_command(f"task {number}", "true")
    events = world.run_to_the_end(first)
    ends = [event for event in events if event.state in ENDS]
    first.acknowledge(ends[1].number)

    second = world.executor()
    second.recover()
    assert second.read_events() == ends[2:]
    assert second.read_events() == []


def test_event_numbers_grow_and_are_never_given_twice(world):
    numbers: list[int] = []
    for number in range(3):
        executor = world.executor()
        executor.recover()
        executor.queue_command(f"task {number}", "true")
        events = world.run_to_the_end(executor)
        numbers += [event.number for event in events]
        executor.acknowledge(events[-1].number)
    assert numbers == sorted(set(numbers))
    assert world.executor().read_events() == []


def test_an_acknowledgement_of_a_later_number_skips_no_event(world):
    executor = world.executor()
    executor.acknowledge(1_000)
    executor.queue_command("a", "true")
    world.run_to_the_end(executor)
    assert states(world.executor().read_events()) == [("a", State.SUCCESS)]


# — random crashes —


@pytest.mark.parametrize("seed", range(6))
def test_executors_that_crash_end_every_task_once_and_send_nothing_twice(world, seed):
    """A crash is an executor that is dropped: what it had not written is lost."""
    random = Random(seed)
    caller = Caller()
    executor = world.executor()
    queued = 0
    for _ in range(400):
        match random.randrange(10):
            case 0 if queued < 60:
                executor.queue_command(f"task {queued}", "true", retries=random.randrange(3), retry_delay=0.2)
                queued += executor.flush()
            case 1 | 2:
                world.clock.advance(random.random() / 10)
            case 3 | 4 | 5 if world.broker.unfinished:
                task = random.choice(world.broker.unfinished)
                random.choice([world.broker.start, world.broker.succeed, world.broker.fail])(task.key)
            case 6:
                caller.take(executor, acknowledge=random.random() < 0.5)
            case 7 if random.random() < 0.3:
                executor = world.executor()
                executor.recover()
            case 8:
                executor.trigger_tasks(executor.slots_available)
            case _:
                executor.sync()
    executor = world.executor()
    executor.recover()
    while executor.tasks_waiting or executor.tasks_in_flight:
        world.pass_time(executor, 1.0)
        for task in world.broker.unfinished:
            world.broker.succeed(task.key)
    caller.take(executor, acknowledge=True)
    assert sorted(map(str, caller.ends)) == sorted(f"task {number}" for number in range(queued))
    sent = [task.message_id for task in world.broker.messages]
    assert len(sent) == len(set(sent))


class Caller:
    """Records each end, and the number of the last event that it has read."""

    def __init__(self) -> None:
        self.ends: list[object] = []
        self.last = 0

    def take(self, executor: CeleryExecutor, *, acknowledge: bool) -> None:
        for event in executor.read_events():
            if event.number > self.last:
                self.last = event.number
                self.ends += [event.key] if event.state in ENDS else []
        if acknowledge:
            executor.acknowledge(self.last)


# — failures of a database —


@pytest.fixture(params=["sqlite", "sqlalchemy"])
def path(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of a ledger, which `SqlLedger` opens with SQLAlchemy or without it."""
    if request.param == "sqlalchemy":
        monkeypatch.setattr(sql_ledger, "open_recorder", RunStore)
    return tmp_path / "ledger.db"


@pytest.fixture
def small(path: Path) -> Iterator[World]:
    with SqlLedger(f"sqlite:///{path}") as ledger:
        yield World(lambda: ledger.open_run("run"))


def test_a_locked_ledger_pauses_publishing_and_loses_nothing(small, path, caplog):
    executor = small.executor()
    executor.queue_command("a", "true")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        small.pass_time(executor)
        small.pass_time(executor)
        assert (executor.tasks_waiting, small.broker.messages) == (1, [])
        assert not executor.flush()
        assert executor.read_events() == []
        assert not caplog.records  # other processes write for a moment all the time
        small.pass_time(executor, LedgerLocked.REPORT_DELAY)
    small.pass_time(executor, 60)
    assert [task.key for task in small.broker.messages] == ["a"]
    messages = [record.message for record in caplog.records]
    unavailable = "the ledger is unavailable, nothing is started until it can be written"
    assert messages == [
        f"{unavailable}: sqlite:///{path} is locked by another process",
        f"the ledger is available again after {messages[1].split()[-2]} s",
    ]


def test_a_full_disk_pauses_publishing_and_loses_nothing(small):
    executor = small.executor()
    database = small.ledger._database
    with database.reading() as connection:
        (pages,) = driver_of(connection).execute("PRAGMA page_count").fetchone()
        driver_of(connection).execute(f"PRAGMA max_page_count = {pages + 2}")
    for number in range(100):
        executor.queue_command(f"task {number}", f"echo {'x' * 500}")
    small.pass_time(executor)
    assert (executor.tasks_waiting, small.broker.messages) == (100, [])
    with database.reading() as connection:
        driver_of(connection).execute("PRAGMA max_page_count = 1000000")
    assert {event.state for event in small.run_to_the_end(executor) if event.state in ENDS} == {State.SUCCESS}
    assert len(small.broker.messages) == 100


def test_the_most_urgent_of_many_tasks_are_sent_before_all_are_stored(world):
    executor = world.executor()
    tasks = [Task(key=f"k{number}", command="true", priority=number) for number in range(3 * MAX_NEW)]
    executor.queue_tasks(tasks)
    executor.heartbeat()
    sent = [task.key for task in world.broker.messages]
    assert sent == [task.key for task in reversed(tasks[-4:])]
    assert executor.tasks_unwritten > 0
    following = world.executor()  # the first one is killed
    assert following.recover() == len(tasks) - executor.tasks_unwritten
    assert following.tasks_in_flight == len(sent)
    assert all(following.has_task(key) for key in sent)
    following.queue_tasks([task for task in tasks if not following.has_task(task.key)])
    assert sorted(str(task.key) for task in following.tasks()) == sorted(str(task.key) for task in tasks)


def test_flush_stores_all_of_many_tasks_in_order_of_arrival(world):
    executor = world.executor()
    keys = [f"k{number}" for number in range(2 * MAX_NEW + 1)]
    executor.queue_tasks([Task(key=key, command="true", priority=number % 3) for number, key in enumerate(keys)])
    executor.heartbeat()
    assert executor.flush()
    assert executor.tasks_unwritten == 0
    assert [unfinished.task.key for unfinished in world.open_ledger().unfinished()] == keys


def test_a_task_of_many_is_stored_with_the_tasks_that_it_needs(world):
    executor = world.executor(parallelism=1)
    needed = [Task(key=f"need{number}", command="true") for number in range(4 * MAX_NEW)]
    urgent = Task(key="urgent", command="true", priority=1, needs=("need3999", "need5"))
    executor.queue_tasks([urgent, *needed])
    executor.heartbeat()
    assert executor.tasks_unwritten > 0
    following = world.executor()
    following.recover()
    assert all(following.has_task(key) for key in ("urgent", *urgent.needs))
    assert following.explain("urgent").now.waits_for is WaitReason.NEEDS


def test_waiting_tasks_are_revoked_together_except_those_of_others(path):
    with RunStore(f"sqlite:///{path}") as store:
        run = store.create_run("run")
        world = World(lambda: store.open_run(run, "run", keeps_events=True))
        first = world.executor()
        first.queue_tasks([Task(key=key, command="true") for key in ("a", "b", "c")])
        assert first.flush()
    with RunStore(f"sqlite:///{path}") as store:
        traits = LedgerTraits(revokes_together=True)
        world = World(lambda: store.open_run(run, "run", keeps_events=False, only={"a", "b"}, traits=traits))
        executor = world.executor(parallelism=1)
        executor.recover()
        executor.heartbeat()
        world.broker.succeed("a")
        assert executor.end()
        states = store.task_states(run, ["a", "b", "c"])
    assert states == {
        "a": (State.SUCCESS, None),
        "b": (State.REVOKED, "never ran: the executor ended"),
        "c": (State.WAITING, None),
    }


def test_an_executor_that_lost_its_run_drops_the_tasks_and_revokes_none(small, path):
    executor = small.executor()
    for number in range(9):
        executor.queue_command(f"task {number}", "true")
    executor.heartbeat()
    with closing(sqlite3.connect(path)) as other, other:
        other.execute(f"DELETE FROM {OWNERS.name}")
    with pytest.raises(LedgerLost, match="considered this one dead"):
        small.pass_time(executor, 5.0)
    assert (executor.tasks_waiting, executor.tasks_in_flight, executor.slots_occupied) == (0, 0, 0)
    executor.terminate()
    assert small.broker.revoked == []
    assert len(small.broker.messages) == 4


def test_an_open_run_is_refused_to_another_owner(small, path):
    small.executor()
    with SqlLedger(f"sqlite:///{path}") as other, pytest.raises(InvalidConfig, match="is running in process"):
        other.open_run("run")


def test_a_closed_run_can_be_opened_again(path):
    ledger = SqlLedger(f"sqlite:///{path}")
    with ledger.open_run("run") as run, ledger.open_run("other"):
        world = World(lambda: run)
        world.executor().queue_command("a", "true")
        assert world.ledger.numbers() == (0, 0)
    with SqlLedger(f"sqlite:///{path}").open_run("run") as again:
        assert again.numbers() == (0, 0)
    is_running = pytest.raises(InvalidConfig, match="is running in process")
    with ledger.open_run("run"), SqlLedger(f"sqlite:///{path}") as other, is_running:
        other.open_run("run")


def test_closing_a_run_closes_a_ledger_without_other_open_runs(path):
    with SqlLedger(f"sqlite:///{path}").open_run("run") as run:
        World(lambda: run).executor()
    assert not path.with_name("ledger.db-wal").exists(), "a connection is still open"


def test_a_run_of_an_ended_process_is_taken_at_once(path):
    with SqlLedger(f"sqlite:///{path}") as ledger:
        ledger.open_run("run")
        with closing(sqlite3.connect(path)) as file, file:
            file.execute("UPDATE celeriac_owner SET process_started = 1.0")
        with SqlLedger(f"sqlite:///{path}") as other:
            other.open_run("run")


LEDGERS = Path(__file__).parent / "ledgers"
"""One ledger of each version, as SQL."""


@pytest.mark.parametrize("version", range(1, VERSION + 1))
def test_a_ledger_of_any_version_is_migrated_and_recovered(path, version):
    with closing(sqlite3.connect(path)) as old:
        old.executescript((LEDGERS / f"v{version}.sql").read_text())
    new = path.with_name("new.db")
    with SqlLedger(f"sqlite:///{path}") as ledger, SqlLedger(f"sqlite:///{new}"):
        assert tables_of(path) == tables_of(new)
        world = World(lambda: ledger.open_run("nightly"))
        executor = world.executor()
        unfinished = {each.task.key: each for each in world.ledger.unfinished()}
        assert list(unfinished) == ["retried", "running", "waiting", "held"]
        assert (unfinished["running"].state, unfinished["running"].task.timeout) == (State.RUNNING, 30)
        assert (unfinished["retried"].task.attempt, unfinished["retried"].task.message_id) == (2, "id-retried.2")
        assert unfinished["waiting"].task.env["PASSWORD"] == "hush"
        assert unfinished["held"].task.needs == ("waiting",)
        assert executor.recover() == 4
        assert [event.key for event in executor.read_events()] == ["failed", "succeeded"]
        assert executor.read_events() == []


def tables_of(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as file:
        rows = file.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")
        return {" ".join(sql.replace('"', "").split()) for (sql,) in rows}


def test_a_ledger_of_a_newer_version_is_refused(path):
    with SqlLedger(f"sqlite:///{path}"), closing(sqlite3.connect(path)) as file, file:
        file.execute("UPDATE celeriac_ledger SET version = 99")
    with pytest.raises(
        InvalidConfig, match="has version 99, and this Celeriac knows version 1; use the Celeriac that wrote it"
    ):
        SqlLedger(f"sqlite:///{path}")


def test_a_ledger_that_is_opened_twice_in_a_process_loses_nothing_to_another_process(path):
    """A process that opens and closes the file itself would lose the locks of SQLite. Another one, which then takes
    itself for the last, would remove the log when it ends."""
    url = f"sqlite:///{path}"
    program = """
import sys
from celeriac.ledger.run_store import RunStore
with RunStore(sys.argv[1]) as store:
    store.create_run(sys.argv[2])
"""
    with RunStore(url) as first:
        first.create_run("first")
        for again in (RunStore(url), RunStore(url, read_only=True)):
            again.close()
        for name in ("one", "two"):
            with RunStore(url), RunStore(url, read_only=True):
                subprocess.run([sys.executable, "-c", program, url, f"other {name}"], check=True)
                first.create_run(name)
    with closing(sqlite3.connect(path)) as file:
        names = [name for (name,) in file.execute("SELECT name FROM celeriac_run ORDER BY id")]
    assert names == ["first", "other one", "one", "other two", "two"]


def test_a_truncated_ledger_is_refused(path):
    with SqlLedger(f"sqlite:///{path}") as ledger:
        ledger.open_run("run")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(LedgerBroken, match="the file is shorter than its header says; put a copy in its place"):
        SqlLedger(f"sqlite:///{path}")


def test_a_file_that_is_no_database_is_refused(path):
    path.write_text("not a database, but as long as one" * 100)
    with pytest.raises(LedgerBroken, match="is damaged: DatabaseError: file is not a database"):
        SqlLedger(f"sqlite:///{path}")


def test_a_ledger_of_an_older_version_is_migrated(path, monkeypatch):
    with SqlLedger(f"sqlite:///{path}"), closing(sqlite3.connect(path)) as file, file:
        file.execute("ALTER TABLE celeriac_run DROP COLUMN output")
    for module in (schema, prepared, transactions, file_database, database):
        monkeypatch.setattr(module, "VERSION", 2)
    add_column = text("ALTER TABLE celeriac_run ADD COLUMN output TEXT")
    monkeypatch.setitem(schema.MIGRATIONS, 1, lambda connection: connection.execute(add_column))
    with SqlLedger(f"sqlite:///{path}") as ledger, ledger.open_run("run"), closing(sqlite3.connect(path)) as file:
        assert file.execute("SELECT version FROM celeriac_ledger").fetchall() == [(2,)]
        assert file.execute("SELECT name, output FROM celeriac_run").fetchall() == [("run", None)]


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "nonsense", "oracle://host/name"])
def test_a_url_that_is_no_ledger_is_refused(url):
    with pytest.raises(InvalidConfig, match=r"^ledger: "):
        SqlLedger(url)


def test_only_the_user_can_read_a_ledger(path):
    with SqlLedger(f"sqlite:///{path}"):
        assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("key", [1, ("a", 1), "\0", "\udc80"])
def test_a_key_that_cannot_be_stored_is_refused(small, key):
    executor = small.executor()
    with pytest.raises(InvalidTask, match=r"^key: "):
        executor.queue_command(key, "true")
    assert executor.tasks_waiting == 0


def test_a_frozen_server_pauses_publishing(own_postgres):
    with SqlLedger(own_postgres.ledger_url, timeout=0.5) as ledger:
        world = World(lambda: ledger.open_run("run"))
        executor = world.executor()
        executor.queue_command("a", "true")
        own_postgres.freeze()
        world.pass_time(executor)
        assert (executor.tasks_waiting, world.broker.messages) == (1, [])
        own_postgres.thaw()

        def writes_again() -> bool:
            world.pass_time(executor, 10.0)
            return executor.flush()

        until(writes_again, "a write")
        assert [event.state for event in world.run_to_the_end(executor)] == [State.QUEUED, State.SUCCESS]
    assert len(world.broker.messages) == 1


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    with closing(PostgresServer()) as server:
        yield server


def test_the_index_of_unfinished_tasks_is_partial_on_postgresql(own_postgres):
    with SqlLedger(own_postgres.ledger_url):
        ((definition,),) = own_postgres.sql(
            "SELECT indexdef FROM pg_indexes WHERE indexname = 'celeriac_task_unfinished'"
        )
    assert " WHERE " in definition
