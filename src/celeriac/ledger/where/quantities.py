"""Numbers and durations as a person writes them: 60, 90s, 1h30m."""

from __future__ import annotations

import re

NUMBER = re.compile(r"[+-]?\d{1,18}", re.ASCII)
DECIMAL = r"\d{1,18}(?:\.\d{1,18})?"
PART = re.compile(rf"({DECIMAL})(ms|s|m|h|d)", re.ASCII)
DURATION = re.compile(rf"{DECIMAL}|(?:{DECIMAL}(?:ms|s|m|h|d))+", re.ASCII)
SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_number(text: str) -> float | None:
    """Return a whole number; None for another text."""
    return int(text) if NUMBER.fullmatch(text) else None


def parse_duration(text: str) -> float | None:
    """Return the seconds of a duration, in which a number alone is seconds; None for another text."""
    if not DURATION.fullmatch(text):
        return None
    parts = PART.findall(text)
    return sum(float(number) * SECONDS[unit] for number, unit in parts) if parts else float(text)
