"""Test the times of a job: how they are read, refused and shown."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone

import pytest

from celeriac.errors import InvalidTask
from celeriac.task.moment import delay_of, show_moment, to_moment
from celeriac.task.task import Task

NOON = 1_896_087_600.0  # 2030-01-31T11:00Z, noon in Berlin


@pytest.fixture(autouse=True)
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    "value",
    [
        "2030-01-31T12:00:00+01:00",
        "2030-01-31 11:00Z",
        "2030-01-31T12:00",
        " 20300131T120000 ",
        NOON,
        int(NOON),
        datetime(2030, 1, 31, 11, tzinfo=UTC),
        datetime(2030, 1, 31, 7, 30, tzinfo=timezone(timedelta(hours=-3.5))),
        datetime(2030, 1, 31, 12),  # noqa: DTZ001 - local time
    ],
)
def test_all_forms_of_a_time_mean_the_same_moment(value):
    assert to_moment("not_before", value) == NOON
    assert Task(key="a", command="true", not_before=value).not_before == NOON


@pytest.mark.parametrize(
    "value", ["", "tomorrow", "10m", "2030-02-30", 30, 0, -1, 1e12, float("nan"), True, [], "04:15"]
)
def test_other_values_are_refused_by_name(value):
    with pytest.raises(InvalidTask, match=r"^deadline: .* is not a time; write for example 2030-"):
        Task(key="a", command="true", deadline=value)


def test_a_local_time_that_a_change_of_the_clock_leaves_out_or_repeats_has_one_meaning():
    assert to_moment("not_before", "2030-03-31T02:30") == to_moment("not_before", "2030-03-31T03:30+02:00")
    assert to_moment("not_before", "2030-10-27T02:30") == to_moment("not_before", "2030-10-27T02:30+02:00")


def test_a_task_cannot_be_due_when_it_is_too_late():
    with pytest.raises(InvalidTask) as raised:
        Task(key="a", command="true", not_before=NOON, deadline="2030-01-31T12:00")  # type: ignore[arg-type]
    assert str(raised.value) == (
        "deadline: 2030-01-31 12:00:00+01:00 is not after not_before, 2030-01-31 12:00:00+01:00; give a later deadline"
    )


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1h30m", 5_400), ("1.5d", 129_600), (" 0s ", 0)]
)
def test_delays_are_sums_of_units(text, seconds):
    assert delay_of(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "m", "10 m", "-1h", "1y", "10min", "2030-01-31"])
def test_other_texts_are_no_delays(text):
    assert delay_of(text) is None


def test_a_moment_is_shown_with_its_offset():
    assert show_moment(NOON) == "2030-01-31 12:00:00+01:00"
