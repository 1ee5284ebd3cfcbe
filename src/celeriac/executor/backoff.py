"""Compute how long to wait before the next attempt."""

from __future__ import annotations

from random import Random


def backoff(first: float, failures: int, longest: float, random: Random) -> float:
    """Return the seconds to wait after a number of failures in a row.

    The delay doubles with each failure, up to `longest`. It is then spread from half to one and a half times, so that
    peers that failed together do not retry together.
    """
    doublings = min(failures - 1, 60)  # `longest` was reached long before; a larger exponent could overflow
    return min(longest, first * 2.0**doublings) * random.uniform(0.5, 1.5)
