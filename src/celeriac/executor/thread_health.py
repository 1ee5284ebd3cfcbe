"""The state of a thread: a module of its own, so that a short command need not import all interfaces."""

from __future__ import annotations

from msgspec import Struct


class ThreadHealth(Struct, frozen=True, kw_only=True):
    """The state of one of Celeriac's threads, for a person."""

    name: str
    is_alive: bool
    round_age: float
    """Seconds since the thread began its present round."""

    unexpected_errors: int
    """Exceptions that were not expected. The thread logged them and went on."""

    last_error: str | None
    """The last one of them."""
