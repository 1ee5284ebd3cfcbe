"""Which tasks have moved, heard as it happens.

    RedisChannel ─┐
    TaskEvents   ─┴─► a thread of its own ─► take()
                                         └─► ring: whoever waits, wakes

A hint says which task, never what: the result backend is the truth. Hints may be lost; `complete` says when.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from random import Random
from typing import Protocol

from celeriac.backend.results.outage import word
from celeriac.executor.backoff import backoff

logger = logging.getLogger(__name__)

FIRST_PAUSE = 0.1  # seconds before connecting again; doubled after each failure in a row
LONGEST_PAUSE = 5.0  # seconds
MOST_KEPT = 1_000_000  # ids that nobody took


class ChangeSource(Protocol):
    """Where hints come from."""

    errors: tuple[type[Exception], ...]
    """What its client raises when the connection is lost."""

    def listen(self) -> Iterator[Collection[str] | None]:
        """Connect, then give the ids that have moved, as they come, and nothing now and then while none do.

        None says that from here on everything is heard, and that something may have been missed before.
        """
        ...


class ChangeFeed:
    def __init__(self, source: ChangeSource, *, ring: Callable[[], None]) -> None:
        """`ring` is called, by a thread, when there is something to take."""
        self._source, self._ring = source, ring
        self._lock = threading.Lock()
        self._heard: set[str] = set()
        self._hears_everything = False
        self._missed_some = True
        self._closed = threading.Event()
        self.complete = False
        """Whether what the last `take` gave is all that has moved since the one before."""

        self._random = Random()
        self._thread = threading.Thread(target=self._work, name="celeriac-hints", daemon=True)
        self._thread.start()

    def take(self) -> set[str]:
        """What was heard since the last call."""
        with self._lock:
            heard, self._heard = self._heard, set()
            self.complete = self._hears_everything and not self._missed_some
            self._missed_some = not self._hears_everything
        return heard

    def close(self) -> None:
        """Does not wait: the thread ends when it next hears something, or nothing, in a second or so."""
        self._closed.set()

    def _work(self) -> None:
        failures = 0
        while not self._closed.is_set():
            try:
                with closing(self._source.listen()) as heard:  # type: ignore[type-var]
                    for ids in heard:
                        failures = 0
                        self._on_change(ids)
                        if self._closed.is_set():
                            return
            except self._source.errors as error:
                logger.debug("nothing tells which tasks have moved: %s", word(error))
            finally:
                self._on_disconnect()
            failures += 1
            self._closed.wait(backoff(FIRST_PAUSE, failures, LONGEST_PAUSE, self._random))

    def _on_change(self, ids: Collection[str] | None) -> None:
        if ids is not None and not ids:
            return
        with self._lock:
            if ids is None:
                self._hears_everything, self._missed_some = True, True
            elif len(self._heard) < MOST_KEPT:
                self._heard.update(ids)
            else:
                self._missed_some = True
        self._ring()

    def _on_disconnect(self) -> None:
        with self._lock:
            self._hears_everything, self._missed_some = False, True
