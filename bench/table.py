"""The table that a benchmark prints: our figure beside the rival's."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterable
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


def at_least(value: float, bar: float) -> float:
    """Return the share of a bar that VALUE should reach or exceed."""
    return value / bar


def at_most(value: float, bar: float) -> float:
    """Return the share of a bar that VALUE should not exceed."""
    return bar / value if value else math.inf


def markdown(rows: Iterable[Row], versions: Iterable[str] = ()) -> str:
    machine = f"Python {platform.python_version()}, {os.cpu_count()} CPUs, {platform.system()} {platform.machine()}"
    lines = [", ".join([machine, *versions]), ""]
    lines += ["| what | ours | rival | ratio | bar | holds |", "|---|---|---|---|---|---|"]
    for row in rows:
        verdict = {True: "yes", False: "NO", None: "not measured" if row.bar else ""}[row.holds]
        lines.append(f"| {row.what} | {row.ours} | {row.rival} | {row.ratio} | {row.bar} | {verdict} |")
    return "\n".join(lines)
