"""What makes a PostgreSQL client notice that its server's machine is gone.

A server that is there and answers nothing is noticed by who asks it, from a thread.
"""

from __future__ import annotations

import math

LEAST_CONNECT_TIMEOUT = 2  # seconds; libpq takes less for as much


def connect_timeouts(url: str, timeout: float) -> dict[str, int]:
    """Arguments for its connections, which are given up after some `timeout` seconds of silence. None for others."""
    if not url.startswith("postgresql"):
        return {}
    seconds = math.ceil(timeout)
    return {
        "connect_timeout": max(LEAST_CONNECT_TIMEOUT, seconds),
        "tcp_user_timeout": math.ceil(timeout * 1000),
        "keepalives_idle": max(1, seconds),
        "keepalives_interval": 1,
        "keepalives_count": 3,
    }
