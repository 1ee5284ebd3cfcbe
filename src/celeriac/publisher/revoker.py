"""Calls tasks back through Celery's own remote control, from a thread of its own: nobody waits for a broker here.

revoke(ids) ─► what is still to be said ─► one message for all of it ─► workers
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection
from queue import Empty, SimpleQueue

from celery import Celery

from celeriac.broker_calls import BrokerCalls

logger = logging.getLogger(__name__)

PAUSE = 1.0  # seconds between two tries while the broker is away
MOST = 50_000  # ids kept for a broker that is away: as many as a Celery worker remembers


class ControlRevoker:
    """Workers that are up forget these tasks before they start them; ours end what runs, unless they are told that it
    may go on. While the broker is away that is said once it is back."""

    def __init__(self, app: Celery, *, timeout: float, terminate: bool = False) -> None:
        """`timeout`, in seconds, bounds one operation on the broker. With `terminate` plain Celery workers, too, end
        what runs: they send TERM to the process, and so need a pool of processes."""
        self._app, self._calls, self._timeout, self._terminate = (
            app,
            BrokerCalls(app, timeout=timeout),
            timeout,
            terminate,
        )
        self._asked: SimpleQueue[tuple[Collection[str], bool] | None] = SimpleQueue()
        self._unsaid: dict[str, bool] = {}
        """Ids, and whether what runs may go on."""

        self._thread: threading.Thread | None = None

    def revoke(self, ids: Collection[str], *, unless_started: bool = False) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="celeriac-revoker", daemon=True)
            self._thread.start()
        self._asked.put((ids, unless_started))

    def close(self) -> None:
        """Say what is still to be said; a broker that is away is given one more try."""
        if self._thread is not None:
            self._asked.put(None)
            self._thread.join()

    def _run(self) -> None:
        going = False
        warned = False
        while not going:
            going = self._take_what_is_asked(PAUSE if self._unsaid else None)
            try:
                self._say()
            except self._calls.away as error:
                if going or not warned:
                    when = "and will not be" if going else "until the broker is back"
                    logger.warning("%d tasks are not revoked, %s: %s", len(self._unsaid), when, error)
                warned = True
            else:
                warned = False

    def _take_what_is_asked(self, timeout: float | None) -> bool:
        """Wait for something, then take all there is. Whether that was the last."""
        try:
            asked = self._asked.get(timeout=timeout)
            while asked is not None:
                ids, unless_started = asked
                for task_id in ids:
                    self._unsaid[task_id] = unless_started and self._unsaid.get(task_id, True)
                while len(self._unsaid) > MOST:
                    del self._unsaid[next(iter(self._unsaid))]
                asked = self._asked.get_nowait()
        except Empty:
            return False
        return True

    def _say(self) -> None:
        for unless_started in (False, True):
            ids = [task_id for task_id, spared in self._unsaid.items() if spared is unless_started]
            if not ids:
                continue
            options = {} if unless_started or not self._terminate else {"terminate": True, "signal": "SIGTERM"}
            with self._calls.connected() as connection:
                self._app.control.revoke(ids, connection=connection, unless_started=unless_started, **options)
            for task_id in ids:
                del self._unsaid[task_id]
