"""`FutureExecutor` on a broker in memory: states of futures, refused tasks, and what becomes of them in an accident."""

from __future__ import annotations

import concurrent.futures
import gc
import logging
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError
from contextlib import closing
from typing import Any

import pytest

from celeriac import CeleryExecutor, Config, FutureExecutor, Reason, Result, State, TaskFailed
from celeriac.broker.wakeup import Wakeup
from celeriac.errors import InvalidConfig, InvalidTask, LedgerLost, TaskAlreadyQueued
from celeriac.executor.interfaces import Receipt
from celeriac.executor.slots import Slots
from celeriac.futures import driver
from celeriac.ledger import MemoryLedger
from celeriac.task.task import Task
from celeriac.telemetry.trace_context import TRACEPARENT
from celeriac.testing import InMemoryBroker
from tests.support.cli_runner import WAIT_TIMEOUT, until


class Broker(InMemoryBroker):
    """A broker that another thread can wake."""

    def __init__(self) -> None:
        super().__init__()
        self.wakeup = Wakeup()
        self.is_instant = False
        """Whether tasks succeed at once."""

    def publish(self, tasks: Sequence[Task], *, timeout: float) -> list[Receipt]:
        receipts = super().publish(tasks, timeout=timeout)
        for task in tasks if self.is_instant else ():
            self.succeed(task.key)
        return receipts

    def wait(self, timeout: float) -> None:
        self.wakeup.wait(timeout)


class InMemoryCluster:
    """A cluster with one slot, whose tasks the test ends."""

    def __init__(self) -> None:
        self.broker = Broker()
        self.wake = self.broker.wakeup.notify

    def executor(self, *, ledger: Any = None) -> CeleryExecutor:
        broker = self.broker
        return CeleryExecutor(Config(parallelism=1), publisher=broker, results=broker, revoker=broker, ledger=ledger)

    def close(self) -> None:
        self.broker.wakeup.close()

    def act(self, action: Callable[[str], None], key: str) -> None:
        """Wait until a task has arrived, and let a worker act on it."""
        until(lambda: any(task.key == key for task in self.broker.messages), f"the message of {key}")
        action(key)
        self.wake()


@pytest.fixture
def cluster() -> Iterator[Any]:
    with closing(InMemoryCluster()) as cluster:
        yield cluster


@pytest.fixture
def executor(cluster) -> Iterator[FutureExecutor]:
    executor = FutureExecutor(cluster=cluster)
    yield executor
    executor.terminate()
    executor.shutdown()


def sent(cluster: InMemoryCluster) -> list[object]:
    return [task.key for task in cluster.broker.messages]


class ThreadTraces:
    """Traces whose spans are named for the threads that ask."""

    def caller(self) -> dict[str, str]:
        return {TRACEPARENT: threading.current_thread().name}


def test_a_task_continues_the_trace_of_the_thread_that_submits_it(cluster, executor):
    executor._driver._executor.telemetry.traces = ThreadTraces()
    executor.submit("true", key="a")
    until(lambda: sent(cluster), "the message")
    assert cluster.broker.messages[0].env == {TRACEPARENT: threading.current_thread().name}


def test_the_result_of_a_future_is_the_result_of_the_task(cluster, executor):
    future = executor.submit(["gzip", "-k", "a"], key="a")
    cluster.act(cluster.broker.succeed, "a")
    result = future.result(WAIT_TIMEOUT)
    assert (result.state, result.execution.exit_code) == (State.SUCCESS, 0)
    assert result.check() is result


def test_a_failed_command_gives_its_result_too(cluster, executor):
    future = executor.submit("false", key="a")
    cluster.act(cluster.broker.fail, "a")
    result = future.result(WAIT_TIMEOUT)
    assert (result.state, result.reason) == (State.FAILED, Reason.EXIT_CODE)
    with pytest.raises(TaskFailed, match="failed: exit code 1") as raised:
        result.check()
    assert raised.value.result is result


def test_a_task_that_cannot_be_sent_gives_its_result(cluster, executor):
    cluster.broker.refuse(transient=False)
    result = executor.submit("true").result(WAIT_TIMEOUT)
    assert (result.state, result.reason) == (State.FAILED, Reason.PUBLISH_ERROR)


