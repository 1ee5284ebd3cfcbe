"""The tables of the overview: they fit every terminal, and show hostile text as text."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from celeriac.cli.overview_tables import crop, fitted, sections_of, shares
from celeriac.cli.watch import ChangedLines, JsonLines, screen_lines
from celeriac.cluster.status_parts import QueueStatus, Status, WorkerStatus
from celeriac.ledger.counts import Counts
from celeriac.ledger.views import RunState, RunView
from celeriac.runs.overview import Overview, RunLine, Throughput

HOSTILE = "\x1b[31m[red]日本\n[@click=app.quit]x[/]"


def run_view(name: str, *, succeeded: int, waiting: int = 0, state: RunState = RunState.RUNNING) -> RunView:
    owner = "process 7 on h" if state is RunState.RUNNING else None
    counts = Counts(succeeded=succeeded, waiting=waiting)
    return RunView(
        id=1, name=name, source=None, state=state, owner=owner, created=1.0, ended=None, output=None, counts=counts
    )


def overview(name: str = "default", *, waiting: int = 5, running: int = 1, problems: tuple[str, ...] = ()) -> Overview:
    workers = tuple(
        WorkerStatus(f"{name}-{n}@h", (name, "other"), 4, running, 0, False, 0.5, name, ("id-of-a-task",))
        for n in range(30)
    )
    queues = (QueueStatus(name, waiting, 1.5, 120), QueueStatus("unserved", 2, None, 0))
    runs = (RunLine(view=run_view(name, succeeded=3, waiting=waiting), rate=2.5),)
    return Overview(when=0.0, status=Status(queues, workers), runs=runs, keys={"id-of-a-task": name}, problems=problems)


@pytest.mark.parametrize("height", [4, 8, 24, 80])
@pytest.mark.parametrize("width", [40, 41, 79, 80, 120, 200])
@pytest.mark.parametrize("name", ["default", HOSTILE, "a" * 300])
def test_the_screen_fits_and_no_character_moves_the_cursor(name, width, height):
    lines = [text for text, _ in screen_lines(overview(name, problems=(f"it is down: {name}",)), 2.0, width, height)]
    assert len(lines) <= height
    assert max(map(cell_len, lines)) <= width
    assert all(line.isprintable() for line in lines)


def test_numbers_and_names_are_shown_and_rows_that_do_not_fit_are_counted():
    lines = [text for text, _ in screen_lines(overview(), 2.0, 120, 24)]
    assert lines[2:5] == [
        "queue     waiting  oldest  slots  in use",
        "default         5  1.50 s    120      30",
        "unserved        2              0       0",
    ]
    assert "no worker serves queue unserved" in lines
    assert [line for line in lines if line.startswith("…")] == ["… 18 more"]
    assert lines[-2:] == [
        "run      state           tasks  waiting  in flight  succeeded  failed  per second",
        "default  process 7 on h      8        5          0          3       0         2.5",
    ]


def test_the_least_important_columns_are_left_out_first():
    queues, workers, runs = sections_of(overview())
    assert fitted(queues, 40, 9)[0].split() == ["queue", "waiting", "oldest", "slots", "in", "use"]
    assert fitted(workers, 40, 9)[0].split() == ["worker", "heartbeat", "in", "use", "runs"]
    assert fitted(runs, 40, 9)[0].split() == ["run", "waiting", "succeeded", "failed"]


def test_lines_are_divided_so_that_no_section_gets_more_than_it_needs():
    assert shares([3, 30, 3], 20) == [3, 14, 3]
    assert shares([30, 30, 2], 20) == [9, 9, 2]
    assert shares([1, 1], 20) == [1, 1]
    assert crop("日本語", 5) == "日本…"


def test_without_a_terminal_each_change_is_one_line_and_ages_are_none():
    lines = ChangedLines()
    first = lines.changes(overview())
    assert len(first) == 33
    assert first[0].endswith("  queue default  waiting 5, slots 120, in use 30")
    assert lines.changes(overview()) == []
    assert [line.partition("  ")[2] for line in lines.changes(overview(waiting=4))] == [
        "queue default  waiting 4, slots 120, in use 30",
        "run default  waiting 4, state process 7 on h, tasks 7, in flight 0, succeeded 3, failed 0",
    ]
    down = Overview(when=0.0, problems=(f"{HOSTILE} is unavailable",))
    [line] = lines.changes(down)
    assert line.isprintable()
    assert lines.changes(down) == []
    [back] = lines.changes(overview(waiting=4))
    assert back.endswith("is unavailable: gone")


def test_json_is_printed_when_more_has_changed_than_ages():
    lines = JsonLines()
    assert len(lines.changes(overview())) == 1
    assert lines.changes(overview()) == []
    assert len(lines.changes(overview(running=2))) == 1


def test_throughput_is_measured_from_one_read_to_the_next():
    throughput = Throughput()
    assert throughput.of(run_view("a", succeeded=10), 0.0) is None
    assert throughput.of(run_view("a", succeeded=30), 4.0) == 5.0
    assert throughput.of(run_view("a", succeeded=30), 8.0) == 0.0
    assert throughput.of(run_view("a", succeeded=40, state=RunState.ENDED), 9.0) is None
