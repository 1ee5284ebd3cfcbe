"""A worker's claims and its lease: what it may start, and that others know it is alive.

task ─► claim ─► go, or not
lease ─► renewed every few seconds, by a thread that nothing here keeps waiting ─► words of life for the supervisors
      └► what was called back, what is no longer ours ─► Hands

Who cannot renew must take itself for dead before others do, and end what it runs: that is the supervisors' part. Unless
the store is away for everybody, for then nobody can declare anybody dead. A command starts only while the lease under
which it was claimed is good, however long its thread, or this process, was kept from going on.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from queue import Empty, SimpleQueue
from random import Random
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from celery.worker import state as worker_state

from celeriac.backend.claims.claim import ClaimReply, Claims, DeclaredDead, Lease, Renewed, new_holder
from celeriac.config.lease import RENEWAL_INTERVAL, boot_id
from celeriac.executor.backoff import backoff
from celeriac.worker.log import log_event, logger
from celeriac.worker.outcome import HOST
from celeriac.worker.pool_control import PoolControl
from celeriac.worker.probe import Place, is_away_for_everybody

if TYPE_CHECKING:
    from celeriac.worker.consumer import Worker

FRESH = 5.0  # seconds that a lease is good enough to claim under
PATIENCE = 2.0  # seconds for a renewal, until the store counts as away
GOODBYE = 3.0  # seconds
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0  # seconds between two tries to claim


class SharedLease:
    """Who this worker is, and when its lease was last good: in memory that its children share."""

    LAYOUT = struct.Struct("=32sd")

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self.write(new_holder(), float("-inf"))

    def write(self, holder: str, renewed_at: float) -> None:
        self.LAYOUT.pack_into(self._memory, 0, holder.encode(), renewed_at)

    def read(self) -> tuple[str, float]:
        """The holder; and until when, on the machine's monotonic clock, nobody can have declared it dead."""
        holder, renewed_at = self.LAYOUT.unpack_from(self._memory)
        return holder.decode(), renewed_at + FRESH

    @property
    def holder(self) -> str:
        return self.read()[0]


