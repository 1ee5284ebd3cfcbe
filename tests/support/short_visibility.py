"""`python -m tests.support.short_visibility`: `celeriac`, with a visibility timeout of seconds on Redis."""

from __future__ import annotations

from typing import Any

from kombu.transport.redis import QoS

from celeriac.cli import main
from celeriac.worker import start

OFTEN = {"unacked_restore_interval": 1, "unacked_restore_throttle": 1}
"""Seconds between two looks, and how many of them are left out: options of Kombu 5.7."""


def look_each_time(self: Any, start: int = 0, num: int = 10, interval: int = 10) -> Any:
    """As before Kombu 5.7, where nine of ten looks are left out."""
    return restore(self, start=start, num=num, interval=1)


if __name__ == "__main__":
    start.VISIBILITY_TIMEOUT = 5
    connection_options = start.connection_options
    start.connection_options = lambda broker: {**connection_options(broker), **OFTEN}
    restore = QoS.restore_visible
    QoS.restore_visible = look_each_time
    main()
