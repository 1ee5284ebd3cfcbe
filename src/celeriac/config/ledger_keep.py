"""How long a ledger keeps its runs: an age, a size, or both, such as "90 days or 2 GB"."""

from __future__ import annotations

import re

from msgspec import Struct

DAY = 86_400.0  # seconds
UNITS = {"B": 1, "KB": 1_000, "MB": 1_000_000, "GB": 1_000_000_000, "TB": 1_000_000_000_000}  # bytes
PART = r"(?i)(\d+(?:\.\d+)?)\s*(days?|d|[kmgt]?b)"
SEPARATOR = r"(?i)\s*(?:,|\bor\b)\s*"


class LedgerKeep(Struct, frozen=True):
    """The limits of a ledger in a file. A run that exceeds one of them is removed."""

    days: float | None = None
    """Days since the run ended."""

    size: int | None = None
    """Bytes of the whole ledger."""

    def __str__(self) -> str:
        days = [] if self.days is None else [f"{self.days:g} {'day' if self.days == 1 else 'days'}"]
        size = [] if self.size is None else [size_text(self.size)]
        return " or ".join([*days, *size]) or "everything"

    @property
    def seconds(self) -> float | None:
        """The age in seconds."""
        return None if self.days is None else self.days * DAY


def keep_of(text: str) -> LedgerKeep | None:
    """Return the limits of a text; None if it is malformed. "everything" is no limit."""
    if text.strip().lower() == "everything":
        return LedgerKeep()
    days, size = None, None
    for part in re.split(SEPARATOR, text.strip()):
        match = re.fullmatch(PART, part)
        if match is None:
            return None
        number, unit = float(match[1]), match[2].upper()
        if unit.startswith("D"):
            days = number
        else:
            size = round(number * UNITS[unit])
    return LedgerKeep(days, size)


def size_text(size: int) -> str:
    """Return bytes with the largest fitting unit."""
    unit = max((unit for unit in UNITS if UNITS[unit] <= size), key=UNITS.__getitem__, default="B")
    return f"{size / UNITS[unit]:g} {unit}"
