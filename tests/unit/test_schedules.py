"""Test schedules: how they are read and refused, their due times, and the steps of a service."""

from __future__ import annotations

from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celeriac.errors import InvalidConfig
from celeriac.runs.schedule import MAX_PENDING, Schedule, schedules_in
from celeriac.runs.schedule_step import PUNCTUAL, MakeRun, PassOver, Past, next_step

BERLIN = "Europe/Berlin"


def cron(line: str, timezone: str = BERLIN) -> Schedule:
    return Schedule(name="a", jobs="x", cron=line, timezone=timezone)


def seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def times(schedule: Schedule, after: str, number: int) -> list[str]:
    zone = ZoneInfo(schedule.timezone)
    return [datetime.fromtimestamp(due, tz=zone).isoformat() for due in schedule.next_times(seconds(after), number)]


# — due times —


def test_a_cron_line_means_local_time_on_both_sides_of_a_change_of_the_clock():
    assert times(cron("15 4 * * mon-fri"), "2030-03-29T12:00+01:00", 2) == [
        "2030-04-01T04:15:00+02:00",
        "2030-04-02T04:15:00+02:00",
    ]


def test_a_time_that_does_not_exist_is_due_right_after_the_gap_once():
    assert times(cron("30 2 * * *"), "2030-03-30T12:00+01:00", 2) == [
        "2030-03-31T03:00:00+02:00",
        "2030-04-01T02:30:00+02:00",
    ]


def test_a_time_that_exists_twice_is_due_once():
    assert times(cron("30 2 * * *"), "2030-10-26T12:00+02:00", 2) == [
        "2030-10-27T02:30:00+02:00",
        "2030-10-28T02:30:00+01:00",
    ]


def test_every_half_hour_is_real_time_across_both_changes():
    assert times(cron("*/30 * * * *"), "2030-10-27T02:00+02:00", 4) == [
        "2030-10-27T02:30:00+02:00",
        "2030-10-27T02:00:00+01:00",
        "2030-10-27T02:30:00+01:00",
        "2030-10-27T03:00:00+01:00",
    ]
    assert times(cron("*/30 * * * *"), "2030-03-31T01:00+01:00", 2) == [
        "2030-03-31T01:30:00+01:00",
        "2030-03-31T03:00:00+02:00",
    ]


def test_an_interval_is_counted_from_the_begin_of_1970():
    schedule = Schedule(name="a", jobs="x", every=600.0)
    assert schedule.next_times(1_800_000_001.0, 2) == [1_800_000_600.0, 1_800_001_200.0]
    assert schedule.next_times(1_800_000_600.0, 1) == [1_800_001_200.0]


CHANGES = [seconds("2030-03-31T02:00+01:00"), seconds("2030-10-27T02:00+01:00")]


@given(
    line=st.sampled_from(["30 2 * * *", "*/20 * * * *", "0 3 * * *", "5 */2 * * *", "59 1 * * sun", "0 0 1 * *"]),
    zone=st.sampled_from([BERLIN, "America/New_York", "Australia/Lord_Howe", "UTC"]),
    change=st.sampled_from(CHANGES),
    before=st.integers(-100_000, 200_000),
    steps=st.integers(1, 12),
)
def test_the_times_after_any_moment_are_those_that_an_earlier_look_has_seen(line, zone, change, before, steps):
    """A service that starts again at any moment finds the same due times: none is left out, and none comes twice."""
    schedule = cron(line, zone)
    seen = schedule.next_times(change - 300_000, 40 + 1_000 * line.startswith("*"))
    now = change - before
    expected = [due for due in seen if due > now][:steps]
    assert list(islice(schedule.times_after(now), len(expected))) == expected
    walked: list[float] = []
    for _ in expected:
        walked += schedule.next_times(walked[-1] if walked else now, 1)
    assert walked == expected


def test_of_very_many_pending_times_the_latest_count():
    schedule = Schedule(name="a", jobs="x", every=1.0)
    pending = schedule.pending(0.0, 1_800_000_000.0)
    assert (len(pending), pending[-1]) == (MAX_PENDING, 1_800_000_000.0)


def test_a_run_is_named_by_schedule_and_time():
    assert cron("30 2 * * *").run_name(seconds("2030-01-31T04:15+01:00")) == "a-20300131T031500Z"


# — the file —


def read(**fields: Any) -> Schedule:
    (schedule,) = schedules_in({"schedules": {"nightly": fields}}, Path("/etc/c/celeriac.toml"))
    return schedule


def test_a_schedule_is_read_with_its_defaults():
    schedule = read(cron="15 4 * * MON-fri", timezone=BERLIN, jobs="n.jsonl")
    assert (schedule.name, schedule.jobs) == ("nightly", "/etc/c/n.jsonl")
    assert (schedule.missed, schedule.overlap, schedule.every) == ("skip", "skip", None)
    assert read(every="1h30m", jobs="/n", missed="all", overlap="wait").every == 5_400


