"""The overview as tables of a given width and height: for `status --watch`, and the cells for `top`.

Overview ─► Section ─► fitted: the least important columns and the last rows are left out
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len, set_cell_size

from celeriac.cli.formatting import format_seconds, on_one_line
from celeriac.cli.run_view import run_state
from celeriac.cluster.status_parts import Status, WorkerStatus, in_use
from celeriac.ledger.views import RunState
from celeriac.runs.overview import Overview, RunLine

GAP = "  "
NARROWEST = 8  # characters of a column that gives way
SHORT_ID = 8  # characters of an id whose key is not known
ELLIPSIS = "…"


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table."""

    heading: str
    is_right: bool = False
    """Whether it holds numbers."""

    drop: int = 0
    """The columns with the highest number are left out first; one with 0 never."""

    is_rare: bool = False
    """Whether it is left out while it is empty."""


@dataclass(frozen=True, slots=True)
class Section:
    """One table of the overview."""

    title: str
    columns: tuple[Column, ...]
    rows: list[tuple[str, ...]]
    warnings: list[str] = field(default_factory=list)
    """Lines below the table."""

    if_empty: str = ""
    """The line in place of a table without rows."""


QUEUE_COLUMNS = (
    Column("queue"),
    Column("waiting", is_right=True),
    Column("oldest", is_right=True, drop=2),
    Column("slots", is_right=True),
    Column("in use", is_right=True, drop=1),
)
WORKER_COLUMNS = (
    Column("worker"),
    Column("host", drop=4),
    Column("heartbeat", is_right=True, drop=2),
    Column("in use", is_right=True),
    Column("state", drop=1, is_rare=True),
    Column("queues", drop=5),
    Column("runs", drop=3),
)
RUN_COLUMNS = (
    Column("run"),
    Column("state", drop=2),
    Column("tasks", is_right=True, drop=4),
    Column("waiting", is_right=True, drop=1),
    Column("in flight", is_right=True, drop=3),
    Column("succeeded", is_right=True),
    Column("failed", is_right=True),
    Column("revoked", is_right=True, drop=6, is_rare=True),
    Column("never ran", is_right=True, drop=7, is_rare=True),
    Column("per second", is_right=True, drop=5),
)


def sections_of(overview: Overview) -> list[Section]:
    """Return the tables of an overview; none for a server that is not asked, or is unavailable."""
    sections = []
    if (status := overview.status) is not None:
        sections.append(Section("Queues", QUEUE_COLUMNS, queue_rows(status), unserved_warnings(status)))
        rows = [worker_row(worker, overview.keys) for worker in status.workers]
        sections.append(Section("Workers", WORKER_COLUMNS, rows, if_empty="no worker has a lease"))
    if overview.runs is not None:
        sections.append(Section("Runs", RUN_COLUMNS, [*map(run_row, overview.runs)], if_empty="there is no run"))
    return sections


def queue_rows(status: Status) -> list[tuple[str, ...]]:
    return [
        (
            on_one_line(queue.name),
            f"{queue.waiting:,}",
            "" if queue.oldest is None else format_seconds(queue.oldest),
            f"{queue.slots:,}",
            f"{in_use(queue.name, status.workers):,}",
        )
        for queue in status.queues
    ]


def unserved_warnings(status: Status) -> list[str]:
    names = [on_one_line(queue.name) for queue in status.queues if queue.waiting and not queue.slots]
    return [f"no worker serves queue {name}" for name in names]


def worker_row(worker: WorkerStatus, keys: Mapping[str, str]) -> tuple[str, ...]:
    cells = (
        worker.name,
        worker.host or "",
        "" if worker.heartbeat_age is None else f"{worker.heartbeat_age:.1f} s",
        f"{worker.running or 0:,}/{worker.concurrency or 0:,}",
        "" if worker.state == "live" else worker.state,
        ",".join(worker.queues),
        " ".join(keys.get(task, task[:SHORT_ID]) for task in worker.tasks or ()),
    )
    return tuple(map(on_one_line, cells))


