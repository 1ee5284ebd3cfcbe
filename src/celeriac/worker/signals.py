"""Handle Ctrl-C, SIGTERM and other signals inside a `with` block."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager


@contextmanager
def signals_to(
    handler: Callable[[], object], numbers: Iterable[signal.Signals] = (signal.SIGINT, signal.SIGTERM)
) -> Iterator[None]:
    """Call `handler`, inside a signal handler, at each Ctrl-C and SIGTERM. At the end, restore the former handlers."""
    former = {number: signal.signal(number, lambda *_: handler()) for number in numbers}
    try:
        yield
    finally:
        for number, former_handler in former.items():
            signal.signal(number, former_handler)


@contextmanager
def hangups_survived() -> Iterator[None]:
    """Go on when the terminal closes. The commands of this process do not inherit that."""
    former = signal.getsignal(signal.SIGHUP)
    if former is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, former)
