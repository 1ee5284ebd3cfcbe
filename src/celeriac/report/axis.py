"""From times to places on the page, in percent of its width. Times in which nothing ran are left out."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import NamedTuple

from celeriac.values_as_text import format_seconds

MIN_GAP = 0.04  # a gap is left out if it is longer than this part of the time in which something ran
BREAK = 1.5  # percent of the width, for a gap
MAX_GAPS = 20
MAX_TICKS = 6
STEPS = (
    *(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30),
    *(60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400),
)
"""Seconds between two ticks."""

MIN_TICK_DISTANCE = 11.0  # percent of the width
LAST_TICK = 90.0  # percent: a label further to the right would not fit


class Part(NamedTuple):
    """A time without a gap, and where it is drawn."""

    began: float
    ended: float
    left: float
    width: float


class Tick(NamedTuple):
    """A time that is written below a chart."""

    left: float
    label: str


class Gap(NamedTuple):
    """A time that is left out."""

    left: float
    label: str


class Axis:
    """The time of a chart, from left to right."""

    def __init__(self, columns: Sequence[int], width: float) -> None:
        """`columns` are those of a `Clock` in which something ran, and `width` is theirs."""
        self.parts = laid_out(parts_of(columns, width))
        self._begins = [part.began for part in self.parts]

    def left(self, when: float) -> float:
        """Return the place of a time."""
        if not self.parts:
            return 0.0
        part = self.parts[max(0, bisect_right(self._begins, when) - 1)]
        into = min(1.0, max(0.0, (when - part.began) / (part.ended - part.began)))
        return part.left + into * part.width

    @property
    def gaps(self) -> list[Gap]:
        """The times between two parts that are left out."""
        return [Gap(a.left + a.width, format_seconds(b.began - a.ended)) for a, b in pairwise(self.parts)]

    def ticks(self) -> list[Tick]:
        """Return the times to write: the beginning of each part, and round times."""
        chosen: list[tuple[float, float]] = []
        for left, when in [*((part.left, part.began) for part in self.parts), *self._round_times()]:
            if left <= LAST_TICK and all(abs(left - other) >= MIN_TICK_DISTANCE for other, _ in chosen):
                chosen.append((left, when))
        chosen.sort()
        lasts_days = bool(self.parts) and self.parts[-1].ended - self.parts[0].began > 86_400
        return [Tick(left, clock_time(when, self._step, with_day=lasts_days)) for left, when in chosen]

    @property
    def _step(self) -> float:
        covered = sum(part.ended - part.began for part in self.parts)
        return next((step for step in STEPS if covered / step <= MAX_TICKS), STEPS[-1] * max(1, covered // 432_000))

    def _round_times(self) -> Iterator[tuple[float, float]]:
        for part in self.parts:
            offset = local(part.began).utcoffset() or timedelta()
            first = (part.began + offset.total_seconds()) // self._step + 1
            for number in range(MAX_TICKS + 1):
                when = (first + number) * self._step - offset.total_seconds()
                if when < part.ended:
                    yield self.left(when), when


def parts_of(columns: Sequence[int], width: float) -> list[tuple[float, float]]:
    """Return the times in which something ran, without the longest gaps between them."""
    gaps = [(after - before - 1, position) for position, (before, after) in enumerate(pairwise(columns))]
    longest = sorted((gap for gap in gaps if gap[0] > MIN_GAP * len(columns)), reverse=True)[:MAX_GAPS]
    cuts = sorted(position + 1 for _, position in longest)
    bounds = zip([0, *cuts], [*cuts, len(columns)], strict=True)
    return [(columns[first] * width, (columns[end - 1] + 1) * width) for first, end in bounds if end > first]


def laid_out(times: Sequence[tuple[float, float]]) -> list[Part]:
    """Return the parts, each as wide as it is long, with breaks between them."""
    covered = sum(ended - began for began, ended in times)
    scale = (100.0 - BREAK * (len(times) - 1)) / covered if covered else 0.0
    parts, left = [], 0.0
    for began, ended in times:
        parts.append(Part(began, ended, left, (ended - began) * scale))
        left += (ended - began) * scale + BREAK
    return parts


def local(when: float) -> datetime:
    """Return seconds since the epoch as local time."""
    return datetime.fromtimestamp(when, tz=UTC).astimezone()


def clock_time(when: float, step: float, *, with_day: bool) -> str:
    """Return a time as precisely as the step to the next tick asks for."""
    form = "%H:%M" if step >= 60 else "%H:%M:%S"
    text = local(when).strftime(f"%d %b {form}" if with_day else form)
    return text if step >= 1 else f"{text}.{int(when % 1 * 100):02}"
