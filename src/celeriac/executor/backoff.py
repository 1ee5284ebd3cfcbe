"""Compute how long to wait before the next attempt."""

from __future__ import annotations

from random import Random

MIN_JITTER, MAX_JITTER = 0.5, 1.5


def backoff(first_delay: float, failures: int, max_delay: float, random: Random) -> float:
    """Return the seconds to wait after a number of failures in a row.

    The delay doubles with each failure, up to `max_delay`. It is then multiplied by a random number from 0.5 to
    1.5, so that peers that failed together do not retry together.
    """
    doublings = min(failures - 1, 60)  # `max_delay` is reached long before; a larger exponent could overflow
    return min(max_delay, first_delay * 2.0**doublings) * random.uniform(MIN_JITTER, MAX_JITTER)
