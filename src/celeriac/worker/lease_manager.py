"""A worker's claims and its lease: its right to start tasks, and its proof that it is alive.

task  ─► claim ─► granted, or not
lease ─► renewed every few seconds, by a thread that no task can block ─► heartbeats for the supervisors
      └► tasks that were cancelled or fenced ─► PoolControl

A worker that cannot renew must stop its commands before its lease expires elsewhere; the supervisors enforce that.
`lease_state_machine` holds the rules. A command starts only while the lease of its claim is good, even if its thread or
this process was suspended for long.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import threading
import time
from collections.abc import Callable, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from celeriac import __version__
from celeriac.backend.claims.claim import ClaimReply, Claims, DeclaredDead, Granted, Lease, Renewed, new_holder
from celeriac.backend.claims.places import LeaveReason, Places
from celeriac.broker.deadline_thread import DeadlineThread
from celeriac.config.lease import boot_id
from celeriac.server_errors import problem_of
from celeriac.surviving_loop import SurvivingLoop
from celeriac.worker.celery_internals import active_requests, reserved_requests
from celeriac.worker.lease_state_machine import (
    Decision,
    DropConnections,
    Heartbeat,
    LeaseRenewed,
    LeaseStateMachine,
    ProbeServer,
    Renew,
    StopAll,
    StopTasks,
    Warn,
)
from celeriac.worker.log import log_event, logger
from celeriac.worker.outage import ServerRetry
from celeriac.worker.outcome import HOST
from celeriac.worker.pool_control import PoolControl
from celeriac.worker.probe import Server
from celeriac.worker.renewals import Renewals
from celeriac.worker.taken_places import NoPlace, TakenPlace, TakenPlaces, no_places

if TYPE_CHECKING:
    from celeriac.worker.consumer import Worker

CLAIM_VALIDITY = 5.0  # seconds after a renewal in which the worker may claim tasks, and start claimed ones
LEASE_END_TIMEOUT = 3.0  # seconds
RELEASE_TIMEOUT = 5.0  # seconds; less than a worker that ends waits for its last results
MAX_ROUND_DELAY = 1.0  # seconds after an unexpected exception until the lease is renewed again


class SharedLease:
    """The holder and the last renewal of this worker's lease, in memory that its children share."""

    LAYOUT = struct.Struct("=32sd")

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self.write(new_holder(), float("-inf"))

    def write(self, holder: str, renewed_at: float) -> None:
        """Store the holder, and a time of the monotonic clock."""
        self.LAYOUT.pack_into(self._memory, 0, holder.encode(), renewed_at)

    def read(self) -> tuple[str, float]:
        """Return the holder, and the time of the monotonic clock until which it cannot have been declared dead."""
        holder, renewed_at = self.LAYOUT.unpack_from(self._memory)
        return holder.decode(), renewed_at + CLAIM_VALIDITY


