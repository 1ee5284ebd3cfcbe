"""The drawings of a report: how many ran at once, and what ran where.

Places across are in percent of the width, those down in pixels: so texts keep their size on any screen.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from celeriac.report.axis import Axis
from celeriac.report.gathered import Bar, Gathered, Host
from celeriac.report.series import Series
from celeriac.task.state import State

CHART_HEIGHT = 120.0  # pixels
ROW_HEIGHT = 14.0
MAX_HOSTS = 24  # hosts that are drawn
MAX_ROWS = 150  # rows of bars in all; with more, hosts are drawn as shades
MIN_WIDTH = 0.12  # percent, so that a short attempt can be seen
SEAM = 0.05  # percent by which columns overlap, so that no line shows between them
SHADES = 6
CLASSES = {State.SUCCESS: "ok", State.FAILED: "bad", State.WAITING: "again", State.RUNNING: "now"}


class Box(NamedTuple):
    """A rectangle."""

    left: float
    width: float
    top: float
    height: float
    kind: str
    """The class that gives it its colour."""

    bar: Bar | None = None


class HostChart(NamedTuple):
    """The drawing of one host."""

    host: Host
    boxes: list[Box]
    height: float


class Charts(NamedTuple):
    """All drawings of a report."""

    axis: Axis
    running: list[Box]
    highest: float
    hosts: list[HostChart]
    hosts_left_out: int
    has_bars: bool
    """Whether each attempt is drawn, and not only how many there were."""


def charts_of(gathered: Gathered) -> Charts:
    """Return the drawings of all attempts."""
    axis = Axis(gathered.clock.columns, gathered.clock.width)
    hosts = sorted(gathered.hosts.values(), key=lambda host: (-host.seconds, host.name))
    shown = hosts[:MAX_HOSTS]
    rows = rows_of_hosts(gathered.bars.items, shown) if not gathered.bars.left_out else None
    return Charts(
        axis=axis,
        running=columns_of(gathered.running, axis, gathered.clock.width),
        highest=gathered.running.highest,
        hosts=[
            bars_of(host, rows[host.name], axis) if rows is not None else shades_of(host, axis, gathered.clock.width)
            for host in shown
        ],
        hosts_left_out=len(hosts) - len(shown),
        has_bars=rows is not None,
    )


def columns_of(series: Series, axis: Axis, width: float) -> list[Box]:
    """Return a column for each time in which something ran."""
    highest, boxes = series.highest, []
    for column in sorted(series.seconds):
        left, right = axis.left(column * width), axis.left((column + 1) * width)
        height = max(1.0, series.level(column) / highest * CHART_HEIGHT) if highest else 0.0
        boxes.append(Box(left, right - left + SEAM, CHART_HEIGHT - height, height, "level"))
    return boxes


def rows_of_hosts(bars: Iterable[Bar], hosts: Sequence[Host]) -> dict[str, list[list[Bar]]] | None:
    """Return rows of bars for each host, in which no bar hides another; None if that takes too many rows."""
    by_host: dict[str, list[Bar]] = {host.name: [] for host in hosts}
    for bar in bars:
        if bar.host in by_host:
            by_host[bar.host].append(bar)
    rows = {name: packed(host_bars) for name, host_bars in by_host.items()}
    return rows if sum(map(len, rows.values())) <= MAX_ROWS else None


def packed(bars: Iterable[Bar]) -> list[list[Bar]]:
    """Return rows of bars that do not overlap, as few as possible. Each bar takes the first row that is free."""
    rows: list[list[Bar]] = []
    free: list[int] = []
    busy: list[tuple[float, int]] = []
    for bar in sorted(bars, key=lambda each: (each.began, each.ended)):
        while busy and busy[0][0] <= bar.began:
            heapq.heappush(free, heapq.heappop(busy)[1])
        if free:
            row = heapq.heappop(free)
        else:
            row = len(rows)
            rows.append([])
        rows[row].append(bar)
        heapq.heappush(busy, (bar.ended, row))
    return rows


def bars_of(host: Host, rows: Sequence[Sequence[Bar]], axis: Axis) -> HostChart:
    """Return a host with a bar for each attempt."""
    boxes = [
        Box(
            left := min(axis.left(bar.began), 100.0 - MIN_WIDTH),
            max(MIN_WIDTH, axis.left(bar.ended) - left),
            number * ROW_HEIGHT + 1,
            ROW_HEIGHT - 2,
            CLASSES.get(bar.attempt.state, "cut"),
            bar,
        )
        for number, row in enumerate(rows)
        for bar in row
    ]
    return HostChart(host, boxes, max(1, len(rows)) * ROW_HEIGHT)


def shades_of(host: Host, axis: Axis, width: float) -> HostChart:
    """Return a host with a darker shade where it ran more. Columns of one shade are one box."""
    highest, boxes, end = host.series.highest, list[Box](), -1
    for column in sorted(host.series.seconds):
        shade = f"shade{max(1, round(host.series.level(column) / highest * SHADES)) if highest else 1}"
        left, right = axis.left(column * width), axis.left((column + 1) * width)
        if boxes and column == end + 1 and boxes[-1].kind == shade and left >= boxes[-1].left:
            boxes[-1] = boxes[-1]._replace(width=right - boxes[-1].left)
        else:
            boxes.append(Box(left, right - left, 1.0, 2 * ROW_HEIGHT - 2, shade))
        end = column
    return HostChart(host, boxes, 2 * ROW_HEIGHT)
