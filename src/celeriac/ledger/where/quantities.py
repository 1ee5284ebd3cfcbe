"""Numbers, durations and sizes as a person writes them: 60, 90s, 1h30m, 500M."""

from __future__ import annotations

import re

NUMBER = re.compile(r"[+-]?\d{1,18}", re.ASCII)
DECIMAL = r"\d{1,18}(?:\.\d{1,18})?"
PART = re.compile(rf"({DECIMAL})(ms|s|m|h|d)", re.ASCII)
DURATION = re.compile(rf"{DECIMAL}|(?:{DECIMAL}(?:ms|s|m|h|d))+", re.ASCII)
SIZE = re.compile(rf"({DECIMAL})(?:([kmgt])(?:i?b)?|b)?", re.ASCII | re.IGNORECASE)
SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
BYTES = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def parse_number(text: str) -> float | None:
    """Return a whole number; None for another text."""
    return int(text) if NUMBER.fullmatch(text) else None


def parse_duration(text: str) -> float | None:
    """Return the seconds of a duration, in which a number alone is seconds; None for another text."""
    if not DURATION.fullmatch(text):
        return None
    parts = PART.findall(text)
    return sum(float(number) * SECONDS[unit] for number, unit in parts) if parts else float(text)


def parse_size(text: str) -> float | None:
    """Return the bytes of a size, in which K is 1,024 bytes; None for another text."""
    if not (match := SIZE.fullmatch(text)):
        return None
    number, unit = match.groups()
    return float(number) * BYTES[(unit or "").lower()]
