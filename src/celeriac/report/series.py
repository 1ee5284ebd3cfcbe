"""How much ran over time: in columns that become wider as the run becomes longer, so that there are never many."""

from __future__ import annotations

from collections.abc import Iterable
from math import floor, log

MAX_COLUMNS = 400  # columns in which something ran; those in which nothing ran take no room
FIRST_WIDTH = 1 / 64  # seconds
STEP = 1.05  # the ratio of two neighbouring buckets of durations
SHORTEST = 0.001  # seconds


class Clock:
    """The width of the columns of several series. A column has the number of its start, counted in widths."""

    def __init__(self) -> None:
        self.width = FIRST_WIDTH
        self._series: list[Series] = []
        self._used: set[int] = set()

    def series(self) -> Series:
        """Return a new series with these columns."""
        series = Series(self)
        self._series.append(series)
        return series

    def add(self, began: float, ended: float, series: Iterable[Series]) -> None:
        """Add something that ran from `began` to `ended` to these series."""
        while (ended - began) / self.width > MAX_COLUMNS:
            self._widen()
        first, last = floor(began / self.width), floor(ended / self.width)
        self._used.update(range(first, last + 1))
        for each in series:
            each.add(began, ended, first, last)
        while len(self._used) > MAX_COLUMNS:
            self._widen()

    @property
    def columns(self) -> list[int]:
        """The columns in which something ran, in order."""
        return sorted(self._used)

    def _widen(self) -> None:
        self.width *= 2
        self._used = {column // 2 for column in self._used}
        for series in self._series:
            series.widen()


class Series:
    """For each column, the seconds that its attempts ran in it, together."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.seconds: dict[int, float] = {}

    def add(self, began: float, ended: float, first: int, last: int) -> None:
        """Add what ran from `began`, in column `first`, to `ended`, in column `last`."""
        seconds, width = self.seconds, self._clock.width
        if first == last:
            seconds[first] = seconds.get(first, 0.0) + ended - began
            return
        seconds[first] = seconds.get(first, 0.0) + (first + 1) * width - began
        seconds[last] = seconds.get(last, 0.0) + ended - last * width
        for column in range(first + 1, last):
            seconds[column] = seconds.get(column, 0.0) + width

    def widen(self) -> None:
        """Join each two columns: their common width has doubled."""
        joined: dict[int, float] = {}
        for column, seconds in self.seconds.items():
            joined[column // 2] = joined.get(column // 2, 0.0) + seconds
        self.seconds = joined

    def level(self, column: int) -> float:
        """Return how many ran at once in a column, on average."""
        return self.seconds.get(column, 0.0) / self._clock.width

    @property
    def highest(self) -> float:
        """The highest level of a column."""
        return max(self.seconds.values(), default=0.0) / self._clock.width


class Durations:
    """A sample of durations, from which quantiles are read with an error of a few percent."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self.number = 0
        self.sum = 0.0
        self.longest = 0.0

    def add(self, duration: float) -> None:
        """Add a duration in seconds."""
        bucket = floor(log(max(duration, SHORTEST), STEP))
        self._numbers[bucket] = self._numbers.get(bucket, 0) + 1
        self.number += 1
        self.sum += duration
        self.longest = max(self.longest, duration)

    def quantile(self, part: float) -> float:
        """Return the duration that this part of the sample does not exceed."""
        rest = part * self.number
        for bucket in sorted(self._numbers):
            rest -= self._numbers[bucket]
            if rest <= 0:
                return float(min(STEP ** (bucket + 0.5), self.longest))
        return self.longest
