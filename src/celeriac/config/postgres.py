"""How SQLAlchemy connects to PostgreSQL: timeouts that detect a failed machine, and no prepared statements.

The timeouts do not detect a server that accepts connections and never replies. For such a server, use
`celeriac.broker.deadline_thread`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

MIN_CONNECT_TIMEOUT = 2  # seconds; libpq rounds up to this
LIBPQ_DRIVERS = ("psycopg", "psycopg2", "psycopg2cffi")


def driver_of(url: str) -> str | None:
    """Return the driver that SQLAlchemy uses for a PostgreSQL; None for another database."""
    kind, _, driver = url.removeprefix("db+").partition("://")[0].partition("+")
    if kind != "postgresql":
        return None
    has_psycopg = [int(number) for number in version("sqlalchemy").split(".")[:2]] >= [2, 1]
    return driver or ("psycopg" if has_psycopg else "psycopg2")


def engine_options(url: str, configured: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of an engine, without prepared statements unless they are configured.

    A pooler such as PgBouncer may use another connection for each transaction. There psycopg 3 does not find the
    statements that it has prepared, or finds those of another client under the same name.
    """
    if driver_of(url) != "psycopg":
        return dict(configured)
    return {**configured, "connect_args": {"prepare_threshold": None, **configured.get("connect_args", {})}}


def connect_timeouts(url: str, timeout: float) -> dict[str, int]:
    """Return arguments for connections that fail after about `timeout` seconds of silence; {} for other drivers."""
    if driver_of(url) not in LIBPQ_DRIVERS:
        return {}
    seconds = math.ceil(timeout)
    return {
        "connect_timeout": max(MIN_CONNECT_TIMEOUT, seconds),
        "tcp_user_timeout": math.ceil(timeout * 1000),
        "keepalives_idle": max(1, seconds),
        "keepalives_interval": 1,
        "keepalives_count": 3,
    }
