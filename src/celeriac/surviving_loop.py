"""Keep a thread at work: one round after another, also after an exception that was not expected.

    round ─► returns True ─► the next round
          ├► returns False ─► the thread ends
          └► raises ─► count; log the first exception of each kind, with its traceback; wait ─► the next round

The errors of a server are expected: a round handles them itself. `Survivor` is the same for a loop that has its own
thread, such as an event loop.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from traceback import extract_tb

from celeriac.errors import describe_error
from celeriac.executor.backoff import backoff
from celeriac.executor.thread_health import ThreadHealth
from celeriac.log_lines import logger_for
from celeriac.shortages import describe_shortage, is_shortage

logger = logger_for(__name__)

FIRST_DELAY = 0.1  # seconds after an unexpected exception until the next round; doubled with each one in a row
MAX_DELAY = 5.0  # seconds
MAX_KINDS = 100  # kinds of exceptions that are logged; the others are only counted


class Survivor:
    """Catches, counts and logs the unexpected exceptions of one thread."""

    def __init__(self, name: str) -> None:
        """`name` is the thread's."""
        self.name = name
        self.count = 0
        """The number of unexpected exceptions."""

        self.last_error: str | None = None
        self._kinds: set[tuple[type[BaseException], str]] = set()

    @contextmanager
    def guard(
        self, is_expected: Callable[[BaseException], bool] = lambda _: False, *, delay: float = 0.0
    ) -> Iterator[None]:
        """Go on after the block even if it raises, after a delay in seconds. Exceptions that the caller expects are
        raised."""
        try:
            yield
        except Exception as error:
            if is_expected(error):
                raise
            self.record(error)
            time.sleep(delay)

    def record(self, error: Exception) -> None:
        """Count an exception. Log the first one of its kind: of the same class, raised at the same line.

        A lack of descriptors, processes or memory is logged without a traceback.
        """
        self.count += 1
        self.last_error = describe_error(error)
        kind = (type(error), place_of(error))
        if kind in self._kinds or len(self._kinds) >= MAX_KINDS:
            return
        self._kinds.add(kind)
        if is_shortage(error):
            logger.warning("thread %s cannot work for now: %s; it tries again", self.name, describe_shortage(error))
            return
        logger.error(
            "unexpected error in thread %s: %s (%s); further errors of this kind are only counted",
            *(self.name, self.last_error, kind[1]),
            exc_info=error,
            extra={"shows_traceback": True},
        )


class SurvivingLoop:
    """A thread that runs one round after another until a round returns False."""

    def __init__(
        self,
        name: str,
        run_round: Callable[[], bool],
        *,
        wait: Callable[[float], object] = time.sleep,
        max_delay: float = MAX_DELAY,
    ) -> None:
        """`run_round` returns whether another round follows. It must look first whether the loop should end, because it
        is called again after each exception. `wait` waits for some seconds, or until the loop should end. `max_delay`
        is the longest delay after an exception, in seconds."""
        self._run_round, self._wait, self._max_delay = run_round, wait, max_delay
        self.survivor = Survivor(name)
        self._failures = 0
        self._began_at = time.monotonic()
        self._random = Random()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread. `thread_health` reports it until its last round."""
        with lock:
            started.add(self)
        try:
            self._thread.start()
        except BaseException:
            with lock:
                started.discard(self)
            raise

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end of the thread, at most `timeout` seconds. Return at once if it could not be started."""
        if self._thread.ident is not None:
            self._thread.join(timeout)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def health(self) -> ThreadHealth:
        """Return the state of the thread."""
        return ThreadHealth(
            name=self.survivor.name,
            is_alive=self.is_alive,
            round_age=time.monotonic() - self._began_at,
            unexpected_errors=self.survivor.count,
            last_error=self.survivor.last_error,
        )

    def _run(self) -> None:
        while self._survive_round():
            pass
        with lock:
            started.discard(self)

    def _survive_round(self) -> bool:
        self._began_at = time.monotonic()
        try:
            goes_on = self._run_round()
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not end the thread
            self.survivor.record(error)
            is_in_a_row = time.monotonic() - self._began_at <= MAX_DELAY
            self._failures = self._failures + 1 if is_in_a_row else 1
            self._wait(backoff(FIRST_DELAY, self._failures, self._max_delay, self._random))
            return True
        self._failures = 0
        return goes_on


lock = threading.Lock()
started: set[SurvivingLoop] = set()
"""The loops of this process that should run now."""


def thread_health() -> tuple[ThreadHealth, ...]:
    """Return the state of each loop of this process that should run now, by name."""
    with lock:
        loops = list(started)
    return tuple(sorted((loop.health() for loop in loops), key=lambda health: health.name))


def place_of(error: BaseException) -> str:
    """Return where the error was raised, as FILE:LINE."""
    frames = extract_tb(error.__traceback__, limit=-1)
    return f"{Path(frames[0].filename).name}:{frames[0].lineno}" if frames else "?"
