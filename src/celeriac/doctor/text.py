"""Findings as lines, one each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from celeriac.doctor.check import Finding, Level
from celeriac.errors import on_one_line

LEVEL_WIDTH = max(map(len, Level))
ID_WIDTH = 26  # columns of the longest id of a check, and a gap


def plain_lines(findings: Sequence[Finding]) -> Iterator[str]:
    """Yield a line for each finding, below the names of their subjects."""
    for subject, group in groupby(findings, lambda finding: finding.subject):
        yield on_one_line(subject)
        for finding in group:
            remedy = "" if finding.remedy is None else f" → {on_one_line(finding.remedy)}"
            level = finding.level.ljust(LEVEL_WIDTH)
            yield f"  {level}  {finding.check:<{ID_WIDTH}} {on_one_line(finding.text)}{remedy}"
        yield ""


def count_of(findings: Sequence[Finding], level: Level) -> int:
    return sum(finding.level is level for finding in findings)
