"""Unit tests of the small parts of the executor."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest

from celeriac.config.executor_config import Config
from celeriac.errors import InvalidConfig, InvalidTask
from celeriac.executor.backoff import backoff
from celeriac.executor.event_buffer import EventBuffer
from celeriac.executor.priority_queue import Entry
from celeriac.executor.publish_retries import PublishRetries
from celeriac.executor.slots import Slots
from celeriac.executor.tracker import Tracker
from celeriac.task.event import Event
from celeriac.task.state import TRANSITIONS, State
from celeriac.task.task import OnNeedFailed, Secret, Task


class NoJitter(Random):
    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


# — states —


def test_every_state_can_be_reached_and_leads_to_a_final_state():
    reached = {State.WAITING}
    for _ in State:
        reached |= {after for state in reached for after in TRANSITIONS[state]}
    assert reached == set(State)
    ends = {state for state in State if state.is_final}
    assert ends == {State.SUCCESS, State.FAILED, State.REVOKED, State.SKIPPED}
    assert all(ends - {State.SKIPPED} <= set(follow) for state, follow in TRANSITIONS.items() if not state.is_final)
    assert [state for state, follow in TRANSITIONS.items() if State.SKIPPED in follow] == [State.WAITING]


# — tasks —


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"command": ""}, 'command: it is empty; write a shell command, for example "gzip -k data.csv"'),
        ({"command": ()}, 'command: it is empty; name a program, for example ["gzip", "-k", "data.csv"]'),
        ({"command": ("a", 5)}, 'command: the argument 5 is not a string; put it in quotes: "5"'),
        ({"command": "a\0b"}, "command: it contains a NUL character; remove it: no program can receive one"),
        ({"slots": 0}, "slots: 0 is not a whole number from 1 to 2147483647; write for example 1"),
        ({"slots": True}, "slots: True is not a whole number from 1 to 2147483647; write for example 1"),
        ({"retries": -1}, "retries: -1 is not a whole number from 0 to 2147483647; write for example 1"),
        ({"timeout": 0}, "timeout: 0 is not a number of seconds above 0; write for example 30 or 0.5"),
        ({"grace": float("nan")}, "grace: nan is not a number of seconds, 0 or more; write for example 30 or 0.5"),
        ({"queue": ""}, "queue: '' is not a name; write a string such as \"default\""),
        ({"needs": "fetch"}, 'needs: \'fetch\' is not a list of keys; write for example ["fetch", "unpack"]'),
        ({"needs": ["a", "b", "a"]}, "needs: 'a' is listed twice; keep one of them"),
        ({"needs": ("a", "k")}, "needs: the task needs itself; remove its own key"),
        ({"needs": (("a", []),)}, "needs: ('a', []) is not a key; write the key of a task"),
        ({"on_need_failed": "stop"}, 'on_need_failed: \'stop\' is not a policy; write "skip" or "run"'),
        ({"env": {"A=B": "1"}}, 'env: \'A=B\' is not a variable name; write for example {"LANG": "C"}'),
        ({"env": {"A": 1}}, 'env: the value of A is not a string; put it in quotes: {"A": "1"}'),
    ],
)
def test_an_invalid_field_of_a_task_is_named(fields, message):
    with pytest.raises(InvalidTask) as error:
        Task(**{"key": "k", "command": "true", **fields})
    assert str(error.value) == message


def test_needs_may_be_a_list_and_the_policy_a_string():
    fields: dict[str, Any] = {"needs": ["a", 2], "on_need_failed": "run"}
    task = Task(key="k", command="true", **fields)
    assert (task.needs, task.on_need_failed) == (("a", 2), OnNeedFailed.RUN)


def test_a_secret_is_shown_by_reveal_only():
    secret = Secret("hunter2")
    task = Task(key="k", command="true", env={"PASSWORD": secret})
    assert "hunter2" not in f"{secret} {secret!r} {task} {task!r} {secret:>10} %s" % secret
    assert secret.reveal() == "hunter2"


def test_each_attempt_has_its_own_id():
    first = Task(key="k", command="true", id="x", retries=1)
    second = first.next_attempt()
    assert (first.message_id, second.message_id) == ("x", "x.2")
    assert (first.has_retries_left, second.has_retries_left) == (True, False)


# — config —


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"parallelism": 0}, "parallelism: 0 is not a whole number; give 1 or more"),
        ({"queue_limits": {"gpu": 0}}, "queue_limits['gpu']: 0 is not a whole number; give 1 or more"),
        ({"operation_timeout": 0}, "operation_timeout: 0 is not a number of seconds; give for example 2 or 0.5"),
        ({"task_publish_max_retries": -1}, "task_publish_max_retries: -1 is not a whole number; give 0 or more"),
        ({"publish_deadline": "1h"}, "publish_deadline: '1h' is not a number of seconds; give for example 2 or 0.5"),
    ],
)
def test_an_invalid_setting_is_named(setting, message):
    with pytest.raises(InvalidConfig) as error:
        Config(**setting)
    assert str(error.value) == message


# — slots —


def test_slots_are_counted_in_total_and_by_queue():
    slots = Slots(4, {"gpu": 2})
    big, small = Task(key=1, command="true", slots=2, queue="gpu"), Task(key=2, command="true", queue="gpu")
    assert slots.queue_has_room(big)
    slots.take(big)
    assert (slots.in_use, slots.open, slots.queue_has_room(small)) == (2, 2, False)
    assert slots.queue_has_room(Task(key=3, command="true", slots=2))
    slots.free(1)
    slots.free(1)
    assert (slots.in_use, slots.open, slots.queue_has_room(small)) == (0, 4, True)


@pytest.mark.parametrize(("slots", "queue"), [(5, "default"), (3, "gpu")])
def test_a_task_that_could_never_start_is_refused(slots, queue):
    with pytest.raises(InvalidTask, match=r"^slots: asks for"):
        Slots(4, {"gpu": 2}).check(Task(key=1, command="true", slots=slots, queue=queue))


# — back-off and publish retries —


def test_backoff_doubles_up_to_its_maximum_and_has_jitter():
    assert [backoff(0.5, tries, 4.0, NoJitter()) for tries in (1, 2, 3, 4, 5, 10_000)] == [0.5, 1, 2, 4, 4, 4]
    spread = [backoff(1.0, 1, 10.0, Random(n)) for n in range(200)]
    assert 0.5 <= min(spread) < 0.6
    assert 1.4 < max(spread) <= 1.5


def test_publish_retries_end_at_the_deadline():
    retries = PublishRetries(Config(publish_deadline=10), NoJitter())
    assert retries.failed("k", now=100.0) is not None
    assert retries.failed("k", now=109.9) is not None
    assert retries.failed("k", now=110.0) is None
    retries.forget("k")
    assert retries.failed("k", now=110.0) is not None
    assert retries.counts == {"k": 1}


def test_publish_retries_end_after_the_maximum():
    retries = PublishRetries(Config(task_publish_max_retries=2), NoJitter())
    assert [retries.failed("k", now=0.0) is None for _ in range(3)] == [False, False, True]


def test_an_outage_pauses_all_sending_for_growing_times():
    retries = PublishRetries(Config(publish_backoff=1, publish_backoff_max=4), NoJitter())
    assert [retries.pause(now) for now in (0.0, 1.0, 3.0, 7.0)] == [1, 2, 4, 4]
    assert (retries.paused(10.9), retries.paused(11.0)) == (True, False)
    assert (retries.resume(11.0), retries.resume(11.0)) == (True, False)
    assert not retries.paused(0.0)
    assert retries.pause(now=11.0) == 1


# — tracker —


def test_a_task_is_due_when_hinted_and_otherwise_at_growing_intervals():
    tracker = Tracker(Config(first_look=1, reconcile_interval=4), NoJitter())
    tracker.track(Entry(0, 0, 0, Task(key="k", command="true", id="x")), now=0.0)
    assert tracker.due(["x", "x", "unknown"], now=0.0) == {"x"}
    looks = [now for now in range(20) if tracker.due([], now=float(now))]
    assert looks == [1, 3, 7, 11, 15, 19]


def track_tasks(tracker: Tracker, count: int) -> None:
    for n in range(count):
        tracker.track(Entry(0, n, 0, Task(key=n, command="true", id=str(n))), now=0.0)


def test_looks_are_spread_over_the_long_interval_while_changes_are_pushed():
    tracker = Tracker(Config(reconcile_interval_pushed=60), Random(1))
    tracker.due([], now=0.0, pushed=True)
    track_tasks(tracker, 1_000)
    assert tracker.due([], now=29.0, pushed=True) == set()
    due_ids = [tracker.due([], now=float(now), pushed=True) for now in range(30, 61)]
    assert len(set.union(*due_ids)) == 1_000
    assert max(map(len, due_ids)) < 100


def test_all_tasks_are_due_within_the_short_interval_when_pushing_ends():
    tracker = Tracker(Config(reconcile_interval=5, reconcile_interval_pushed=60), Random(1))
    tracker.due([], now=0.0, pushed=True)
    track_tasks(tracker, 1_000)
    assert tracker.due([], now=1.0, pushed=False) == set()
    assert len(tracker.due([], now=6.0, pushed=True)) == 1_000


def test_looks_are_limited_to_the_rate_and_none_is_left_out():
    tracker = Tracker(Config(first_look=1, reconcile_interval=1, reconcile_rate=100), Random(1))
    track_tasks(tracker, 1_000)
    looks = [tracker.due([], now=float(now)) for now in range(1, 11)]
    assert [len(ids) for ids in looks] == [100] * 10
    assert len(set.union(*looks)) == 1_000
    next_look = tracker.next_look()
    assert next_look is not None
    assert 10.0 < next_look <= 11.0


def test_an_untracked_task_is_not_due():
    tracker = Tracker(Config(first_look=1), NoJitter())
    tracked = tracker.track(Entry(0, 0, 0, Task(key="k", command="true", id="x")), now=0.0)
    assert tracker.next_look() == 1.0
    tracker.untrack(tracked)
    assert tracker.due(["x"], now=100.0) == set()
    assert (tracker.next_look(), tracker.find_by_id("x"), tracker.get("k"), len(tracker)) == (None, None, None, 0)


def looks_within(tracker: Tracker, times: Sequence[float], *, pushed: bool = True) -> dict[str, list[float]]:
    """Return when each id is looked at, if the tracker is asked at these times."""
    looks: dict[str, list[float]] = {}
    for now in times:
        for message_id in tracker.due([], now, pushed=pushed):
            looks.setdefault(message_id, []).append(now)
    return looks


def test_tasks_stay_spread_while_changes_are_pushed_and_are_spread_again_after_a_gap():
    tracker = Tracker(Config(reconcile_interval=5, reconcile_interval_pushed=60), Random(1))
    tracker.due([], now=0.0, pushed=True)
    track_tasks(tracker, 100)
    looks = looks_within(tracker, range(1, 121))
    firsts = [times[0] for times in looks.values()]
    assert (len(looks), min(firsts) < 36, max(firsts) > 54) == (100, True, True)
    assert {54 <= times[1] - times[0] <= 61 for times in looks.values()} == {True}
    tracker.due([], now=120.0, pushed=False)
    again = looks_within(tracker, range(121, 187))
    seconds = [times[1] - times[0] for times in again.values()]
    firsts = [times[0] for times in again.values()]
    assert (len(again), max(firsts) <= 125, max(map(firsts.count, firsts)) < 50) == (100, True, True)
    assert (29 <= min(seconds) < 36, 54 < max(seconds) <= 61) == (True, True)


def test_a_rate_of_one_looks_at_one_task_a_second():
    tracker = Tracker(Config(first_look=1, reconcile_interval=100, reconcile_rate=1), NoJitter())
    track_tasks(tracker, 4)
    assert tracker.next_look() == 1.0
    assert tracker.due([], now=0.95) == set()
    assert (tracker.next_look(), len(tracker.due([], now=1.0))) == (1.0, 1)
    assert (tracker.next_look(), tracker.due([], now=1.0)) == (1.1, set())
    assert (tracker.due([], now=1.75), tracker.next_look()) == (set(), 1.85)
    assert len(tracker.due([], now=2.0)) == 1
    assert len(tracker.due([], now=9.0)) == 1  # looks that were not taken are not kept
    assert len(tracker.due([], now=10.0)) == 1


def test_the_next_look_is_that_of_the_first_task_in_flight():
    tracker = Tracker(Config(first_look=1), NoJitter())
    tracked = [
        tracker.track(Entry(0, n, 0, Task(key=n, command="true", id=str(n))), now=now)
        for n, now in enumerate((0.0, 0.0, 0.0, 2.0, 2.0, 3.0))
    ]
    for ended, next_look in ((2, 1.0), (0, 1.0), (1, 3.0), (4, 3.0), (3, 4.0), (5, None)):
        tracker.untrack(tracked[ended])
        assert tracker.next_look() == next_look


# — events —


def test_events_are_drained_once_all_or_by_key():
    buffer = EventBuffer()
    for n, key in enumerate("abab"):
        buffer.put(Event(key=key, state=State.RUNNING, when=float(n), id=key, attempt=1))
    assert [event.when for event in buffer.drain(["b"])] == [1, 3]
    assert [event.when for event in buffer.drain()] == [0, 2]
    assert (buffer.drain(), len(buffer)) == ([], 0)


# — errors —


def test_errors_survive_pickling():
    error = InvalidTask("slots", "asks for 5", "ask for fewer")
    assert str(pickle.loads(pickle.dumps(error))) == str(error) == "slots: asks for 5; ask for fewer"
    assert json.dumps(error.args)
