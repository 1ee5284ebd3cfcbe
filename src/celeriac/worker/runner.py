"""Runs commands for the threads of a Celery worker: each thread one command at a time, all through one supervisor."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

from celeriac.worker.supervisor.connection import SUPERSEDED
from celeriac.worker.supervisor_client import CommandChannel, Report, SupervisorDied, SupervisorProcess


class Runner:
    """Safe to share between threads. Forked processes need one each."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._local = threading.local()
        self._supervisor: SupervisorProcess | None = None
        self._running: dict[str, CommandChannel] = {}
        self._revoked: set[str] = set()
        self._closed = False
        self.has_lease = False
        """Whether somebody calls `say_alive` from time to time."""

    @property
    def closed(self) -> bool:
        return self._closed

    def run(self, request: dict[str, Any]) -> Report | None:
        """Run one command to its end; None if it was revoked before it started. Raises `SupervisorDied`."""
        task_id = request["id"]
        with self._lock:
            if task_id in self._revoked or self._closed:
                self._revoked.discard(task_id)
                return None
            lane = self._running[task_id] = self._lane_of_this_thread()
            # Started under the lock: a revoke must find it either not here or on its lane.
            with contextlib.suppress(OSError):  # of a supervisor that has gone the report tells
                lane.start(request)
        try:
            return lane.report()
        except OSError:
            with self._lock:
                self._replace(lane)
            raise SupervisorDied from None
        finally:
            with self._lock:
                del self._running[task_id]

    def heartbeat(self) -> None:
        """The worker's lease is good. Once that was said, the supervisor ends what runs if it is said no more."""
        supervisor = self._supervisor
        if supervisor is not None:
            supervisor.heartbeat()

    def supersede(self, task_id: str | None = None) -> None:
        """End a command that is no longer this worker's to run; None: all of them."""
        with self._lock:
            for running, lane in self._running.items():
                if task_id in (None, running):
                    lane.stop(running, SUPERSEDED)

    def revoke(self, task_id: str) -> None:
        """End a command: TERM, its grace, KILL; or see to it that it never starts."""
        with self._lock:
            lane = self._running.get(task_id)
            if lane is None:
                self._revoked.add(task_id)
            else:
                lane.stop(task_id, "revoked")

    def close(self) -> None:
        """End everything that runs, and the supervisor. Returns when all of it is dead."""
        with self._lock:
            self._closed = True
            gone, self._supervisor = self._supervisor, None
        if gone is not None:
            gone.close()

    def _lane_of_this_thread(self) -> CommandChannel:
        if self._supervisor is None:
            self._supervisor = SupervisorProcess()
            if self.has_lease:
                self._supervisor.heartbeat()
        lane: CommandChannel | None = getattr(self._local, "lane", None)
        if lane is None or lane.owner is not self._supervisor:
            lane = self._local.lane = self._supervisor.open_channel()
        return lane

    def _replace(self, lane: CommandChannel) -> None:
        if self._supervisor is lane.owner:
            self._supervisor = None
            lane.owner.clean_up()
