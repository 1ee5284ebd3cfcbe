"""The table that a benchmark prints: our figure beside the rival's."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    what: str
    ours: str
    rival: str
    ratio: str
    bar: str
    """Empty for a rival that is shown for comparison."""

    reached: float | None
    """The share of the bar that was reached: 1 or more holds. None for what was not measured, or has no bar."""

    @property
    def holds(self) -> bool | None:
        return None if self.reached is None else self.reached >= 1

    def is_below(self, share: float) -> bool:
        """Return whether less than a share of its bar was reached, or nothing was measured."""
        return bool(self.bar) and (self.reached is None or self.reached < share)

    @property
    def verdict(self) -> str:
        return {True: "yes", False: "NO", None: "not measured" if self.bar else ""}[self.holds]


def at_least(value: float, bar: float) -> float:
    """Return the share of a bar that VALUE should reach or exceed."""
    return value / bar


def at_most(value: float, bar: float) -> float:
    """Return the share of a bar that VALUE should not exceed."""
    return bar / value if value else math.inf


def machine(versions: Iterable[str] = ()) -> str:
    """Return a line about this machine and the versions that were measured."""
    here = f"Python {platform.python_version()}, {os.cpu_count()} CPUs, {platform.system()} {platform.machine()}"
    return ", ".join([here, *versions])


COLUMNS: dict[str, Callable[[Row], str]] = {
    "what": lambda row: row.what,
    "Celeriac": lambda row: row.ours,
    "rival": lambda row: row.rival,
    "ratio": lambda row: row.ratio,
    "bar": lambda row: row.bar,
    "holds": lambda row: row.verdict,
}


def markdown(rows: Iterable[Row]) -> str:
    """Return a table without its last line end."""
    cells = [list(COLUMNS), ["---"] * len(COLUMNS), *([cell(row) for cell in COLUMNS.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
