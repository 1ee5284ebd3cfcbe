"""Calls tasks back, from a thread of its own: nobody waits for a broker or a result backend here.

revoke(ids) ─► what is still to be said ─► claims: who has not started them, never will
                                       └─► Celery's remote control, one message for all of it ─► workers
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection
from queue import Empty, SimpleQueue

from celery import Celery

from celeriac.backend.claims.claim import Claims
from celeriac.broker.session import BrokerSession

logger = logging.getLogger(__name__)

PAUSE = 1.0  # seconds between two tries while the broker is away
PARTING = 10.0  # seconds for what is still to be said
CHUNK = 500  # ids in one round trip to the result backend
MOST = 50_000  # ids kept for a broker that is away: as many as a Celery worker remembers


class ControlRevoker:
    """Workers that are up forget these tasks before they start them; ours end what runs, unless they are told that it
    may go on. With claims what has not started never will, on any worker of ours, whenever that comes up; plain Celery
    workers know of nothing that was said before they started. What cannot be said now is said later."""

    def __init__(
        self,
        app: Celery,
        *,
        claims: Claims | None = None,
        timeout: float,
        terminate: bool = False,
        on_revoked: Callable[[Collection[str]], None] = lambda _: None,
    ) -> None:
        """`timeout`, in seconds, bounds one operation on the broker. With `terminate` plain Celery workers, too, end
        what runs: they send TERM to the process, and so need a pool of processes. `on_revoked` is called by a thread
        when REVOKED was stored of these."""
        self._app, self._calls, self._claims, self._terminate = (
            app,
            BrokerSession(app, timeout=timeout),
            claims,
            terminate,
        )
        self._on_revoked = on_revoked
        self._asked: SimpleQueue[tuple[Collection[str], bool] | None] = SimpleQueue()
        self._tellings = [PendingRevokes(self._tell_workers, self._calls.connection_errors, "the broker")]
        if claims is not None:
            self._tellings.append(PendingRevokes(self._tell_claims, claims.errors, "the result backend"))
        self._thread: threading.Thread | None = None

    @property
    def is_durable(self) -> bool:
        return self._claims is not None

    def revoke(self, ids: Collection[str], *, unless_started: bool = False) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="celeriac-revoker", daemon=True)
            self._thread.start()
        self._asked.put((ids, unless_started))

    def close(self) -> None:
        """Say what is still to be said; a broker or backend that is away is given one more try, and not for long."""
        if self._thread is not None:
            self._asked.put(None)
            self._thread.join(PARTING)
        if self._claims is not None:
            self._claims.close()

    def _run(self) -> None:
        going = False
        while not going:
            going = self._take_what_is_asked(PAUSE if any(telling.unsaid for telling in self._tellings) else None)
            for telling in self._tellings:
                telling.flush(is_last=going)

    def _take_what_is_asked(self, timeout: float | None) -> bool:
        """Wait for something, then take all there is. Whether that was the last."""
        try:
            asked = self._asked.get(timeout=timeout)
            while asked is not None:
                for telling in self._tellings:
                    telling.add(*asked)
                asked = self._asked.get_nowait()
        except Empty:
            return False
        return True

    def _tell_workers(self, ids: list[str], unless_started: bool) -> None:
        options = {} if unless_started or not self._terminate else {"terminate": True, "signal": "SIGTERM"}
        with self._calls.connect() as connection:
            self._app.control.revoke(ids, connection=connection, unless_started=unless_started, **options)

    def _tell_claims(self, ids: list[str], unless_started: bool) -> None:
        assert self._claims is not None  # noqa: S101 - else there is no such telling
        for n in range(0, len(ids), CHUNK):
            self._on_revoked(self._claims.cancel(ids[n : n + CHUNK], unless_started=unless_started))


class PendingRevokes:
    """What is still to be said in one place."""

    def __init__(self, say: Callable[[list[str], bool], None], errors: tuple[type[Exception], ...], place: str) -> None:
        self._say, self._errors, self._place = say, errors, place
        self.unsaid: dict[str, bool] = {}
        """Ids, and whether what runs may go on."""

        self._warned = False

    def add(self, ids: Collection[str], unless_started: bool) -> None:
        for task_id in ids:
            self.unsaid[task_id] = unless_started and self.unsaid.get(task_id, True)
        while len(self.unsaid) > MOST:
            del self.unsaid[next(iter(self.unsaid))]

    def flush(self, *, is_last: bool) -> None:
        try:
            for unless_started in (False, True):
                if ids := [task_id for task_id, spared in self.unsaid.items() if spared is unless_started]:
                    self._say(ids, unless_started)
                    for task_id in ids:
                        del self.unsaid[task_id]
        except self._errors as error:
            if is_last or not self._warned:
                when = "and will not be" if is_last else f"until {self._place} is back"
                logger.warning("%d tasks are not revoked, %s: %s", len(self.unsaid), when, error)
            self._warned = True
        else:
            self._warned = False
