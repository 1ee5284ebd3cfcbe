"""The table that a benchmark prints: our figure beside the rival's."""

from __future__ import annotations

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

    holds: bool | None
    """None for what was not measured, or has no bar."""


def markdown(rows: Iterable[Row], versions: Iterable[str] = ()) -> str:
    machine = f"Python {platform.python_version()}, {os.cpu_count()} CPUs, {platform.system()} {platform.machine()}"
    lines = [", ".join([machine, *versions]), ""]
    lines += ["| what | ours | rival | ratio | bar | holds |", "|---|---|---|---|---|---|"]
    for row in rows:
        verdict = {True: "yes", False: "NO", None: "not measured" if row.bar else ""}[row.holds]
        lines.append(f"| {row.what} | {row.ours} | {row.rival} | {row.ratio} | {row.bar} | {verdict} |")
    return "\n".join(lines)