class LeaseManager:
    """Claims tasks under the worker's lease, and renews the lease."""

    def __init__(
        self,
        claims: Claims,
        pool_control: PoolControl,
        *,
        server: Server | None,
        is_strict: bool = False,
        track_started: bool = True,
        places: Callable[[], Places | None] = no_places,
        shared_lease: SharedLease | None = None,
    ) -> None:
        """`server` stores the claims; None if it cannot be probed. With `is_strict`, commands end whenever the lease
        cannot be renewed, for any reason. With `track_started`, a claim also stores Celery's STARTED. `places` opens
        the store of the places of limits."""
        self.claims, self._pool_control = claims, pool_control
        self._track_started, self._taken_places = track_started, TakenPlaces(places)
        self._shared_lease = shared_lease or SharedLease()
        self._machine = LeaseStateMachine(is_strict=is_strict)
        self._worker: Worker | None = None
        self._is_draining = False
        self._drained_by: str | None = None
        self._has_ended = threading.Event()
        self._renewals = Renewals(claims, server, on_reply=self._on_reply, on_error=self._on_error)
        self._loop = SurvivingLoop(
            "celeriac-lease", self._run_round, wait=self._has_ended.wait, max_delay=MAX_ROUND_DELAY
        )
        self._retry = ServerRetry("the result backend", "claims wait")
        self._numbers = count(1)

    @property
    def is_draining(self) -> bool:
        """Whether this worker takes no more tasks."""
        return self._is_draining

    def age(self, now: float) -> float | None:
        """Return the seconds since the lease was renewed; None if it never was, or this worker was declared dead."""
        renewed_at = self.renewed_at()
        return None if renewed_at is None else max(0.0, now - renewed_at)

    @property
    def holder(self) -> str:
        """The holder under which this worker claims now."""
        return self._shared_lease.read()[0]

    def renewed_at(self) -> float | None:
        """Return when the lease was renewed, by the monotonic clock; None if it never was, or this worker was declared
        dead."""
        good_until = self._shared_lease.read()[1]
        return good_until - CLAIM_VALIDITY if good_until > float("-inf") else None

    @property
    def renewal_age(self) -> float:
        """Seconds since the last renewal of the lease; infinite before the first one."""
        return time.monotonic() + CLAIM_VALIDITY - self._shared_lease.read()[1]

    # — for tasks, also in children —

    def claim(
        self, task_id: str, request: Any, is_shutting_down: Callable[[], bool]
    ) -> tuple[ClaimReply | None, float]:
        """Claim a task. Return the reply, and the time of the monotonic clock until which the task must have started.

        While the store is unavailable or refuses, try again until the worker shuts down; then the reply is None.
        """
        reply, good_until = self.claim_with_limits(task_id, request, is_shutting_down, ())
        assert not isinstance(reply, NoPlace)  # noqa: S101 - it has no limits
        return reply, good_until

    def claim_with_limits(
        self, task_id: str, request: Any, is_shutting_down: Callable[[], bool], limits: Sequence[Sequence[Any]]
    ) -> tuple[ClaimReply | NoPlace | None, float]:
        """Do the same for a task with limits. Its places are taken first, and given up if the claim is not granted."""
        delivery = uuid4().hex
        started_info = {"pid": os.getpid(), "hostname": request.hostname} if self._track_started else None

        def attempt() -> tuple[ClaimReply | NoPlace, float] | None:
            holder, good_until = self._shared_lease.read()
            if time.monotonic() >= good_until:
                return None
            if limits and (refusal := self._taken_places.take(task_id, limits, holder, delivery)) is not None:
                return (refusal, good_until) if refusal.is_final else None
            reply = self.claims.claim(
                task_id, holder=holder, delivery=delivery, started_info=started_info, request=request
            )
            # The same delivery gets the same reply. So a reply that took too long is asked for again.
            is_late = isinstance(reply, Granted) and time.monotonic() >= good_until
            return None if is_late else (reply, good_until)

        reply, good_until = self._retry.call_until(attempt, is_shutting_down) or (None, 0.0)
        if limits and not isinstance(reply, Granted):
            self.leave_places(task_id, LeaveReason.NOT_STARTED)
        return reply, good_until

    def leave_places(self, task_id: str, reason: LeaveReason) -> None:
        """Give up the places of a task, if it has any.

        While the store is unavailable or refuses, try again for as long as this worker has its lease: with the lease
        end its places. A worker that drains does not wait long for a task that has not started.
        """
        if (leave := self._taken_places.pop(task_id)) is not None:
            self._leave(leave, reason)

    def leave_places_of_killed(self, pid: int, task_id: str, limits: Sequence[Sequence[Any]]) -> None:
        """Give up the places of a task whose process was killed. Does not wait."""
        if (leave := self._taken_places.of_process(pid, task_id, limits, self.holder)) is not None:

            def give_up() -> bool:
                self._leave(leave, LeaveReason.KILLED)
                return False

            SurvivingLoop("celeriac-killed", give_up).start()

    def _leave(self, leave: TakenPlace, reason: LeaveReason) -> None:
        deadline = time.monotonic() + RELEASE_TIMEOUT

        def is_over() -> bool:
            gives_up = reason is LeaveReason.NOT_STARTED and self._is_draining and time.monotonic() >= deadline
            return gives_up or leave.holder != self.holder

        def attempt() -> bool:
            leave(reason)
            return True

        self._retry.call_until(attempt, is_over)

    def still_owns(self, task_id: str, is_shutting_down: Callable[[], bool]) -> bool:
        """Return whether this worker's claim of a task is valid.

        While the store is unavailable or refuses, try again until the worker shuts down; then return False.
        """

        def attempt() -> bool:
            claim = self.claims.read([task_id]).get(task_id)
            return claim is not None and claim.holder == self.holder and not claim.fenced

        return bool(self._retry.call_until(attempt, is_shutting_down))

    def release(self, task_id: str) -> bool:
        """Release a claim. Return whether the task may run elsewhere under the same id; True if the store has not
        answered in time: executors find out that the claim is void."""
        return self._ask(lambda: self.claims.release(task_id, holder=self.holder))

    def is_claimed(self, task_id: str) -> bool:
        """Return whether a task is claimed, or fenced; True if the store has not answered in time."""
        return self._ask(lambda: task_id in self.claims.read([task_id]))

    def _ask(self, question: Callable[[], bool]) -> bool:
        """Return the answer of the store. While it is unavailable or refuses, try again for `RELEASE_TIMEOUT`; then
        return True."""
        deadline = time.monotonic() + RELEASE_TIMEOUT
        answer = self._retry.call_until(question, lambda: time.monotonic() >= deadline)
        return True if answer is None else answer

    # — for the worker —

    def start(self, worker: Worker) -> None:
        """Take up the lease and keep renewing it. Later calls have no effect: each new connection to the broker makes
        one."""
        if self._worker is not None:
            return
        self._worker = worker
        self._loop.start()

    def drain(self, asked_by: str | None = None) -> None:
        """Publish at once that this worker accepts no more tasks, and that `asked_by` wants it."""
        self._is_draining, self._drained_by = True, asked_by
        self.renew()

    def renew(self) -> None:
        """Publish at once what has changed in the lease. Safe in any thread."""
        self._renewals.wake(self._renew_now)

    def end_lease(self) -> None:
        """End the lease. Wait a limited time for a store that does not answer."""
        if self._worker is None or self._has_ended.is_set():
            return
        self._machine.end()
        self._has_ended.set()
        self._renewals.wake(self._renew_now)
        with self._loop.survivor.guard(), contextlib.suppress(TimeoutError):  # then the lease expires
            DeadlineThread[None]("celeriac-goodbye").call(self._send_lease_end, LEASE_END_TIMEOUT)

    def _send_lease_end(self) -> None:
        self._retry.call(lambda: self.claims.end_lease(self.holder))
        self.claims.close()
        self._taken_places.close()

    def _renew_now(self) -> Sequence[Decision]:
        self._machine.renew_now()
        return ()

    # — the lease —

    def _run_round(self) -> bool:
        if self._has_ended.is_set():
            return False
        self._carry_out(self._machine.on_tick(time.monotonic()))
        self._carry_out(self._renewals.wait(self._machine.seconds_to_wait(time.monotonic())))
        return True

    def _carry_out(self, decisions: Sequence[Decision]) -> None:
        for decision in decisions:
            match decision:
                case Renew(number, over_new_connection):
                    self._renewals.begin(number, self._lease(), over_new_connection=over_new_connection)
                case ProbeServer(number):
                    self._renewals.begin_probe(number, self._machine.on_probe)
                case LeaseRenewed(holder, sent_at):
                    self._shared_lease.write(holder, sent_at)
                case Heartbeat():
                    self._pool_control.heartbeat()
                case StopTasks(cancelled, fenced):
                    self._stop(cancelled, fenced)
                case StopAll(holder):
                    log_event("declared dead: ending all tasks, because they run elsewhere")
                    self._pool_control.supersede(None)
                    self._shared_lease.write(holder, float("-inf"))
                case DropConnections():
                    self.claims.cut()
                case Warn(message):
                    logger.warning("%s", message)

    def _on_reply(self, number: int, reply: Renewed | DeclaredDead, holder: str, sent_at: float) -> Sequence[Decision]:
        if holder != self.holder:  # declared dead meanwhile
            return ()
        return self._machine.on_reply(number, reply, holder, sent_at, time.monotonic())

    def _on_error(self, number: int, error: Exception) -> Sequence[Decision]:
        if problem_of(error) is None:
            self._loop.survivor.record(error)
        return self._machine.on_error(number, error, time.monotonic())

    def _stop(self, cancelled: frozenset[str], fenced: frozenset[str]) -> None:
        for request in active_requests():
            if request.id in fenced:
                self._pool_control.supersede(request)
            elif request.id in cancelled:
                self._pool_control.revoke(request)

    def _lease(self) -> Lease:
        worker = self._worker
        assert worker is not None  # noqa: S101 - `start` comes first
        hold = worker.parts.start_hold
        waiting, resources = worker.parts.waiting, worker.parts.resources
        active = [request for request in active_requests() if request.id not in waiting]
        running = [request.id for request in active if self._pool_control.has_started(request)]
        active_ids = {request.id for request in active}
        pause = worker.parts.pause
        return Lease(
            holder=self.holder,
            name=worker.hostname,
            host=HOST,
            pid=os.getpid(),
            boot_id=boot_id(),
            queues=() if self._is_draining or pause.is_on else tuple(sorted(worker.app.amqp.queues.consume_from)),
            slots=worker.slots,
            number=next(self._numbers),
            draining=self._is_draining,
            drained_by=self._drained_by,
            paused=pause.is_on,
            paused_by=pause.asked_by,
            paused_queues=tuple(sorted(pause.queues)),
            waits=None if hold is None else hold.words,
            resources=None if resources is None else resources.total,
            running=tuple(running),
            held=tuple(request.id for request in reserved_requests() if request.id not in active_ids),
            refused=worker.parts.refusals.count,
            version=__version__,
            keys=worker.parts.verifier.fingerprints,
            clock=time.time(),
        )
