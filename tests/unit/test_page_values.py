"""The values of the page without a server: texts, the graph, and the timeline of a task."""

from __future__ import annotations

import pytest

from celeriac.executor.requests import CurrentStatus, Explanation, WaitReason
from celeriac.ledger.counts import Counts
from celeriac.ledger.views import RunState, RunView
from celeriac.task.event import Event
from celeriac.task.result import Execution
from celeriac.task.state import State
from celeriac.web.page import display
from celeriac.web.page.charts import chart_of
from celeriac.web.page.possible import Possible, actions_of_run, actions_of_task, is_within_reach
from celeriac.web.page.queries import MAX_BACK, TasksQuery
from celeriac.web.page.rendering import environment
from celeriac.web.page.timeline import timeline_of
from celeriac.web.statistics import Ends, RunStatistics

EVIL = '<b>&"\x1b[2J\u202e\udcff\x7f'
NOTHING = CurrentStatus(waits_for=WaitReason.NOTHING, words="")


def test_each_text_of_a_template_is_escaped_and_shows_its_control_characters():
    made = environment().from_string("{{ text }}|{{ text|multiline }}|{{ missing }}|{{ 7 }}")
    shown = "&lt;b&gt;&amp;&#34;␛[2J\\u{202e}\\u{dcff}␡"
    assert made.render(text=EVIL, missing=None) == f"{shown}|{shown.replace('&#34;', '&quot;')}||7"


def test_a_text_of_several_lines_keeps_them_and_its_tabs():
    assert display.visible_lines("a\tb\r\nc\rd\n") == "a\tb\nc␍d\n"


def test_a_value_for_a_program_keeps_all_its_characters():
    assert display.raw('a"\n\x1b') == "a&quot;\n\x1b"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-1, "0.00 s"), (1.234, "1.23 s"), (75, "75 s"), (185, "3 min 05 s"), (7380, "2 h 03 min"), (200_000, "2 d 7 h")],
)
def test_a_duration_is_short(seconds, shown):
    assert display.duration(seconds) == shown


def test_an_address_leaves_out_what_is_empty_and_quotes_the_rest():
    assert display.link("/run", run="a&b/..", text="", state=("failed", "revoked"), after=None) == (
        "/run?run=a%26b%2F..&state=failed&state=revoked"
    )
    assert display.link("/") == "/"


def statistics(step: float, *ends: Ends) -> RunStatistics:
    return RunStatistics(measured=0, counts=Counts(), states={}, failures={}, step=step, ends=list(ends))


def test_the_ends_of_runs_with_different_steps_are_in_one_graph():
    fine = statistics(1, Ends(at=100, succeeded=4), Ends(at=103, failed=2))
    coarse = statistics(2, Ends(at=102, succeeded=4, other=2))
    chart = chart_of([fine, coarse], 100, 104)
    assert chart is not None
    assert list(chart.times) == [100, 101, 102, 103, 104]
    assert list(chart.succeeded) == [4, 0, 2, 2, 0]
    assert list(chart.failed) == [0, 0, 1, 3, 0]
    assert chart.last_rate(2) == 2.5


def test_ends_outside_of_the_graph_are_left_out():
    assert chart_of([statistics(1, Ends(at=5, succeeded=4))], 100, 104) is None


def event(state: State, when: float, attempt: int) -> Event:
    return Event(key="k", state=state, when=when, id="i", attempt=attempt, execution=Execution(host="h", pid=7))


def test_a_timeline_has_a_row_for_each_attempt_and_ends_now():
    moves = (event(State.RUNNING, 12, 1), event(State.WAITING, 14, 1), event(State.RUNNING, 20, 2))
    history = Explanation(key="k", state=State.RUNNING, id="i", attempt=2, arrived=10.0, moves=moves, now=NOTHING)
    timeline = timeline_of(history, 30.0)
    assert [(moment.state, moment.lasted) for moment in timeline.moments] == [
        ("waiting", 2),
        ("running", 2),
        ("waiting", 6),
        ("running", 10),
    ]
    assert [(span.row, span.x, span.width) for span in timeline.spans] == [
        (0, 0, 100),
        (0, 100, 100),
        (1, 200, 300),
        (1, 500, 500),
    ]
    assert timeline.moments[1].place == "h, pid 7"


def test_a_change_of_a_priority_begins_no_row_of_a_timeline():
    change = Event(key="k", state=State.WAITING, when=12, id="i", attempt=1, priority=7, detail="asked")
    moves = (change, event(State.RUNNING, 14, 1))
    history = Explanation(key="k", state=State.RUNNING, id="i", attempt=1, arrived=10.0, moves=moves, now=NOTHING)
    timeline = timeline_of(history, 20.0)
    assert [(moment.state, moment.lasted, moment.reason) for moment in timeline.moments] == [
        ("waiting", 2, ""),
        ("waiting", 2, "asked"),
        ("running", 6, ""),
    ]
    assert timeline.rows == 1