class LeaseManager:
    def __init__(
        self,
        claims: Claims,
        hands: PoolControl,
        *,
        store: Place | None,
        is_strict: bool = False,
        track_started: bool = True,
    ) -> None:
        """`store` is where that is, if it can be probed. One that is strict ends what runs whenever its lease cannot be
        renewed, whatever the reason. With `track_started` Celery's STARTED is stored of what is claimed."""
        self.claims, self._hands, self._store, self._is_strict = claims, hands, store, is_strict
        self._track_started = track_started
        self.card = SharedLease()
        self._random = Random()
        self._worker: Worker | None = None
        self._draining = False
        self._gone = threading.Event()
        self._now = threading.Event()
        self._to_renew: SimpleQueue[Lease | None] = SimpleQueue()
        self._renewed: SimpleQueue[tuple[Lease, Renewed | DeclaredDead | Exception, float]] = SimpleQueue()
        self._numbers = count(1)
        self._is_renewing = False
        self._was_away = False

    # — for tasks, also in children —

    def claim(self, task_id: str, request: Any, is_going: Callable[[], bool]) -> tuple[ClaimReply | None, float]:
        """The answer, and until when, on the machine's monotonic clock, the task must have started. Waits for a store
        that is away; None if the worker is going meanwhile."""
        delivery = uuid4().hex
        started_info = {"pid": os.getpid(), "hostname": request.hostname} if self._track_started else None
        for _ in self._tries(is_going):
            holder, good_until = self.card.read()
            if time.monotonic() < good_until:
                try:
                    answer = self.claims.claim(
                        task_id, holder=holder, delivery=delivery, started_info=started_info, request=request
                    )
                except self.claims.errors as error:
                    logger.debug("a claim is tried again: %s", error)
                else:
                    return answer, good_until
        return None, 0.0

    def still_owns(self, task_id: str, is_going: Callable[[], bool]) -> bool:
        """Whether it is still this worker's to run. Waits for a store that is away; False if the worker is going
        meanwhile."""
        for _ in self._tries(is_going):
            with contextlib.suppress(*self.claims.errors):
                claim = self.claims.read([task_id]).get(task_id)
                return claim is not None and claim.holder == self.card.holder and not claim.fenced
        return False

    def _tries(self, is_going: Callable[[], bool]) -> Iterator[None]:
        """With pauses between them, until the worker is going."""
        tries = 0
        while not is_going():
            yield
            tries += 1
            time.sleep(backoff(FIRST_PAUSE, tries, LONGEST_PAUSE, self._random))  # nothing tells when the store is back

    def release(self, task_id: str) -> bool:
        """Whether the task may run elsewhere, under the same id. What cannot be said is found out by executors."""
        try:
            return self.claims.release(task_id, holder=self.card.holder)
        except self.claims.errors as error:
            logger.warning("a claim could not be given back: %s", error)
            return True

    # — for the worker —

    def watch(self, worker: Worker) -> None:
        """Take up the lease, and keep it. Called with each new connection to the broker; the first call counts."""
        if self._worker is not None:
            return
        self._worker = worker
        threading.Thread(target=self._renew, name="celeriac-renewal", daemon=True).start()
        threading.Thread(target=self._run, name="celeriac-lease", daemon=True).start()

    def drain(self) -> None:
        """Have everybody know at once that this worker takes nothing more."""
        self._draining = True
        self._now.set()

    def end_lease(self) -> None:
        """The goodbye. Does not wait long for a store that is away."""
        if self._worker is None or self._gone.is_set():
            return
        self._gone.set()
        self._now.set()
        self._to_renew.put(None)
        farewell = threading.Thread(target=self._say_goodbye, name="celeriac-goodbye", daemon=True)
        farewell.start()
        farewell.join(GOODBYE)

    def _say_goodbye(self) -> None:
        with contextlib.suppress(*self.claims.errors):  # then the lease runs out
            self.claims.end_lease(self.card.holder)
            self.claims.close()

    # — the lease —

    def _run(self) -> None:
        while not self._gone.is_set():
            began = time.monotonic()
            self._now.clear()
            if not self._is_renewing:
                self._is_renewing = True
                self._to_renew.put(self._lease())
            self._take_answer()
            self._now.wait(max(0.0, began + RENEWAL_INTERVAL - time.monotonic()))

    def _renew(self) -> None:
        """Beside `_run`: no client library keeps its deadline in every case."""
        while (lease := self._to_renew.get()) is not None:
            began = time.monotonic()
            try:
                said: Renewed | DeclaredDead | Exception = self.claims.renew(lease)
            except self.claims.errors as error:
                said = error
            self._renewed.put((lease, said, began))

    def _take_answer(self) -> None:
        try:
            lease, said, began = self._renewed.get(timeout=PATIENCE)
        except Empty:
            self._store_is_away(TimeoutError(f"no answer in {PATIENCE:g} s"))
            return
        self._is_renewing = False
        match said:
            case Exception():
                self._store_is_away(said)
            case DeclaredDead():
                self._begin_anew()
            case Renewed():
                self._was_away = False
                self.card.write(lease.holder, began)
                if time.monotonic() - began < PATIENCE:  # of what came late, others count the time from its beginning
                    self._hands.heartbeat()
                self._obey(said)

    def _store_is_away(self, error: Exception) -> None:
        if self._gone.is_set():
            return
        for_everybody = not self._is_strict and is_away_for_everybody(self._store, error)
        if not self._was_away:
            self._was_away = True
            what_follows = "what runs goes on" if for_everybody else "what runs is ended soon, for others run it then"
            logger.warning("the lease cannot be renewed, %s: %s", what_follows, error)
        if for_everybody:
            self._hands.heartbeat()

    def _begin_anew(self) -> None:
        """Others took this worker for dead, and run elsewhere what it runs."""
        log_event("taken for dead: what runs is ended, for it runs elsewhere")
        self._hands.supersede(None)
        self.card.write(new_holder(), float("-inf"))
        self._now.set()

    def _obey(self, said: Renewed) -> None:
        if not said.cancelled and not said.fenced:
            return
        for request in members(worker_state.active_requests):
            if request.id in said.fenced:
                self._hands.supersede(request)
            elif request.id in said.cancelled:
                self._hands.revoke(request)

    def _lease(self) -> Lease:
        worker = self._worker
        assert worker is not None  # noqa: S101 - `watch` comes first
        active = members(worker_state.active_requests)
        running = [request.id for request in active if self._hands.has_started(request)]
        begun = {request.id for request in active}
        return Lease(
            holder=self.card.holder,
            name=worker.hostname,
            host=HOST,
            pid=os.getpid(),
            boot_id=boot_id(),
            queues=() if self._draining else tuple(sorted(worker.app.amqp.queues.consume_from)),
            slots=worker.slots,
            number=next(self._numbers),
            draining=self._draining,
            running=tuple(running),
            held=tuple(request.id for request in members(worker_state.reserved_requests) if request.id not in begun),
        )


def members(requests: Iterable[Any]) -> list[Any]:
    """Of a set that other threads change."""
    while True:
        with contextlib.suppress(RuntimeError):
            return list(requests)