def test_arguments_are_added_to_a_list(cluster, executor):
    executor.submit(["gzip", "-k"], "a b.csv", key="a", priority=7)
    until(lambda: sent(cluster), "the message")
    assert (cluster.broker.messages[0].command, cluster.broker.messages[0].priority) == (("gzip", "-k", "a b.csv"), 7)


def test_a_task_without_a_key_has_its_id_as_the_key(cluster, executor):
    future = executor.submit("true")
    until(lambda: sent(cluster), "the message")
    assert future.key == cluster.broker.messages[0].id == cluster.broker.messages[0].key


def test_a_waiting_task_is_cancelled_and_never_sent(cluster, executor):
    first, second = executor.submit("true", key="a"), executor.submit("true", key="b")
    until(lambda: sent(cluster), "the first message")
    assert second.cancel()
    assert second.cancel()
    assert concurrent.futures.wait([second], WAIT_TIMEOUT).done == {second}
    with pytest.raises(CancelledError):
        second.result(0)
    cluster.act(cluster.broker.succeed, "a")
    assert first.result(WAIT_TIMEOUT).state is State.SUCCESS
    executor.shutdown()
    assert sent(cluster) == ["a"]


def test_a_sent_task_is_not_cancelled(cluster, executor):
    future = executor.submit("true", key="a")
    until(future.running, "the start")
    assert not future.cancel()
    cluster.act(cluster.broker.succeed, "a")
    assert future.result(WAIT_TIMEOUT).state is State.SUCCESS


def test_revoke_ends_a_sent_task(cluster, executor):
    future = executor.submit("sleep 60", key="a")
    until(future.running, "the start")
    future.revoke()
    assert future.result(WAIT_TIMEOUT).state is State.REVOKED


def test_revoke_cancels_a_waiting_task(cluster, executor):
    executor.submit("true", key="a")
    future = executor.submit("true", key="b")
    future.revoke()
    assert future.cancelled()


def test_a_cancelled_task_is_never_sent_however_close_the_race(cluster, executor):
    cluster.broker.is_instant = True
    futures = [executor.submit("true", key=n) for n in range(3_000)]
    cancelled = {future.key for future in reversed(futures) if future.cancel()}
    executor.shutdown()
    assert cancelled
    assert set(sent(cluster)) == set(range(3_000)) - cancelled
    assert all(future.done() for future in futures)


def test_a_key_may_be_used_again_after_the_end(cluster, executor):
    future = executor.submit("true", key="a")
    with pytest.raises(TaskAlreadyQueued):
        executor.submit("true", key="a")
    cluster.act(cluster.broker.succeed, "a")
    future.result(WAIT_TIMEOUT)
    assert executor.submit("true", key="a").key == "a"


@pytest.mark.parametrize(
    ("command", "fields", "field"),
    [
        ("", {}, "command"),
        ([], {}, "command"),
        (print, {}, "command"),
        ("true", {"priority": "high"}, "priority"),
        ("true", {"slots": 2}, "slots"),
        ("true", {"needs": ["unknown"]}, "needs"),
        ("true", {"timeout": 0}, "timeout"),
    ],
)
def test_a_wrong_task_is_refused_at_once(executor, command, fields, field):
    with pytest.raises(InvalidTask) as raised:
        executor.submit(command, **fields)
    assert raised.value.field == field


def test_a_string_takes_no_further_arguments(executor):
    with pytest.raises(InvalidTask, match="further arguments"):
        executor.submit("gzip -k", "a.csv")


def test_an_unknown_field_is_refused(executor):
    with pytest.raises(TypeError, match="prioritty"):
        executor.submit("true", prioritty=1)


def test_settings_of_a_given_cluster_are_refused(cluster):
    with pytest.raises(InvalidConfig, match="parallelism"):
        FutureExecutor(2, cluster=cluster)


