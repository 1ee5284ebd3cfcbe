"""Ctrl-C and SIGTERM, for as long as somebody wants them."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def signals_to(told: Callable[[], object]) -> Iterator[None]:
    """Each calls `told`, inside a signal handler; after, they go back to who had them."""
    before = {number: signal.signal(number, lambda *_: told()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
