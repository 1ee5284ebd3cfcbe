"""The children of a worker that run workloads, one at a time each, and how they are reached.

worker: revoke ─► a note for the child, then TERM ─► child: Airflow's supervisor ─► the task
                  later KILL, for the task                   └─► REVOKED, once the task has ended
        supersede ─► the same, and soon                      └─► nothing more is said: it goes on elsewhere
        silence ─► guardian ─► a note, then TERM, KILL, for the task ─► lost

A child runs a workload in its main thread, as Airflow's supervisor demands, so no thread of it can listen: what it
must know lies in a folder as an empty file.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from billiard.util import set_pdeathsig
from celery import signals
from celery.worker import state as worker_state

from celeriac.airflow.task_reaper import TaskReaper, silenced, watched
from celeriac.worker.acks import Acks, ReconnectSafeRequest
from celeriac.worker.supervisor.lease_policy import SILENCE_GRACE

GOING = "going"
REVOKED, SUPERSEDED, DOUBTED = "revoked", "superseded", "doubted"
TICK = 0.1  # seconds between two looks whether what was ended has ended
LAST_REPORT = 10.0  # seconds for a supervisor to report, once its task was killed
LATE = 2.0  # seconds between why a workload is to end and TERM to its child, which may have ended it by then


class Ended(Exception):
    """The workload was ended before there was a task to end."""


class WorkloadPoolControl:
    """The worker's `Hands`, and the child's ears: a child is a copy of the worker, this object included."""

    def __init__(self, cleanup_time: float) -> None:
        """`cleanup_time`: seconds that a task has for its `on_kill`."""
        self._cleanup_time = cleanup_time
        self._folder = Path(tempfile.mkdtemp(prefix="celeriac-airflow-"))
        self._guardian = TaskReaper(self._folder)
        self._worker: Any = None
        self._late_until = float("-inf")
        signals.worker_process_init.connect(self._begin_child, weak=False)

    # — in the worker —

    def begin(self, worker: Any) -> None:
        self._worker = worker

    def revoke(self, request: Any) -> None:
        self._call_back(request, REVOKED, self._cleanup_time)

    def heartbeat(self) -> None:
        self._guardian.heartbeat()

    def supersede(self, request: Any) -> None:
        for one in running() if request is None else [request]:
            self._call_back(one, SUPERSEDED, min(SILENCE_GRACE, self._cleanup_time))

    def has_started(self, request: Any) -> bool:
        return not self._note_of(DOUBTED, request.id).exists()

    def take_no_more(self) -> None:
        (self._folder / GOING).touch()

    def end(self) -> None:
        """Returns once all has ended, or was killed."""
        requests = running()
        for request in requests:
            send(request.worker_pid, signal.SIGTERM)
        deadline = time.monotonic() + self._cleanup_time
        while requests and time.monotonic() < deadline:
            time.sleep(TICK)  # Celery tells nobody that a request has ended
            requests = running()
        for request in requests:
            if not kill_below(request.worker_pid):
                send(request.worker_pid, signal.SIGKILL)

    def close(self) -> None:
        self._guardian.end()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _call_back(self, request: Any, why: str, grace: float) -> None:
        """Once for each reason, however often that is heard: TERM would disturb a task that is about to end."""
        if why in request.told:
            return
        self._note_of(why, request.id).touch()
        if request.worker_pid is not None:
            request.told |= {why}
            send(request.worker_pid, signal.SIGTERM)
            self._call_after(grace, self._kill_task, request)

    def _call_after(self, seconds: float, callback: Callable[[Any], None], request: Any) -> None:
        """From any thread."""
        self._worker.hub.call_soon(self._worker.timer.call_after, seconds, callback, (request,))
        self._worker.warden.wake()

    def _kill_task(self, request: Any) -> None:
        """A task that does not heed TERM. Its supervisor lives, and tells Airflow."""
        if request in running():
            kill_below(request.worker_pid)
            self._call_after(LAST_REPORT, self._kill_child, request)

    def _kill_child(self, request: Any) -> None:
        if request in running():
            self._worker.pool.terminate_job(request.worker_pid, signal.SIGKILL)  # which Celery then takes for revoked

    def _note_of(self, why: str, task_id: str) -> Path:
        return self._folder / f"{why}-{task_id.replace('/', '_')}"

    # — in a child —

    def is_revoked(self, task_id: str) -> bool:
        return self._note_of(REVOKED, task_id).exists()

    def is_superseded(self, task_id: str) -> bool:
        return self._note_of(SUPERSEDED, task_id).exists()

    @property
    def was_silenced(self) -> bool:
        """Whether the guardian has ended a task of this child."""
        return silenced(self._folder, os.getpid()).exists()

    @property
    def is_going(self) -> bool:
        return (self._folder / GOING).exists()

    def forget(self, task_id: str) -> None:
        self._late_until = time.monotonic() + LATE
        for why in (REVOKED, SUPERSEDED):
            self._note_of(why, task_id).unlink(missing_ok=True)

    def was_told_to_end(self, task_id: str) -> bool:
        return self.is_revoked(task_id) or self.is_superseded(task_id) or self.was_silenced

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """The guardian watches over what runs here."""
        silenced(self._folder, os.getpid()).unlink(missing_ok=True)
        watched(self._folder, os.getpid()).touch()
        try:
            yield
        finally:
            watched(self._folder, os.getpid()).unlink(missing_ok=True)

    @contextlib.contextmanager
    def in_doubt(self, task_id: str) -> Iterator[None]:
        """While it is not known whether the task is to begin here."""
        note = self._note_of(DOUBTED, task_id)
        note.touch()
        try:
            yield
        finally:
            note.unlink(missing_ok=True)

    def _begin_child(self, **_: Any) -> None:
        child = os.getpid()
        signal.signal(signal.SIGTERM, self._on_term_between_workloads)

        def end_with_the_supervisor() -> None:
            """A task does not outlive whoever reports for it; what a task itself starts is its own concern."""
            if os.getppid() == child:
                end_with_the_parent()

        os.register_at_fork(after_in_child=end_with_the_supervisor)

    def _on_term_between_workloads(self, *_: Any) -> None:
        """If it was meant for a workload that has just ended, or that finds its note when it begins, it must not cost
        the child: Celery would store a failure of that workload. Else it is the pool's, and ends the child."""
        if self.is_going or not self._has_told_lately():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)

    def _has_told_lately(self) -> bool:
        if time.monotonic() < self._late_until:
            return True
        notes = [note for why in (REVOKED, SUPERSEDED) for note in self._folder.glob(f"{why}-*")]
        for note in (*notes, silenced(self._folder, os.getpid())):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - note.stat().st_mtime < LATE:
                    return True
        return False


