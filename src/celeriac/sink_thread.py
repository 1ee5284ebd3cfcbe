"""Call a sink of `celeriac.telemetry.sinks` again and again, in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Protocol, Self

from celeriac.surviving_loop import SurvivingLoop
from celeriac.telemetry.telemetry import Telemetry

THREAD = "celeriac-telemetry"
CLOSE_TIMEOUT = 2.0  # seconds for the last round


class Sink(Protocol):
    """Sends what a process measures to another one."""

    @property
    def interval(self) -> float:
        """The seconds between two calls of `send`."""
        ...

    def begin(self, telemetry: Telemetry) -> None:
        """Send what this telemetry measures from now on."""
        ...

    def send(self, *, is_last: bool) -> None:
        """Send what is new. The last call also sends what would be due later."""
        ...

    def close(self) -> None:
        """Release everything, and end a call of `send` in another thread. Called once."""
        ...


@contextmanager
def sending(sinks: Sequence[Sink], telemetry: Telemetry) -> Iterator[None]:
    """Let each sink send in a thread of its own until the end of the block."""
    with ExitStack() as stack:
        for sink in sinks:
            stack.enter_context(SinkThread(sink, telemetry))
        yield


class SinkThread:
    """The thread of one sink. Use it as a context manager; at the end, the sink sends once more."""

    def __init__(self, sink: Sink, telemetry: Telemetry) -> None:
        self._sink, self._telemetry = sink, telemetry
        self._has_ended = threading.Event()
        self._was_last = False
        self._loop = SurvivingLoop(THREAD, self._run_round, wait=self._has_ended.wait)

    def __enter__(self) -> Self:
        self._sink.begin(self._telemetry)
        self._loop.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._has_ended.set()
        self._loop.join(CLOSE_TIMEOUT)
        self._sink.close()

    def _run_round(self) -> bool:
        """Wait, then send. The round that finds the end sends what is left."""
        if self._was_last:
            return False
        self._was_last = self._has_ended.wait(self._sink.interval)
        self._sink.send(is_last=self._was_last)
        return not self._was_last
