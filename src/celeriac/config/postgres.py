"""Timeouts by which a PostgreSQL client detects that the server's machine has failed.

The timeouts do not detect a server that accepts connections and never replies. For such a server, use
`celeriac.broker.deadline_thread`.
"""

from __future__ import annotations

import math

MIN_CONNECT_TIMEOUT = 2  # seconds; libpq rounds up to this


def connect_timeouts(url: str, timeout: float) -> dict[str, int]:
    """Return arguments for connections that fail after about `timeout` seconds of silence; {} for other databases."""
    if not url.startswith("postgresql"):
        return {}
    seconds = math.ceil(timeout)
    return {
        "connect_timeout": max(MIN_CONNECT_TIMEOUT, seconds),
        "tcp_user_timeout": math.ceil(timeout * 1000),
        "keepalives_idle": max(1, seconds),
        "keepalives_interval": 1,
        "keepalives_count": 3,
    }