def run_view(state: RunState, **fields) -> RunView:
    common = {"id": 1, "name": "a run", "source": None, "created": 0.0, "ended": None, "output": None, "owner": None}
    return RunView(state=state, counts=Counts(failed=1, waiting=1), **{**common, **fields})


OWNED = {"owner": "process 7 on host"}
LATER = "What did not succeed can run again when the run has ended."


@pytest.mark.parametrize(
    ("run", "can_ask", "buttons", "advice"),
    [
        (run_view(RunState.ENDED, is_submitted=True), False, "retry", None),
        (run_view(RunState.ENDED), False, "", "To run again what did not succeed: celeriac retry 'a run'"),
        (run_view(RunState.SUBMITTED, is_submitted=True), False, "retry cancel", None),
        (run_view(RunState.INTERRUPTED), False, "cancel", None),
        (
            run_view(RunState.RUNNING, **OWNED),
            True,
            "cancel",
            LATER,
        ),
        (
            run_view(RunState.RUNNING, **OWNED),
            False,
            "",
            "Its owner, process 7 on host, cannot be asked from here. To cancel it there: celeriac cancel KEY",
        ),
        (
            run_view(RunState.RUNNING, is_submitted=True, **OWNED),
            False,
            "cancel",
            LATER,
        ),
    ],
)
def test_a_run_has_the_buttons_that_can_work(run, can_ask, buttons, advice):
    assert shown(actions_of_run(run, can_ask=can_ask)) == (buttons, advice)


@pytest.mark.parametrize(
    ("run", "state", "can_ask", "buttons", "advice"),
    [
        (run_view(RunState.ENDED, is_submitted=True), State.FAILED, False, "retry", None),
        (
            run_view(RunState.ENDED),
            State.FAILED,
            False,
            "",
            "To run it again: celeriac retry 'a run' --key k",
        ),
        (
            run_view(RunState.RUNNING, **OWNED),
            State.FAILED,
            True,
            "",
            "To run it again when its run has ended: celeriac retry 'a run' --key k",
        ),
        (run_view(RunState.INTERRUPTED), State.WAITING, False, "cancel priority", None),
        (run_view(RunState.RUNNING, **OWNED), State.WAITING, True, "cancel priority", None),
        (run_view(RunState.RUNNING, **OWNED), State.RUNNING, True, "cancel", None),
        (run_view(RunState.RUNNING, is_submitted=True, **OWNED), State.WAITING, False, "cancel", None),
        (
            run_view(RunState.RUNNING, **OWNED),
            State.WAITING,
            False,
            "",
            "Its owner, process 7 on host, cannot be asked from here. To cancel it there: celeriac cancel k",
        ),
    ],
)
def test_a_task_has_the_buttons_that_can_work(run, state, can_ask, buttons, advice):
    assert shown(actions_of_task(run, "k", state, can_ask=can_ask)) == (buttons, advice)


def shown(possible: Possible) -> tuple[str, str | None]:
    buttons = [name for name in ("retry", "cancel", "priority") if getattr(possible, name)]
    advice = possible.advice
    return " ".join(buttons), None if advice is None else " ".join(filter(None, (advice.words, advice.command)))


@pytest.mark.parametrize(
    ("owner", "has_broker", "expected"),
    [
        (None, True, False),
        ("process 7 on here", False, True),
        ("process 7 on there", False, False),
        ("process 7 on there", True, True),
    ],
)
def test_an_owner_is_within_reach_on_this_machine_or_through_a_broker(owner, has_broker, expected):
    assert is_within_reach(owner, "here", has_broker=has_broker) is expected


def test_a_timeline_of_a_clock_that_went_back_has_no_negative_time():
    history = Explanation(
        key="k", state=State.RUNNING, id="i", attempt=1, arrived=10.0, moves=(event(State.RUNNING, 5, 1),), now=NOTHING
    )
    timeline = timeline_of(history, 4.0)
    assert [moment.lasted for moment in timeline.moments] == [0, 0]
    assert all(span.width > 0 and span.x >= 0 for span in timeline.spans)


def test_an_address_names_the_pages_before_only_so_far():
    query = TasksQuery(after="7", back=tuple(map(str, range(MAX_BACK))))
    assert (len(query.back_of_next), query.back_of_next[-1]) == (MAX_BACK, "7")
    assert TasksQuery().back_of_next == ()


def test_a_command_to_copy_is_one_word_for_a_shell_in_each_part():
    shown = environment().from_string("{{ name|shell_word }}").render(name="a; rm -rf $HOME #'")
    assert shown == "&#39;a; rm -rf $HOME #&#39;&#34;&#39;&#34;&#39;&#39;"
    assert display.shell_word("jobs-2") == "jobs-2"
