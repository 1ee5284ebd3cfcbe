"""`python -m tests.support.short_visibility`: `celeriac`, with a visibility timeout of seconds on Redis."""

from __future__ import annotations

from typing import Any

from kombu.transport.redis import QoS

from celeriac.cli import main
from celeriac.worker import app

VISIBILITY_TIMEOUT = 5  # seconds
FREQUENT_RESTORE = {"unacked_restore_interval": 1, "unacked_restore_throttle": 1}
"""Options of Kombu 5.7: seconds between two searches for expired messages, and that no search is left out."""


def restore_each_time(self: Any, start: int = 0, num: int = 10, interval: int = 10) -> Any:
    """Search at every call. Kombu before 5.7 leaves out nine of ten searches."""
    return restore_visible(self, start=start, num=num, interval=1)


if __name__ == "__main__":
    app.VISIBILITY_TIMEOUT = VISIBILITY_TIMEOUT
    connection_options = app.connection_options
    app.connection_options = lambda broker: {**connection_options(broker), **FREQUENT_RESTORE}
    restore_visible = QoS.restore_visible
    QoS.restore_visible = restore_each_time
    main()