def run_row(line: RunLine) -> tuple[str, ...]:
    view, counts = line.view, line.view.counts
    numbers = (counts.tasks, counts.waiting, counts.in_flight, counts.succeeded, counts.failed)
    return (
        on_one_line(view.name),
        on_one_line(run_state(view)),
        *(f"{number:,}" for number in numbers),
        f"{counts.revoked:,}" if counts.revoked else "",
        f"{counts.never_ran:,}" if counts.never_ran else "",
        "" if line.rate is None or view.state is RunState.ENDED else f"{line.rate:,.1f}",
    )


# — fitting —


def fitted(section: Section, width: int, height: int) -> list[str]:
    """Return the lines of a table, its headings first: at most `height` lines of at most `width` columns."""
    if not section.rows:
        return [crop(section.if_empty, width)][:height]
    rows = section.rows
    room = max(0, height - 1 - len(section.warnings))
    more = []
    if len(rows) > room:
        rows = rows[: max(0, room - 1)]
        more = [f"{ELLIPSIS} {len(section.rows) - len(rows):,} more"]
    lines = table(section.columns, rows, width)
    return [crop(line, width) for line in (*lines, *more, *section.warnings)][:height]


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Return the headings and the rows, in as many columns as fit."""
    lines = [[column.heading for column in columns], *rows]
    shown, widths = layout(columns, lines, width)
    return [
        GAP.join(fit_cell(line[n], widths[n], is_right=columns[n].is_right) for n in shown).rstrip() for line in lines
    ]


def layout(columns: Sequence[Column], lines: Sequence[Sequence[str]], width: int) -> tuple[list[int], dict[int, int]]:
    """Return the numbers of the columns that fit, and their widths. The first of the lines has the headings."""
    cells = {number: [line[number] for line in lines] for number in range(len(columns))}
    shown = [number for number, column in enumerate(columns) if not column.is_rare or any(cells[number][1:])]
    natural = {number: max(map(cell_len, cells[number])) for number in shown}
    while least_width(columns, shown, natural) > width and any(columns[n].drop for n in shown):
        shown.remove(max(shown, key=lambda n: columns[n].drop))
    return shown, final_widths(columns, shown, natural, width)


def least_width(columns: Sequence[Column], shown: Sequence[int], natural: Mapping[int, int]) -> int:
    return sum(least(columns[n], natural[n]) for n in shown) + len(GAP) * (len(shown) - 1)


def least(column: Column, natural: int) -> int:
    """Return the width below which a column does not give way. Numbers are shown whole."""
    return natural if column.is_right else min(natural, max(NARROWEST, cell_len(column.heading)))


def final_widths(
    columns: Sequence[Column], shown: Sequence[int], natural: Mapping[int, int], width: int
) -> dict[int, int]:
    """Return the width of each column. The widest of those that give way do so first."""
    widths = {n: natural[n] for n in shown}
    excess = sum(widths.values()) + len(GAP) * (len(shown) - 1) - width
    while excess > 0:
        widest = max(shown, key=lambda n: widths[n] - least(columns[n], natural[n]))
        if widths[widest] == least(columns[widest], natural[widest]):
            break
        widths[widest] -= 1
        excess -= 1
    return widths


def fit_cell(text: str, width: int, *, is_right: bool) -> str:
    cropped = crop(text, width)
    padding = " " * (width - cell_len(cropped))
    return padding + cropped if is_right else cropped + padding


def crop(text: str, width: int) -> str:
    """Return a text of at most `width` columns; one that was longer ends with an ellipsis."""
    return text if cell_len(text) <= width else set_cell_size(text, max(0, width - 1)).rstrip() + ELLIPSIS


def shares(lengths: Iterable[int], available: int) -> list[int]:
    """Divide lines of a terminal among sections: none gets more than it needs, and the rest is divided evenly."""
    needed = [*lengths]
    given = [0] * len(needed)
    for number in sorted(range(len(needed)), key=lambda each: needed[each]):
        open_sections = sum(1 for each in given if each == 0)
        given[number] = max(1, min(needed[number], available // max(1, open_sections)))
        available -= given[number]
    return given
