"""The messages that a worker has refused: logged, counted, and the newest ones kept for `celeriac status --refused`.

refused message ─► log, count ─► a short queue ─► thread ─► the store of the result backend
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from queue import Full, Queue

from celeriac.backend.refused import RefusedMessage, RefusedStore
from celeriac.errors import describe_error
from celeriac.server_errors import is_client_error
from celeriac.surviving_loop import SurvivingLoop, Survivor
from celeriac.worker.log import log_event, logger
from celeriac.worker.temporary_folder import make_nameless_file

QUEUE_SIZE = 100  # messages that may wait to be stored; the store keeps no more
END_TIMEOUT = 2.0  # seconds for the last of them
MAX_ROUND_DELAY = 1.0  # seconds after an unexpected exception until the next message is stored
THREAD = "celeriac-refused"


class Refusals:
    """Takes refused messages. Make it before the worker forks: the children share the count.

    It never blocks the event loop, and it raises no error: messages that cannot be stored are only logged and counted.
    """

    def __init__(self, store: RefusedStore | None = None, log: Callable[..., None] = log_event) -> None:
        """Without a store, no message is kept. `log` gets an event, its level and its facts."""
        self._store, self._log = store, log
        self._counter = make_nameless_file()  # its size is the count: an appended byte adds one
        self._waiting: Queue[RefusedMessage | None] = Queue(QUEUE_SIZE)
        self._thread: SurvivingLoop | None = None
        self._is_closed = threading.Event()
        self._pid = os.getpid()
        self._is_failing = False
        """Whether the last message could not be stored. Only the first failure is logged."""

        self._survivor = Survivor(THREAD)
        """For the children, which have no thread."""

    @property
    def count(self) -> int:
        return os.fstat(self._counter).st_size

    def record(
        self,
        why: str,
        *,
        queue: str,
        worker: str,
        id: str | None = None,
        key: str | None = None,
        size: int | None = None,
        about: str = "",
    ) -> None:
        """Log a refused message, count it, and keep what is known of it."""
        os.write(self._counter, b".")  # a lock could stay locked when a child is killed
        self._log("refused", level=logging.WARNING, key=key, id=id, why=why, queue=queue)
        if self._store is None:
            return
        message = RefusedMessage(at=time.time(), queue=queue, worker=worker, id=id, why=why, size=size, about=about)
        if os.getpid() != self._pid:  # a child starts no thread: Airflow forks in it
            with self._survivor.guard():
                self._keep(self._store, message)
            return
        if self._thread is None:
            run_round = partial(self._run_round, self._store)
            self._thread = SurvivingLoop(THREAD, run_round, wait=self._is_closed.wait, max_delay=MAX_ROUND_DELAY)
            self._thread.start()
        with contextlib.suppress(Full):
            self._waiting.put_nowait(message)

    def close(self) -> None:
        """Store the last messages, within a limited time."""
        if self._thread is None:
            return
        self._is_closed.set()
        with contextlib.suppress(Full):
            self._waiting.put(None, timeout=END_TIMEOUT)
            self._thread.join(END_TIMEOUT)

    def _run_round(self, store: RefusedStore) -> bool:
        message = self._waiting.get()
        if message is None:
            with contextlib.suppress(Exception):
                store.close()
            return False
        self._keep(store, message)
        return True

    def _keep(self, store: RefusedStore, message: RefusedMessage) -> None:
        try:
            store.add(message)
        except Exception as error:
            if not self._is_failing:
                logger.warning("refused messages are not kept for now: %s", describe_error(error))
            self._is_failing = True
            if not is_client_error(error):
                raise
        else:
            self._is_failing = False