@contextlib.contextmanager
def term_can_wait() -> Iterator[None]:
    """While no workload runs: why TERM came is in a note."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def term_is_for_the_task() -> Iterator[None]:
    """While a workload runs. Airflow 3.3 forwards TERM to the task it waits for; this does so in the other versions,
    and answers it at other times."""

    def on_term(*_: Any) -> None:
        tasks = psutil.Process().children()
        if not tasks:
            raise Ended("ended before its task began")
        for task in tasks:
            send(task.pid, signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, on_term)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class WorkloadRequest(ReconnectSafeRequest):
    hands: WorkloadPoolControl
    told: frozenset[str] = frozenset()
    """Why its child was told to end it."""

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        super().on_accepted(pid, time_accepted)
        if self.id in worker_state.revoked:  # on its way to the child when the revoke came
            self.hands.revoke(self)


def request_class(acks: Acks, children: WorkloadPoolControl) -> type[WorkloadRequest]:
    return type("WorkloadRequest", (WorkloadRequest,), {"acks": acks, "hands": children})


def running() -> list[Any]:
    return [request for request in list(worker_state.active_requests) if request.worker_pid is not None]


def kill_below(pid: int) -> bool:
    """Whether there was anything to kill."""
    try:
        below = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return False
    for process in below:
        send(process.pid, signal.SIGKILL)
    return bool(below)


def end_with_the_parent() -> None:
    """Have the system send TERM to this process when its parent dies, however it dies."""
    with contextlib.suppress(OSError):  # Linux alone can
        set_pdeathsig(signal.SIGTERM)  # Celery's own sends KILL, whatever it is told


def send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
