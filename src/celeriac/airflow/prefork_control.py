"""The worker's control over its prefork children. Each child runs one workload at a time.

worker: revoke ─► a marker for the child, then TERM ─► child: Airflow's supervisor ─► the task
                  later KILL, for the task                  └─► REVOKED, when the task has ended
        supersede ─► the same, but KILL follows soon        └─► nothing is stored: the task runs elsewhere
        no heartbeat ─► task reaper ─► a marker, then TERM, KILL, for the task ─► lost

Airflow's supervisor must run in the child's main thread, and it forks, so the child may have no other thread. So no
thread of the child can receive requests: instead, the worker makes markers, which are empty files in a shared folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from celery import signals

from celeriac.airflow.processes import end_with_parent, is_alive, kill_descendants, send_signal
from celeriac.airflow.task_reaper import TaskReaper, reaped_marker, task_marker, watched_marker
from celeriac.worker.celery_internals import active_requests
from celeriac.worker.supervisor.lease_policy import SILENCE_GRACE
from celeriac.worker.temporary_folder import make_temporary_folder

SHUTTING_DOWN = "shutting-down"
GRACE_OVER = "grace-over"
REVOKED, SUPERSEDED, UNDECIDED = "revoked", "superseded", "undecided"
END_POLL_INTERVAL = 0.1  # seconds between two checks whether ended workloads have ended
REPORT_TIMEOUT = 10.0  # seconds for a supervisor to report to Airflow after its task was killed
MAX_TERM_DELAY = 2.0  # seconds from a marker to its TERM; the workload may end in between


class EndedBeforeStart(Exception):
    """TERM came before the workload had a task process to forward it to."""


class WorkloadPoolControl:
    """The worker's `PoolControl`. A child is a fork of the worker, and uses its own copy of this object."""

    def __init__(self, cleanup_time: float) -> None:
        """`cleanup_time` is the time, in seconds, that a task has for its `on_kill`."""
        self._cleanup_time = cleanup_time
        self._folder = make_temporary_folder("celeriac-airflow-")
        self._reaper = TaskReaper(self._folder, min(SILENCE_GRACE, cleanup_time))
        self._worker: Any = None
        self._expects_late_term_until = float("-inf")
        signals.worker_process_init.connect(self._set_up_child, weak=False)

    # — in the worker —

    def attach(self, worker: Any) -> None:
        self._worker = worker
        self._reaper.start()

    def revoke(self, request: Any) -> None:
        self._end_request(request, REVOKED, self._cleanup_time)

    def heartbeat(self) -> None:
        self._reaper.heartbeat()

    def supersede(self, request: Any) -> None:
        for superseded in running_requests() if request is None else [request]:
            self._end_request(superseded, SUPERSEDED, min(SILENCE_GRACE, self._cleanup_time))

    def has_started(self, request: Any) -> bool:
        """Return whether the workload counts as running here. It does not while its claim is undecided."""
        return not self._marker(UNDECIDED, request.id).exists()

    def has_task_of(self, child: int) -> bool:
        """Return whether a task still runs that a child has begun. The child may be dead."""
        markers = self._folder.glob(task_marker(self._folder, child, "*").name)
        return any(is_alive(int(marker.name.rpartition("-")[2])) for marker in markers)

    def call_after(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call back in the event loop."""
        self._call_after(seconds, lambda _: callback(), None)

    def take_no_more(self) -> None:
        """Make the children hand back workloads that have not started."""
        (self._folder / SHUTTING_DOWN).touch()

    def end(self) -> None:
        """End all workloads. Return when they have ended or were killed.

        A child that has become free may have begun another one meanwhile: it is about to hand that back."""
        requests = running_requests()
        (self._folder / GRACE_OVER).touch()
        for request in requests:
            request.end_reasons |= {GRACE_OVER}
            send_signal(request.worker_pid, signal.SIGTERM)
        deadline = time.monotonic() + self._cleanup_time
        while requests and time.monotonic() < deadline:
            time.sleep(END_POLL_INTERVAL)  # Celery has no event for the end of a request
            running = running_requests()
            requests = [request for request in requests if request in running]
        for request in requests:
            if not kill_descendants(request.worker_pid):
                send_signal(request.worker_pid, signal.SIGKILL)

    def close(self) -> None:
        self._reaper.end()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _end_request(self, request: Any, reason: str, grace: float) -> None:
        """End a workload. Each reason sends one TERM, even if repeated: a second TERM would cut `on_kill` short."""
        if reason in request.end_reasons:
            return
        self._marker(reason, request.id).touch()
        if request.worker_pid is not None:
            request.end_reasons |= {reason}
            send_signal(request.worker_pid, signal.SIGTERM)
            self._call_after(grace, self._kill_task, request)

    def _call_after(self, seconds: float, callback: Callable[[Any], None], request: Any) -> None:
        """Call back in the event loop. May be called from any thread."""
        self._worker.hub.call_soon(self._worker.timer.call_after, seconds, callback, (request,))
        self._worker.parts.shutdown.wake()

    def _kill_task(self, request: Any) -> None:
        """Kill a task that ignores TERM. Its supervisor stays alive, and reports the end to Airflow."""
        if request in running_requests():
            kill_descendants(request.worker_pid)
            self._call_after(REPORT_TIMEOUT, self._kill_child, request)

    def _kill_child(self, request: Any) -> None:
        if request in running_requests():
            self._worker.pool.terminate_job(request.worker_pid, signal.SIGKILL)  # Celery then stores REVOKED

    def _marker(self, reason: str, task_id: str) -> Path:
        return self._folder / f"{reason}-{task_id.replace('/', '_')}"

    # — in a child —

    def is_revoked(self, task_id: str) -> bool:
        return self._marker(REVOKED, task_id).exists()

    def is_superseded(self, task_id: str) -> bool:
        return self._marker(SUPERSEDED, task_id).exists()

    @property
    def was_reaped(self) -> bool:
        """Whether the task reaper has ended this child's workload."""
        return reaped_marker(self._folder, os.getpid()).exists()

    @property
    def is_shutting_down(self) -> bool:
        return (self._folder / SHUTTING_DOWN).exists()

    def remove_markers(self, task_id: str) -> None:
        self._expects_late_term_until = time.monotonic() + MAX_TERM_DELAY
        for reason in (REVOKED, SUPERSEDED):
            self._marker(reason, task_id).unlink(missing_ok=True)

    def must_end(self, task_id: str) -> bool:
        """Return whether this child's workload was told to end, for any reason."""
        return self.is_revoked(task_id) or self.is_superseded(task_id) or self.was_reaped

    def why_ended(self, task_id: str) -> str | None:
        """Return why this child's workload was told to end; None if it was not."""
        if self.is_revoked(task_id):
            return "it was revoked"
        if self.is_superseded(task_id):
            return "the worker was declared dead, so the task may run elsewhere"
        if self.was_reaped:
            return "the worker was silent for too long"
        if (self._folder / GRACE_OVER).exists():
            return "the worker was shut down, and its time to finish was over"
        return None

    @contextlib.contextmanager
    def watched_by_reaper(self) -> Iterator[None]:
        """Let the task reaper end the workload that runs inside the context, if the worker falls silent."""
        reaped_marker(self._folder, os.getpid()).unlink(missing_ok=True)
        watched_marker(self._folder, os.getpid()).touch()
        try:
            yield
        finally:
            watched_marker(self._folder, os.getpid()).unlink(missing_ok=True)

    @contextlib.contextmanager
    def claim_undecided(self, task_id: str) -> Iterator[None]:
        """Keep the task out of the lease's running tasks: another worker may still own it."""
        marker = self._marker(UNDECIDED, task_id)
        marker.touch()
        try:
            yield
        finally:
            marker.unlink(missing_ok=True)

    def _set_up_child(self, **_: Any) -> None:
        child = os.getpid()
        signal.signal(signal.SIGTERM, self._on_term_between_workloads)

        forking = child

        def note_forking_process() -> None:
            nonlocal forking
            forking = os.getpid()

        def end_with_supervisor() -> None:
            """Make a task end with its supervisor. Processes that the task itself starts are not included."""
            if forking == child:
                try:
                    with contextlib.suppress(OSError):  # the worker may be gone, with its folder
                        task_marker(self._folder, child, os.getpid()).touch()
                    end_with_parent()
                except SystemExit:  # a signal came just now; the interpreter ignores what a callback of a fork raises
                    os._exit(os.EX_TEMPFAIL)
                if os.getppid() != child:  # it ended before the kernel was told
                    os._exit(os.EX_TEMPFAIL)

        os.register_at_fork(before=note_forking_process, after_in_child=end_with_supervisor)

    def _on_term_between_workloads(self, *_: Any) -> None:
        """Ignore a TERM for a workload that has just ended, or that has not started and will find its marker.

        If such a TERM ended the child, Celery would store a failure of that workload. The pool sends every other TERM,
        which ends the child.
        """
        if self.is_shutting_down or not self._expects_late_term():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)

    def _expects_late_term(self) -> bool:
        if time.monotonic() < self._expects_late_term_until:
            return True
        markers = [marker for reason in (REVOKED, SUPERSEDED) for marker in self._folder.glob(f"{reason}-*")]
        for marker in (*markers, reaped_marker(self._folder, os.getpid())):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - marker.stat().st_mtime < MAX_TERM_DELAY:
                    return True
        return False


@contextlib.contextmanager
def ignore_term() -> Iterator[None]:
    """Ignore TERM while no workload runs: its marker is checked instead."""
    former_handler = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former_handler)


@contextlib.contextmanager
def forward_term() -> Iterator[None]:
    """Forward TERM to the task while a workload runs.

    Airflow 3.3 does so itself while it waits for the task. This covers other versions, and the time before the wait.
    """

    def on_term(*_: Any) -> None:
        tasks = psutil.Process().children()
        if not tasks:
            raise EndedBeforeStart("the workload was ended before its task started")
        for task in tasks:
            send_signal(task.pid, signal.SIGTERM)

    former_handler = signal.signal(signal.SIGTERM, on_term)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former_handler)


def running_requests() -> list[Any]:
    return [request for request in active_requests() if request.worker_pid is not None]
