"""The parts of a report that decide: columns, places, rows, what is kept of a large run, and how texts are shown."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from celeriac.ledger.attempts import Attempt
from celeriac.report.axis import Axis, parts_of
from celeriac.report.chart import MAX_HOSTS, charts_of, packed
from celeriac.report.gathered import MAX_BARS, MAX_FAILURES, MAX_LOSSES, MAX_NAMES, OTHERS, Bar, Gathered, Top
from celeriac.report.page import last_lines, visible
from celeriac.report.series import MAX_COLUMNS, Clock, Durations
from celeriac.task.result import Execution
from celeriac.task.state import State

NOW = 1_700_000_000.0


def attempt(
    began: float | None, duration: float = 1.0, *, host: str = "a", state: State = State.SUCCESS, **values: object
) -> Attempt:
    execution = None if began is None else Execution(host=host, started=NOW + began, duration=duration)
    fields = {"key": "k", "number": 1, "reason": None, "detail": None, "queue": "default", "command": "true"}
    return Attempt(**{**fields, "state": state, "changed_at": NOW, "execution": execution, **values})  # type: ignore[arg-type]


def gathered(*attempts: Attempt) -> Gathered:
    result = Gathered(now=NOW)
    for each in attempts:
        result.add(each)
    return result


# — columns —


def test_no_second_is_lost_however_wide_the_columns_become():
    clock, source = Clock(), random.Random(7)
    some, other = clock.series(), clock.series()
    spans = [(began, began + source.expovariate(1 / 30)) for began in (source.uniform(0, 90_000) for _ in range(500))]
    for number, (began, ended) in enumerate(spans):
        clock.add(began, ended, [some, other] if number % 2 else [some])
    total = sum(ended - began for began, ended in spans)
    assert sum(some.seconds.values()) == pytest.approx(total)
    assert sum(other.seconds.values()) == pytest.approx(sum(ended - began for began, ended in spans[1::2]))
    assert 0 < len(clock.columns) <= MAX_COLUMNS


def test_the_level_of_a_column_is_what_ran_in_it_at_once():
    clock = Clock()
    series = clock.series()
    for _ in range(3):
        clock.add(100.0, 500.0, [series])
    assert series.highest == pytest.approx(3.0)
    assert series.level(int(300.0 / clock.width)) == pytest.approx(3.0)


def test_a_pause_of_a_day_costs_no_precision():
    clock = Clock()
    series = clock.series()
    for began in (0.0, 86_400.0):
        for number in range(20):
            clock.add(began + number, began + number + 1, [series])
    assert clock.width <= 0.25


def test_quantiles_of_durations():
    durations = Durations()
    for number in range(1, 1001):
        durations.add(number / 10)
    assert durations.quantile(0.5) == pytest.approx(50.0, rel=0.06)
    assert durations.quantile(0.9) == pytest.approx(90.0, rel=0.06)
    assert durations.quantile(1.0) <= durations.longest == 100.0


# — places —


def test_times_are_placed_from_left_to_right_and_pauses_left_out():
    columns = [*range(10), *range(1_000, 1_010)]
    axis = Axis(columns, 1.0)
    assert [(part.began, part.ended) for part in axis.parts] == [(0.0, 10.0), (1_000.0, 1_010.0)]
    places = [axis.left(when) for when in (-5.0, 0.0, 5.0, 10.0, 500.0, 1_000.0, 1_010.0, 9_999.0)]
    assert places == sorted(places)
    assert places[0] == 0.0
    assert places[-1] == pytest.approx(100.0)
    assert [gap.label for gap in axis.gaps] == ["16 min 30 s"]


def test_a_short_pause_is_drawn():
    assert len(parts_of([*range(100), *range(102, 200)], 1.0)) == 1


@pytest.mark.parametrize("seconds", [0.05, 1, 7, 59, 3_600, 86_400, 20 * 86_400])
def test_there_are_a_few_ticks_that_do_not_touch(seconds):
    clock = Clock()
    clock.add(NOW, NOW + seconds, [clock.series()])
    ticks = Axis(clock.columns, clock.width).ticks()
    assert 2 <= len(ticks) <= 8
    assert all(b.left - a.left > 10 for a, b in pairwise(ticks))
    assert len({tick.label for tick in ticks}) == len(ticks)


def test_bars_of_one_row_do_not_overlap_and_rows_are_as_few_as_ran_at_once():
    source = random.Random(3)
    bars = [Bar(began, began + source.uniform(0, 5), attempt(0), "a") for began in map(float, range(60))]
    rows = packed(bars)
    assert sum(map(len, rows)) == 60
    for row in rows:
        assert all(a.ended <= b.began for a, b in pairwise(row))
    assert len(rows) == max(sum(bar.began <= other.began < bar.ended for bar in bars) for other in bars)


def test_a_large_run_is_drawn_in_shades():
    small = charts_of(gathered(*(attempt(float(number)) for number in range(5))))
    large = charts_of(gathered(*(attempt(float(number)) for number in range(MAX_BARS + 1))))
    assert (small.has_bars, large.has_bars) == (True, False)
    assert len(small.hosts[0].boxes) == 5
    assert 0 < len(large.hosts[0].boxes) <= MAX_COLUMNS


def test_many_hosts_are_counted_and_the_busiest_drawn():
    attempts = [attempt(0.0, float(number + 1), host=f"h{number}") for number in range(MAX_HOSTS + 6)]
    charts = charts_of(gathered(*attempts))
    assert charts.hosts_left_out == 6
    assert charts.hosts[0].host.name == f"h{MAX_HOSTS + 5}"


# — what is kept —


def test_what_is_kept_of_a_large_run_is_bounded_and_the_numbers_are_whole():
    number = MAX_NAMES + 50
    result = gathered(
        *(
            attempt(float(n), host=f"h{n}", state=State.FAILED, reason="lost", queue=f"q{n}", key=f"k{n}", number=2)
            for n in range(number)
        )
    )
    assert (len(result.failures), len(result.losses), len(result.retried.items)) == (MAX_FAILURES, MAX_LOSSES, 20)
    assert (result.states[State.FAILED], result.lost, result.all_attempts) == (number, number, number)
    assert len(result.hosts) == len(result.queues) == MAX_NAMES + 1
    assert result.hosts[OTHERS].attempts == result.queues[OTHERS].failed == 50


def test_the_highest_ranks_are_kept_and_the_first_of_equals():
    top: Top[str] = Top(3)
    for rank, name in ((1, "a"), (3, "b"), (2, "c"), (3, "d"), (1, "e")):
        top.add(rank, name)
    assert (top.items, top.left_out) == (["b", "d", "c"], 2)


def test_tasks_that_did_not_begin_and_those_that_run():
    result = gathered(
        attempt(None, state=State.REVOKED),
        attempt(None, state=State.WAITING),
        attempt(None, state=State.RUNNING, changed_at=NOW - 10),
    )
    result.add_earlier(attempt(None, state=State.WAITING, reason="publish_error"))
    result.add_earlier(attempt(-30.0, state=State.WAITING, reason="exit_code"))
    assert (result.never_ran, result.retries, result.all_attempts) == (1, 1, 2)
    assert sorted((bar.began - NOW, bar.ended - NOW) for bar in result.bars.items) == [(-30.0, -29.0), (-10.0, 0.0)]


# — texts —


def test_a_text_shows_what_would_hide_or_turn_it():
    assert visible("a\x1b[31mred\x1b[0m\x00\u202eb\x07") == "ared\\x00\\u202eb\\x07"
    assert visible("x" * 30, 10) == "x" * 9 + "…"


def test_the_last_lines_are_the_end_of_the_output():
    assert last_lines("one\r\ntwo\r\n") == "one\ntwo"
    assert last_lines("x" * 5_000 + "end\n").endswith("xend")
    assert len(last_lines("x" * 50_000)) < 2_100
