"""Simulate hundreds of workers in one process: `python -m bench.simulated_workers BROKER BACKEND QUEUE`.

    queue ─► take ─► claim ─► runs until `finish` ─► result, acknowledgement
    leases ◄─ renewed every 2 s, by threads
    remote control ─► one reply for each worker

Claims, leases, results and replies are made by the functions of the worker, of Celery and of Kombu. Commands are not
run: only the processes of the workers are missing.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from celery import states
from celery.app.task import Context
from kombu import Consumer, Message

from bench.player import serve
from bench.simulated_control import answer_control
from celeriac import __version__
from celeriac.backend.claims import claims_for
from celeriac.backend.claims.claim import AlreadyClaimed, DeclaredDead, Granted, Lease, new_holder
from celeriac.broker.app import make_app
from celeriac.config.lease import RENEWAL_INTERVAL, boot_id
from celeriac.worker.outcome import outcome_of
from celeriac.worker.output import OutputPolicy
from celeriac.worker.supervisor.messages import CommandReport, StreamReport

TIMEOUT = 30.0  # seconds for one operation
IDLE = 0.02  # seconds that a look into an empty queue takes
DURATION = 0.1  # seconds that each command says that it has run


@dataclass(eq=False)
class Worker:
    name: str
    slots: int
    holder: str = field(default_factory=new_holder)
    running: dict[str, Message] = field(default_factory=dict)
    renewals: int = 0
    renewed_at: float = 0.0
    is_alive: bool = True


@dataclass(frozen=True)
class Start:
    """A task that a worker has claimed."""

    key: str
    id: str
    worker: str
    at: float
    """A time of the monotonic clock, which all processes share."""


class SimulatedWorkers:
    def __init__(self, broker: str, backend: str, queue: str) -> None:
        self._app = make_app(broker_url=broker, result_backend=backend)
        claims = claims_for(self._app, timeout=TIMEOUT)
        assert claims is not None
        self._claims, self._queue = claims, queue
        self._lock = threading.Lock()
        self._workers: list[Worker] = []
        self._free: deque[Worker] = deque()
        """One item for each open slot."""

        self._prefetch = 0
        """How many messages the workers may have: one for each slot. The dead ones keep theirs."""

        self._to_finish: deque[tuple[Worker, str]] = deque()
        self._starts: list[Start] = []
        self._problems: list[str] = []
        self._latest_renewal = 0.0
        """Seconds; the longest time from one renewal of a lease to the next."""

        for work in (self._run_tasks, lambda: answer_control(self._app, self._queue, self._live)):
            threading.Thread(target=self._guarded, args=(work,), daemon=True).start()

    # — moves —

    def start(self, count: int, slots: int, prefix: str, renewers: int = 1) -> None:
        """Start workers, whose leases `renewers` threads renew."""
        workers = [Worker(f"celery@{prefix}-{number}", slots) for number in range(count)]
        with self._lock:
            self._workers += workers
            self._prefetch += count * slots
            self._free.extend(worker for _ in range(slots) for worker in workers)
        for number in range(min(renewers, count)):
            mine = workers[number :: min(renewers, count)]
            threading.Thread(target=self._guarded, args=(lambda mine=mine: self._renew(mine),), daemon=True).start()

    def kill(self, count: int) -> list[str]:
        """End workers as `kill -9` does. Return the keys of the tasks that they ran."""
        with self._lock:
            dead = [worker for worker in self._workers if worker.is_alive][:count]
            for worker in dead:
                worker.is_alive = False
                self._prefetch -= worker.slots - len(worker.running)
            ids = {task_id for worker in dead for task_id in worker.running}
            return [start.key for start in self._starts if start.id in ids]

    def finish(self, count: int) -> None:
        """End this many running tasks well."""
        with self._lock:
            running = [(w, task_id) for w in self._workers if w.is_alive for task_id in w.running]
        self._to_finish.extend(running[:count])

    def state(self) -> dict[str, Any]:
        """Return what runs, and whether this process is fast enough for its workers."""
        with self._lock:
            live = self._live()
            running = sum(len(worker.running) for worker in live)
            latest, self._latest_renewal = self._latest_renewal, 0.0
        return {"workers": len(live), "running": running, "latest_renewal": latest, "problems": self._problems[:5]}

    def starts(self, after: float) -> list[tuple[str, str, float]]:
        """Return the key, the worker and the time of each start after that time."""
        with self._lock:
            return [(start.key, start.worker, start.at) for start in self._starts if start.at > after]

    # — threads —

    def _guarded(self, work: Any) -> None:
        try:
            work()
        except BaseException as error:
            self._problems.append(repr(error))
            raise

    def _live(self) -> list[Worker]:
        return [worker for worker in self._workers if worker.is_alive]

    def _renew(self, workers: list[Worker]) -> None:
        """Renew each lease every `RENEWAL_INTERVAL`, spread over that time."""
        pause = RENEWAL_INTERVAL / len(workers)
        due = time.monotonic()
        while any(worker.is_alive for worker in workers):
            for worker in workers:
                if worker.is_alive:
                    self._renew_one(worker)
                due += pause
                time.sleep(max(0.0, due - time.monotonic()))

    def _renew_one(self, worker: Worker) -> None:
        worker.renewals += 1
        now = time.monotonic()
        if worker.renewed_at:
            self._latest_renewal = max(self._latest_renewal, now - worker.renewed_at)
        reply = self._claims.renew(self._lease_of(worker))
        worker.renewed_at = now
        if not worker.is_alive:
            return
        if isinstance(reply, DeclaredDead):
            self._problems.append(f"{worker.name} was declared dead")
            return
        for task_id in reply.fenced | reply.cancelled:
            self._problems.append(f"{worker.name} lost {task_id}")

    def _lease_of(self, worker: Worker) -> Lease:
        return Lease(
            holder=worker.holder,
            name=worker.name,
            host=worker.name.partition("@")[2],
            pid=1,
            boot_id=boot_id(),
            queues=(self._queue,),
            slots=worker.slots,
            number=worker.renewals,
            running=tuple(worker.running),
            refused=0,
            version=__version__,
            keys=(),
            clock=time.time(),
        )

    def _run_tasks(self) -> None:
        """Take a task for each open slot, as a worker's consumer does, and end those that are to end."""
        with self._app.connection_for_read() as connection:
            queue = self._app.amqp.queues[self._queue]
            while not self._prefetch:
                time.sleep(IDLE)
            with Consumer(connection.default_channel, [queue], accept=["json"], on_message=self._start_one) as consumer:
                while True:
                    while self._to_finish:
                        self._finish_one(*self._to_finish.popleft())
                    consumer.qos(prefetch_count=self._prefetch)
                    with contextlib.suppress(TimeoutError):
                        connection.drain_events(timeout=IDLE)

    def _start_one(self, message: Message) -> None:
        worker = self._take_slot()
        if worker is None:  # all were killed meanwhile
            message.reject(requeue=True)
            return
        task_id = message.headers["id"]
        reply = self._claims.claim(
            task_id,
            holder=worker.holder,
            delivery=uuid4().hex,
            started_info={"pid": 1, "hostname": worker.name},
            request=Context(message.headers),
        )
        with self._lock:
            if isinstance(reply, Granted):
                worker.running[task_id] = message
                self._starts.append(Start(message.payload[0][0]["key"], task_id, worker.name, time.monotonic()))
                return
            self._free.append(worker)
        if not isinstance(reply, AlreadyClaimed):
            self._problems.append(f"claim of {task_id}: {reply}")
        message.ack()

    def _take_slot(self) -> Worker | None:
        with self._lock:
            while self._free:
                if (worker := self._free.popleft()).is_alive:
                    return worker
        return None

    def _finish_one(self, worker: Worker, task_id: str) -> None:
        with self._lock:
            message = worker.running.pop(task_id, None) if worker.is_alive else None
        if message is None:
            return
        report = report_of_success()
        outcome = outcome_of(report, {**message.payload[0][0], "env": {}, "secrets": []}, OutputPolicy())
        self._app.backend.store_result(task_id, outcome, states.SUCCESS, request=Context(message.headers))
        message.ack()
        with self._lock:
            self._free.append(worker)


def report_of_success() -> CommandReport:
    nothing = StreamReport(path=None, size=0, left_out=0, tail="")
    return CommandReport(
        pid=1,
        status=0,
        started=time.time() - DURATION,
        duration=DURATION,
        peak_memory=4 * 2**20,
        stopped=None,
        leftovers_ended=False,
        error=None,
        output_error=None,
        stdout=nothing,
        stderr=nothing,
    )


def main(words: Iterable[str]) -> None:
    simulated = SimulatedWorkers(*words)
    serve({name: getattr(simulated, name) for name in ("start", "kill", "finish", "state", "starts")})


if __name__ == "__main__":
    main(sys.argv[1:])