def test_needs_are_futures_or_keys(cluster, executor):
    first = executor.submit("true", key="a")
    second = executor.submit("true", key="b", needs=[first])
    third = executor.submit("true", key="c", needs=["a", second])
    cluster.act(cluster.broker.fail, "a")
    assert [future.result(WAIT_TIMEOUT).state for future in (second, third)] == [State.SKIPPED] * 2
    assert executor.submit("true", key="d", needs=[first]).result(WAIT_TIMEOUT).reason is Reason.NEED_FAILED


def test_the_needs_of_a_cancelled_task_are_skipped(cluster, executor):
    executor.submit("true", key="a")
    second = executor.submit("true", key="b")
    third = executor.submit("true", key="c", needs=[second])
    assert second.cancel()
    assert third.result(WAIT_TIMEOUT).state is State.SKIPPED


def test_no_task_is_accepted_after_shutdown(executor):
    executor.shutdown()
    with pytest.raises(RuntimeError, match="shutdown"):
        executor.submit("true")


def test_shutdown_waits_for_all_tasks(cluster, executor):
    futures = [executor.submit("true", key=key) for key in "ab"]
    executor.shutdown(wait=False)
    assert not any(future.done() for future in futures)
    for key in "ab":
        cluster.act(cluster.broker.succeed, key)
    executor.shutdown()
    assert [future.result(0).state for future in futures] == [State.SUCCESS] * 2


def test_shutdown_cancels_what_was_not_sent(cluster, executor):
    first, second = executor.submit("true", key="a"), executor.submit("true", key="b")
    until(first.running, "the start")
    executor.shutdown(wait=False, cancel_futures=True)
    assert second.cancelled()
    cluster.act(cluster.broker.succeed, "a")
    executor.shutdown()
    assert first.result(0).state is State.SUCCESS


def test_terminate_ends_what_was_sent_too(cluster, executor):
    first, second = executor.submit("true", key="a"), executor.submit("true", key="b")
    until(first.running, "the start")
    executor.terminate()
    executor.shutdown()
    assert (first.result(0).state, second.cancelled()) == (State.REVOKED, True)


def test_a_terminated_task_whose_worker_is_silent_is_given_up(cluster, monkeypatch):
    monkeypatch.setattr(driver, "END_TIMEOUT", 0.1)
    cluster.broker.obeys_revokes = False
    executor = FutureExecutor(cluster=cluster)
    future = executor.submit("true", key="a")
    until(future.running, "the start")
    executor.terminate()
    executor.shutdown()
    assert (future.result(0).state, future.result(0).reason) == (State.FAILED, Reason.LOST)


def test_interrupt_in_the_block_ends_all_tasks(cluster):
    def run() -> None:
        with FutureExecutor(cluster=cluster) as executor:
            futures.append(executor.submit("true", key="a"))
            until(futures[0].running, "the start")
            raise KeyboardInterrupt

    futures: list[Any] = []
    with pytest.raises(KeyboardInterrupt):
        run()
    assert futures[0].result(0).state is State.REVOKED


def test_another_exception_in_the_block_waits_for_all_tasks(cluster):
    def run() -> None:
        with FutureExecutor(cluster=cluster) as executor:
            futures.append(executor.submit("true", key="a"))
            cluster.act(cluster.broker.succeed, "a")
            raise ZeroDivisionError

    futures: list[Any] = []
    with pytest.raises(ZeroDivisionError):
        run()
    assert futures[0].result(0).state is State.SUCCESS


def test_an_executor_without_references_finishes_its_tasks(cluster):
    executor = FutureExecutor(cluster=cluster)
    reference = weakref.ref(executor)
    future = executor.submit("true", key="a")
    thread = executor._driver._loop
    del executor
    gc.collect()
    assert reference() is None
    cluster.act(cluster.broker.succeed, "a")
    assert future.result(WAIT_TIMEOUT).state is State.SUCCESS
    until(lambda: not thread.is_alive, "the end of the thread")


def test_a_callback_may_submit_the_next_task(cluster, executor):
    later: list[Any] = []
    first = executor.submit("true", key="a")
    first.add_done_callback(lambda _: later.append(executor.submit("true", key="b")))
    cluster.act(cluster.broker.succeed, "a")
    cluster.act(cluster.broker.succeed, "b")
    assert later[0].result(WAIT_TIMEOUT).state is State.SUCCESS


