"""Rates: how many tasks may start in any window of a second, a minute or an hour."""

from __future__ import annotations

import re

from celeriac.errors import InvalidConfig

SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
MAX_NUMBER = 10_000  # places of one limit: each start of the last window is stored
EXAMPLE = "write a number and s, m or h, for example 10/m"


def parse_rate(setting: str, text: object) -> tuple[int, float]:
    """Return a number of starts, and the length of the window in seconds. Raise `InvalidConfig`."""
    match = re.fullmatch(r"([0-9]{1,5})/([smh])", text) if isinstance(text, str) else None
    if match is None or not 1 <= int(match[1]) <= MAX_NUMBER:
        raise InvalidConfig(setting, f"{text!r} is not a rate from 1 to {MAX_NUMBER:,}", EXAMPLE)
    return int(match[1]), SECONDS[match[2]]
