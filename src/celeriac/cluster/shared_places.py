"""Keep to limits together with the other executors of a broker: the executor's store of places.

reserve ─► a thread, and a reply by the deadline ─► store of the claims
renew, ended ─► the thread, with the next call
             └► at most once a second, the executor's note about its limits

The thread makes one call after another, so that the end of a task is stored before its next attempt asks for a place.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from queue import Empty, SimpleQueue
from uuid import uuid4

from celeriac.backend.claims.place_use import Note, note_of
from celeriac.backend.claims.places import RENEW_INTERVAL, Places
from celeriac.control.wire import executor_name
from celeriac.executor.circuit_breaker import CircuitBreaker
from celeriac.executor.limit import Limit, PlaceRequest, Refusal
from celeriac.log_lines import logger_for
from celeriac.server_errors import is_server_error
from celeriac.surviving_loop import SurvivingLoop

logger = logger_for(__name__)

MAX_WAIT = 1.0  # seconds that a heartbeat waits for the store
RETRY_DELAY = 1.0  # seconds after a failed call; until then all requests are refused
NOTE_INTERVAL = 1.0  # seconds from one note to the next, if they differ
CLOSE_TIMEOUT = 2.0  # seconds that `close` waits for the store
UNAVAILABLE = "the result backend is unavailable"


class SharedPlaces:
    """The executor's `PlaceStore` on a broker. A thread talks to the store; it starts with the first request."""

    renew_interval: float | None = RENEW_INTERVAL

    def __init__(self, places: Places, *, timeout: float) -> None:
        """A call of `reserve` takes at most `timeout` seconds, and never more than `MAX_WAIT`."""
        self._places, self._timeout = places, min(timeout, MAX_WAIT)
        self._asker, self._executor = uuid4().hex, executor_name()
        self._held: dict[str, PlaceRequest] = {}
        """The requests of the tasks that may be sent, or are in flight, by id."""

        self._ended: list[tuple[PlaceRequest, bool]] = []
        self._is_flushing = False
        """Whether a call is coming that will send them."""

        self._wanted: set[Limit] = set()
        """The limits that had no place in the last call."""

        self._announced: Note | None = None
        self._announced_at = 0.0
        self._may_have_changed = False
        """Whether there was a call since the last note."""

        self._lock = threading.Lock()
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._thread: SurvivingLoop | None = None
        self._breaker = CircuitBreaker("the result backend", first_delay=RETRY_DELAY, effect="tasks with limits wait")

    def limits_of(self, task_id: str) -> list[tuple[str, int, float | None]]:
        """Return the limits of a task that was reserved its places, as its message carries them."""
        request = self._held.get(task_id)
        return [] if request is None else [(limit.name, limit.number, limit.period) for limit in request.limits]

    # — for the executor —

    def reserve(self, requests: Sequence[PlaceRequest]) -> Mapping[str, Refusal]:
        now = time.monotonic()
        if not self._breaker.allows(now):
            return refused(requests, self._breaker.retry_at - now)
        job = Job(requests)
        self._submit(job)
        if not job.has_ended.wait(self._timeout):
            job.is_abandoned = True
            self._note(TimeoutError(f"no reply within {self._timeout:.1f} s"))
            return refused(requests, RETRY_DELAY)
        if job.error is not None:
            self._note(job.error)
            return refused(requests, RETRY_DELAY)
        if line := self._breaker.record_success(time.monotonic()):
            logger.warning(line)
        return job.refusals

    def renew(self, requests: Sequence[PlaceRequest]) -> None:
        self._held |= {request.id: request for request in requests}
        self._submit(Job(requests, is_renewal=True))

    def started(self, request: PlaceRequest) -> None:
        """Do nothing: the worker has taken the place."""

    def ended(self, request: PlaceRequest, *, was_sent: bool) -> None:
        self._held.pop(request.id, None)
        with self._lock:
            self._ended.append((request, was_sent))
            is_flushing, self._is_flushing = self._is_flushing, True
        if not is_flushing:
            self._submit(Job(()))

    def close(self) -> None:
        """Store the ends of tasks, and close the connection. Do not wait long for a store that does not answer."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join(CLOSE_TIMEOUT)

    def _submit(self, job: Job) -> None:
        self._jobs.put(job)
        if self._thread is None:
            self._thread = SurvivingLoop("celeriac-places", self._run_round)
            self._thread.start()

    def _note(self, error: Exception) -> None:
        if line := self._breaker.record_failure(time.monotonic(), error):
            logger.warning(line)

    # — in the thread —

    def _run_round(self) -> bool:
        try:
            job = self._jobs.get(timeout=NOTE_INTERVAL if self._may_have_changed else None)
        except Empty:
            self._announce()
            return True
        if job is None:
            self._call(Job(()))
            self._held, self._wanted = {}, set()
            self._announce()
            self._places.close()
            return False
        self._call(job)
        job.has_ended.set()
        if job.error is not None and self._ended:
            time.sleep(RETRY_DELAY)
            self._jobs.put(Job(()))
        self._may_have_changed = True
        if job.error is None and time.monotonic() >= self._announced_at + NOTE_INTERVAL:
            self._announce()
        return True

    def _announce(self) -> None:
        """Tell about the limits, if that has changed or was long ago. A store that does not answer is told later."""
        self._may_have_changed = False
        held = [limit for request in list(self._held.values()) for limit in request.limits]
        now, note = time.monotonic(), note_of(self._executor, held, self._wanted)
        if note == self._announced and (note is None or now < self._announced_at + RENEW_INTERVAL):
            return
        self._announced_at = now
        try:
            self._places.announce(self._asker, note)
            self._announced = note
        except Exception as error:
            if not is_server_error(error):
                raise

    def _call(self, job: Job) -> None:
        with self._lock:
            ended, self._ended, self._is_flushing = self._ended, [], False
        try:
            if job.is_renewal:
                self._places.renew(job.requests)
            requests = () if job.is_renewal or job.is_abandoned else job.requests
            if requests or ended:
                job.refusals = self._places.reserve(self._asker, requests, ended)
            if requests:
                self._held.update({request.id: request for request in requests if request.id not in job.refusals})
                self._wanted = {refusal.limit for refusal in job.refusals.values()}
        except Exception as error:
            with self._lock:
                self._ended = [*ended, *self._ended]
            if not is_server_error(error):
                raise
            job.error = error


class Job:
    """One call of the thread."""

    def __init__(self, requests: Sequence[PlaceRequest], *, is_renewal: bool = False) -> None:
        self.requests, self.is_renewal = requests, is_renewal
        self.has_ended = threading.Event()
        self.is_abandoned = False
        """Whether the executor has stopped waiting for the reply."""

        self.refusals: Mapping[str, Refusal] = {}
        self.error: Exception | None = None


def refused(requests: Sequence[PlaceRequest], retry_in: float) -> dict[str, Refusal]:
    """Return refusals of all requests, for a store that is not asked or does not answer."""
    return {request.id: Refusal(request.limits[0], 0, retry_in, UNAVAILABLE) for request in requests}
