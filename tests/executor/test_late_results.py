"""Results that come late, twice, unreadable or for another attempt, and lost tasks that have one."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import pytest

from celeriac.config.executor_config import Config
from celeriac.executor.executor import CeleryExecutor
from celeriac.executor.interfaces import LostTask, Unreadable
from celeriac.task.result import Reason, Result
from celeriac.task.state import State
from tests.executor.test_lost_tasks import DETAIL, Harness
from tests.executor.test_outputs import Outputs

GARBAGE = Unreadable(ValueError("garbage"))
TIMEOUT = Config().result_unreadable_timeout


@pytest.fixture
def harness() -> Harness:
    return Harness()


def beat(harness: Harness, times: int = 1) -> list[tuple[State, Reason | None]]:
    """Return the state and the reason of each event of the next heartbeats."""
    for _ in range(times):
        harness.executor.heartbeat()
    return [(event.state, event.reason) for event in harness.executor.get_event_buffer()]


def put(harness: Harness, key: str, result: Result | Unreadable) -> None:
    harness.broker.put(harness.broker.message(key).message_id, result)


def test_of_a_lost_attempt_only_its_first_final_result_is_counted(harness):
    harness.queue("k")
    first = harness.broker.message("k").message_id
    harness.lose("k")
    for result, counted in ((Result(State.RUNNING), 0), (GARBAGE, 0), (Result(State.SUCCESS), 1)):
        harness.broker.put(first, result)
        assert beat(harness) == []
        assert harness.executor.stats().results_ignored == counted
        assert (first in harness.broker.results) == (counted == 0)
    harness.broker.put(first, Result(State.SUCCESS))
    assert (beat(harness), harness.executor.stats().results_ignored) == ([], 1)


def test_of_very_many_lost_attempts_the_latest_are_known(harness, monkeypatch):
    monkeypatch.setattr("celeriac.executor.result_handler.MAX_FENCED", 1)
    lost = []
    for key in ("first", "second"):
        harness.queue(key)
        lost.append(harness.broker.message(key).message_id)
        harness.lose(key)
    for message_id, counted in zip(lost, (0, 1), strict=True):
        harness.broker.put(message_id, Result(State.SUCCESS))
        assert (beat(harness), harness.executor.stats().results_ignored) == ([], counted)


def test_a_late_result_of_a_lost_attempt_is_kept_if_results_are_kept(harness):
    harness.use(Config(delete_results=False))
    harness.queue("k")
    first = harness.broker.message("k").message_id
    harness.lose("k")
    harness.broker.put(first, Result(State.SUCCESS))
    beat(harness)
    assert (harness.executor.stats().results_ignored, harness.broker.forgotten) == (1, [])


def test_a_lost_task_whose_result_was_read_meanwhile_has_ended(harness):
    harness.queue("k")
    put(harness, "k", Result(State.SUCCESS))
    assert [event.state for event in harness.lose("k")] == [State.SUCCESS]
    assert harness.executor.stats().results_ignored == 0


def test_the_results_of_other_executors_are_not_read(harness, monkeypatch):
    harness.queue("k")
    asked: list[str] = []
    read = harness.broker.read

    def noted(ids: Collection[str]) -> Any:
        asked.extend(ids)
        return read(ids)

    monkeypatch.setattr(harness.broker, "read", noted)
    harness.broker.put("of another", Result(State.SUCCESS))
    put(harness, "k", Result(State.SUCCESS))
    assert beat(harness) == [(State.SUCCESS, None)]
    assert asked == [harness.broker.message("k").message_id]


def test_a_result_that_can_be_read_in_between_begins_the_time_anew(harness):
    harness.queue("k")
    put(harness, "k", GARBAGE)
    assert beat(harness) == []
    harness.clock.advance(TIMEOUT - 1)
    put(harness, "k", Result(State.RUNNING))
    assert beat(harness) == []
    put(harness, "k", GARBAGE)
    assert beat(harness) == []
    harness.clock.advance(TIMEOUT - 1)
    put(harness, "k", GARBAGE)
    assert beat(harness) == []
    harness.clock.advance(1)
    put(harness, "k", GARBAGE)
    assert beat(harness) == [(State.FAILED, Reason.LOST)]


def test_a_revoked_task_with_an_unreadable_result_ends_as_revoked(harness):
    harness.queue("k", retries=3)
    harness.executor.revoke_task("k")
    for _ in range(2):
        put(harness, "k", GARBAGE)
        events = beat(harness)
        harness.clock.advance(TIMEOUT)
    assert events == [(State.REVOKED, Reason.LOST)]


@pytest.mark.parametrize(("number", "shown"), [(5, "'0', '1', '2', '3', '4'"), (6, "'0', '1', '2', '3', '4', …")])
def test_of_many_tasks_that_are_sent_again_five_are_named(harness, caplog, number, shown):
    harness.executor.adjustments.change_limits(parallelism=number)
    keys = [str(position) for position in range(number)]
    for key in keys:
        harness.queue(key, starts=False)
    for key in keys:
        harness.detector.report(LostTask(harness.broker.message(key).message_id, DETAIL))
    beat(harness)
    assert caplog.messages == [f"re-sent {number} tasks that neither the broker nor a worker has: {shown}"]


@pytest.mark.parametrize(
    ("starts", "cancel", "event"),
    [
        (True, None, (State.WAITING, Reason.LOST)),
        (True, CeleryExecutor.cancel_unstarted, (State.WAITING, Reason.LOST)),
        (False, CeleryExecutor.cancel_unstarted, (State.REVOKED, Reason.REVOKED)),
        (True, CeleryExecutor.terminate, (State.REVOKED, Reason.REVOKED)),
    ],
)
def test_a_task_that_is_lost_after_its_start_was_cancelled_only_if_it_had_not_started_then(
    harness: Harness,
    starts: bool,
    cancel: Callable[[CeleryExecutor], None] | None,
    event: tuple[State, Reason],
):
    harness.queue("k", starts=False)
    if cancel is not None:
        cancel(harness.executor)
    if starts:
        harness.broker.start("k")
        harness.executor.heartbeat()
        harness.executor.get_event_buffer()
    message_id = harness.broker.message("k").message_id
    harness.detector.report(LostTask(message_id, DETAIL, was_claimed=not starts))
    assert beat(harness) == [event]


def test_a_lost_attempt_does_not_lengthen_the_delay_of_the_next_one(harness):
    harness.queue("k", retries=2, retry_delay=10.0)
    harness.lose("k")
    harness.broker.fail("k")
    harness.executor.heartbeat()
    (event,) = harness.executor.get_event_buffer()
    assert 5.0 <= event.retry_in <= 15.0


def test_a_draining_executor_retries_no_failed_task(harness):
    harness.queue("k", retries=1)
    harness.executor.drain()
    harness.broker.fail("k")
    assert beat(harness) == [(State.FAILED, Reason.EXIT_CODE)]


def test_a_task_that_is_lost_after_its_deadline_is_not_tried_again(harness):
    harness.clock.now = 2e9
    harness.queue("k", deadline=2e9 + 60)
    harness.clock.advance(61)
    assert [(event.state, event.reason) for event in harness.lose("k")] == [(State.FAILED, Reason.LOST)]


def test_a_task_that_may_lose_one_worker_gives_up_after_it(harness):
    harness.queue("k", max_lost=1)
    (event,) = harness.lose("k")
    assert (event.state, event.reason) == (State.FAILED, Reason.POISON)
    assert event.detail.startswith("gave up after 1 lost worker; ")


def test_tasks_are_searched_for_at_intervals_only_while_changes_are_pushed_without_a_gap(harness):
    harness.broker.pushes = True
    harness.queue("k")
    harness.detector.scans.clear()
    for seconds, scans in ((2, []), (2, []), (Config().search_interval, [["k"]]), (2, [["k"]])):
        harness.clock.advance(seconds)
        harness.executor.heartbeat()
        assert harness.detector.scans == scans


@pytest.fixture
def outputs(harness: Harness) -> Outputs:
    outputs = Outputs()
    harness.broker.outputs = outputs  # type: ignore[attr-defined]
    harness.use(Config())
    return outputs


def test_a_task_whose_result_waits_for_its_output_is_not_lost(harness, outputs):
    harness.queue("k", starts=False)
    harness.broker.start("k")
    assert beat(harness) == [(State.RUNNING, None)]
    harness.broker.succeed("k")
    assert beat(harness) == []
    assert harness.lose("k") == []
    outputs.is_here = True
    harness.broker.succeed("k")
    assert beat(harness) == [(State.SUCCESS, None)]


def test_a_task_without_a_result_is_lost_also_where_output_comes(harness, outputs):
    harness.queue("k")
    assert [event.state for event in harness.lose("k")] == [State.WAITING, State.QUEUED]
    assert harness.broker.message("k").attempt == 2
