"""Wait for a server that refuses for now, before a run begins."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TypeVar

from celeriac.cli.exit_status import INTERRUPTED
from celeriac.cli.messages import print_message
from celeriac.errors import CeleriacError

T = TypeVar("T")

RETRY_DELAY = 1.0  # seconds between two attempts


def wait_while_refused(attempt: Callable[[], T], may_wait: Callable[[CeleriacError], bool]) -> tuple[T, float | None]:
    """Return what `attempt` returns, and for how many seconds a server refused; None if it did not.

    Attempt again after an error of which `may_wait` says that waiting can help. The first one is reported in one line.
    Any other error is raised. Ctrl-C ends the program.
    """
    refused_at: float | None = None
    while True:
        try:
            result = attempt()
        except CeleriacError as error:
            if not may_wait(error):
                raise
            if refused_at is None:
                print_message(f"{error}; nothing is queued until then")
                refused_at = time.monotonic()
        else:
            return result, None if refused_at is None else time.monotonic() - refused_at
        try:
            time.sleep(RETRY_DELAY)  # no event reports that a server serves again
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