def test_a_callback_that_raises_harms_no_other_task(cluster, executor, caplog):
    first, second = executor.submit("true", key="a"), executor.submit("true", key="b")
    first.add_done_callback(lambda _: 1 // 0)
    for key in "ab":
        cluster.act(cluster.broker.succeed, key)
    assert second.result(WAIT_TIMEOUT).state is State.SUCCESS
    assert "ZeroDivisionError" in caplog.text


def test_a_future_that_the_caller_has_ended_harms_no_other_task(cluster, executor):
    first, second = executor.submit("true", key="a"), executor.submit("true", key="b")
    until(first.running, "the start")
    first.set_result(Result(State.SUCCESS))
    for key in "ab":
        cluster.act(cluster.broker.succeed, key)
    assert second.result(WAIT_TIMEOUT).state is State.SUCCESS


# — the executor fails —


def expect_broken(executor: FutureExecutor, futures: list[Any], cause: type[BaseException]) -> None:
    for future in futures:
        assert isinstance(future.exception(WAIT_TIMEOUT), BrokenExecutor)
        assert isinstance(future.exception(0).__cause__, cause)
    with pytest.raises(BrokenExecutor, match="the executor cannot go on"):
        executor.submit("true")
    executor.shutdown()


def test_a_lost_ledger_ends_all_futures(cluster, monkeypatch):
    ledger = MemoryLedger()
    executor = FutureExecutor(cluster=cluster, ledger=ledger)
    first = executor.submit("true", key="a")
    until(first.running, "the start")

    def refuse(_: object) -> None:
        raise LedgerLost("sqlite:///x", "belongs to another executor")

    monkeypatch.setattr(ledger, "write", refuse)
    expect_broken(executor, [first, executor.submit("true", key="b")], LedgerLost)


def test_a_heartbeat_that_always_raises_ends_all_futures(cluster, executor, monkeypatch, caplog):
    caplog.set_level(logging.CRITICAL)
    monkeypatch.setattr(driver, "MAX_FAILURES", 2)
    first = executor.submit("true", key="a")
    until(first.running, "the start")
    monkeypatch.setattr(cluster.broker, "changed", lambda: 1 // 0)
    expect_broken(executor, [first, executor.submit("true", key="b")], ZeroDivisionError)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_callback_that_ends_the_thread_ends_all_futures(cluster, executor):
    first, second = executor.submit("true", key="a"), executor.submit("true", key="b")

    def end_thread(_: object) -> None:
        raise SystemExit

    first.add_done_callback(end_thread)
    cluster.act(cluster.broker.succeed, "a")
    expect_broken(executor, [second], SystemExit)


def test_a_task_that_cannot_be_queued_after_all_gives_the_exception(cluster, executor, monkeypatch):
    check = Slots.check

    def refuse_in_the_driver(slots: Slots, task: Task) -> None:
        if threading.current_thread().name == driver.THREAD:
            raise InvalidTask("slots", "too many", "ask for fewer")
        check(slots, task)

    monkeypatch.setattr(Slots, "check", refuse_in_the_driver)
    assert isinstance(executor.submit("true").exception(WAIT_TIMEOUT), InvalidTask)
    monkeypatch.undo()
    executor.submit("true", key="b")
    cluster.act(cluster.broker.succeed, "b")


def test_tasks_of_an_earlier_executor_are_taken_over(cluster):
    ledger = MemoryLedger()
    earlier = cluster.executor(ledger=ledger)
    for key in "abc":
        earlier.queue_command(key, "true")
    earlier.heartbeat()
    earlier.flush()
    executor = FutureExecutor(cluster=cluster, ledger=ledger)
    assert set(executor.recovered) == {"a", "b", "c"}
    assert not executor.recovered["a"].cancel()
    executor.recovered["c"].revoke()
    for key in "ab":
        cluster.act(cluster.broker.succeed, key)
    executor.shutdown()
    states = {key: future.result(0).state for key, future in executor.recovered.items()}
    assert states == {"a": State.SUCCESS, "b": State.SUCCESS, "c": State.REVOKED}
    assert list(ledger.unacknowledged()) == []