BAD = [
    ({}, ": needs either cron or every; "),
    ({"cron": "* * * * *", "every": "5m", "jobs": "x"}, ": needs either cron or every; "),
    ({"every": "5m"}, ": has no jobs; "),
    ({"every": "5 minutes", "jobs": "x"}, ".every: '5 minutes' is not an interval"),
    ({"every": "0s", "jobs": "x"}, ".every: '0s' is not an interval"),
    ({"every": 5, "jobs": "x"}, ".every: 5 is not a text; "),
    ({"cron": "61 * * * *", "jobs": "x"}, ".cron: '61 * * * *' is not a cron line: Bad minute; "),
    ({"cron": "* * * *", "jobs": "x"}, ".cron: '* * * *' is not a cron line: it has 4 fields, not 5; "),
    ({"cron": "0 0 30 2 *", "jobs": "x"}, ".cron: '0 0 30 2 *' is "),
    ({"every": "5m", "jobs": "x", "timezone": "Berlin"}, ".timezone: 'Berlin' is not a time zone of this machine; "),
    ({"every": "5m", "jobs": "x", "timezone": "../x"}, ".timezone: '../x' is not a time zone of this machine; "),
    ({"every": "5m", "jobs": "x", "missed": "maybe"}, ".missed: 'maybe' is not known; write one of skip, once, all"),
    ({"every": "5m", "jobs": "x", "overlap": "no"}, ".overlap: 'no' is not known; write one of skip, wait, allow"),
    ({"every": "5m", "jobs": "x", "cronn": "x"}, ".cronn: there is no such field; the fields are cron, every, "),
    ({"every": "5m", "jobs": "x", "key": "{a}"}, ".key: needs a template; "),
    ({"every": "5m", "jobs": "x", "format": "xls"}, ".format: 'xls' is not known; "),
]


@pytest.mark.parametrize(("fields", "problem"), BAD)
def test_a_bad_schedule_is_refused_with_file_and_field(fields, problem):
    with pytest.raises(InvalidConfig) as raised:
        read(**fields)
    assert str(raised.value).startswith(f"/etc/c/celeriac.toml: schedules.nightly{problem}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("table", [{"schedules": 1}, {"schedules": {"a": 1}}, {"schedules": {"a b": {}}}])
def test_other_tables_are_refused(table):
    with pytest.raises(InvalidConfig):
        schedules_in(table, Path("celeriac.toml"))


# — the steps —


NOW = 1_800_000_000.0


def step(pending: float, past: Past, **fields: str) -> Any:
    """Return the next step at `NOW`, of a schedule of every 100 s, if so many times are pending."""
    schedule = Schedule(name="a", jobs="x", every=100.0, **fields)
    return next_step(schedule, Past(handled=NOW - 100 * pending, run=past.run, ended=past.ended), NOW + 1)


FREE = Past(handled=0.0)


def test_nothing_is_done_before_a_time_is_due():
    assert step(0, FREE) is None


def test_a_due_time_makes_its_run():
    assert step(1, FREE) == MakeRun(NOW)


@pytest.mark.parametrize(
    ("missed", "expected"),
    [
        ("skip", "missed: no service made its run in time"),
        ("once", "missed, as a later time was"),
    ],
)
def test_missed_times_are_passed_over(missed, expected):
    last = NOW - 100 if missed == "skip" else NOW - 200
    assert step(4, FREE, missed=missed) == PassOver(last, expected)


def test_once_makes_one_run_of_all_that_were_missed_and_all_makes_each():
    assert step(2, FREE, missed="once") == MakeRun(NOW - 100)
    assert step(4, FREE, missed="all") == MakeRun(NOW - 300)


def test_a_time_is_punctual_for_a_minute():
    schedule = Schedule(name="a", jobs="x", every=100.0)
    past = Past(handled=NOW - 100)
    assert next_step(schedule, past, NOW + PUNCTUAL) == MakeRun(NOW)
    assert isinstance(next_step(schedule, past, NOW + PUNCTUAL + 1), PassOver)


def test_a_run_that_goes_on_decides_by_overlap():
    busy = Past(handled=0.0, run="a-1")
    assert step(2, busy) == PassOver(NOW, "run a-1 has not ended")
    assert step(2, busy, overlap="wait") is None
    assert step(1, busy, overlap="allow") == MakeRun(NOW)


def test_of_the_times_that_waited_for_a_run_the_last_one_gets_a_run_however_late():
    ended = Past(handled=0.0, ended=NOW)
    assert step(5, ended, overlap="wait") == PassOver(NOW - 100, "a later time waited, too")
    assert step(1, ended, overlap="wait") == MakeRun(NOW)
    assert step(5, ended, overlap="wait", missed="all") == MakeRun(NOW - 400)
