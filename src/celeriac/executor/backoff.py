"""How long to wait before the next try."""

from __future__ import annotations

from random import Random


def backoff(first: float, tries: int, longest: float, random: Random) -> float:
    """Seconds to wait after `tries` failures in a row: doubled each time, up to `longest`, and spread by half either
    way so that what failed together does not come back together."""
    doublings = min(tries - 1, 60)  # beyond, 2**n only risks an overflow: `longest` has long been reached
    return min(longest, first * 2.0**doublings) * random.uniform(0.5, 1.5)
