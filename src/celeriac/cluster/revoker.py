"""Revoke tasks in a separate thread, so that the executor never waits for the broker or the result backend.

revoke(ids) ─► PendingRevokes ─► claims: a task that has not started never will
           └─► PendingRevokes ─► Celery's remote control, one message for all of them ─► workers
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from queue import Empty, SimpleQueue
from typing import Protocol

from celery import Celery

from celeriac.backend.claims.claim import Claims
from celeriac.broker.session import BrokerSession
from celeriac.errors import describe_problem, describe_refusal
from celeriac.executor.circuit_breaker import CircuitBreaker
from celeriac.log_lines import logger_for
from celeriac.server_errors import is_server_error
from celeriac.surviving_loop import SurvivingLoop, Survivor

logger = logger_for(__name__)

THREAD = "celeriac-revoker"
RETRY_DELAY = 1.0  # seconds between two tries while the broker or the result backend is unavailable
CLOSE_TIMEOUT = 10.0  # seconds to send the pending revokes
BATCH_SIZE = 500  # ids in one round trip to the result backend
MAX_PENDING = 50_000  # ids kept for an unavailable peer: as many as a Celery worker keeps


class ControlRevoker:
    """A `Revoker` that sends revokes to the workers and, if there are claims, to the result backend.

    Connected workers skip revoked tasks. Celeriac's workers also end the running ones, unless `unless_started` is set.
    With claims, no worker of Celeriac ever starts a revoked task, even if the worker itself starts later. Plain Celery
    workers do not learn of revokes that were sent before they started. A revoke that cannot be sent now is sent later.
    """

    def __init__(
        self,
        app: Celery,
        *,
        claims: Claims | None = None,
        timeout: float,
        terminate: bool = False,
        on_revoked: Callable[[Collection[str]], None] = lambda _: None,
    ) -> None:
        """`timeout`, in seconds, bounds one operation on the broker.

        With `terminate` plain Celery workers also end running tasks: they send TERM to the process, and so need a pool
        of processes. The thread calls `on_revoked` with the ids for which it has stored the state REVOKED.
        """
        self._app, self._claims, self._terminate, self._on_revoked = app, claims, terminate, on_revoked
        self._session = BrokerSession(app, timeout=timeout)
        self._queue: SimpleQueue[tuple[Collection[str], bool] | None] = SimpleQueue()
        self._pending = [PendingRevokes("the broker", self._send_to_workers, self._session.is_broker_error)]
        if claims is not None:
            self._pending.append(PendingRevokes("the result backend", self._cancel_claims, is_server_error))
        self._thread: SurvivingLoop | None = None
        self._is_closing = False

    @property
    def is_durable(self) -> bool:
        return self._claims is not None

    def revoke(self, ids: Collection[str], *, unless_started: bool = False) -> None:
        if self._thread is None:
            self._thread = SurvivingLoop(THREAD, self._run_round)
            self._thread.start()
        self._queue.put((ids, unless_started))

    def close(self) -> None:
        """Send the pending revokes, for a few seconds at most. Try an unavailable peer once more."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(CLOSE_TIMEOUT)
        if self._claims is not None:
            self._claims.close()

    def _run_round(self) -> bool:
        if self._is_closing:  # the last round has raised
            return False
        self._is_closing = self._take_queued(self._seconds_until_retry())
        for pending in self._pending:
            pending.flush(is_last=self._is_closing)
        return not self._is_closing

    def _seconds_until_retry(self) -> float | None:
        retries = [pending.retry_at for pending in self._pending if pending.retry_at is not None]
        return max(0.0, min(retries) - time.monotonic()) if retries else None

    def _take_queued(self, timeout: float | None) -> bool:
        """Wait for a revoke, then take all that are queued. Return whether `close` was called."""
        try:
            queued = self._queue.get(timeout=timeout)
            while queued is not None:
                for pending in self._pending:
                    pending.add(*queued)
                queued = self._queue.get_nowait()
        except Empty:
            return False
        return True

    def _send_to_workers(self, ids: list[str], unless_started: bool) -> None:
        options = {} if unless_started or not self._terminate else {"terminate": True, "signal": "SIGTERM"}
        with self._session.connect() as connection:
            self._app.control.revoke(ids, connection=connection, unless_started=unless_started, **options)

    def _cancel_claims(self, ids: list[str], unless_started: bool) -> None:
        assert self._claims is not None  # noqa: S101 - this is called only if there are claims
        for start in range(0, len(ids), BATCH_SIZE):
            batch = ids[start : start + BATCH_SIZE]
            self._on_revoked(self._claims.cancel(batch, unless_started=unless_started))


class Send(Protocol):
    def __call__(self, ids: list[str], unless_started: bool) -> None: ...


class PendingRevokes:
    """The revokes that one peer has not received yet. It has no thread."""

    def __init__(
        self,
        peer: str,
        send: Send,
        is_peer_error: Callable[[BaseException], bool],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`send` sends revokes to the peer. `is_peer_error` returns whether it has raised because the peer does not
        answer, or refuses."""
        self._peer, self._send, self._is_peer_error, self._clock = peer, send, is_peer_error, clock
        self._pending: dict[str, bool] = {}
        """By id, whether a task that has started may go on."""

        self._survivor = Survivor(THREAD)
        self._breaker = CircuitBreaker(peer, first_delay=RETRY_DELAY, effect="revokes wait")

    @property
    def retry_at(self) -> float | None:
        """When to call `flush` again; None if nothing is pending."""
        return self._breaker.retry_at if self._pending else None

    def add(self, ids: Collection[str], unless_started: bool) -> None:
        """Add revokes. The oldest are dropped if more than `MAX_PENDING` are pending."""
        for task_id in ids:
            self._pending[task_id] = unless_started and self._pending.get(task_id, True)
        while len(self._pending) > MAX_PENDING:
            del self._pending[next(iter(self._pending))]

    def flush(self, *, is_last: bool = False) -> None:
        """Send the pending revokes, unless the peer is unavailable and the next attempt is not due.

        With `is_last`, always try, and log how many revokes could not be sent.
        """
        if not self._pending or not (is_last or self._breaker.allows(self._clock())):
            return
        try:
            for unless_started in (False, True):
                if ids := [task_id for task_id, may_go_on in self._pending.items() if may_go_on is unless_started]:
                    self._send_each(ids, unless_started)
        except Exception as error:
            if not self._is_peer_error(error):
                raise
            line = self._breaker.record_failure(self._clock(), error)
            if is_last:
                problem = f"{self._peer} {describe_problem(error)}: {describe_refusal(error)}"
                logger.warning("%d tasks were not revoked: %s", len(self._pending), problem)
            elif line is not None:
                logger.warning(line)
        else:
            if line := self._breaker.record_success(self._clock()):
                logger.warning(line)

    def _send_each(self, ids: list[str], unless_started: bool) -> None:
        """Send revokes, or drop them. If one of them cannot be sent for a reason of its own, the others are sent."""
        try:
            self._send(ids, unless_started)
        except Exception as error:  # whatever it is, it must not hold up the other revokes
            if self._is_peer_error(error):
                raise
            if len(ids) > 1:
                for half in (ids[: len(ids) // 2], ids[len(ids) // 2 :]):
                    self._send_each(half, unless_started)
            else:
                self._survivor.record(error)
        for task_id in ids:
            self._pending.pop(task_id, None)
