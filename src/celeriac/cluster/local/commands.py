"""Runs commands for an embedded worker: started from one thread, and reported to that thread when it asks."""

from __future__ import annotations

import contextlib
import selectors
import socket
from collections import Counter
from collections.abc import Callable
from typing import TypeAlias

from celeriac.cluster.local.journal import Journal
from celeriac.worker.supervisor.messages import CommandReport, CommandRequest, StopReason
from celeriac.worker.supervisor_client import CommandChannel, SupervisorDied, SupervisorProcess

SUPERVISORS = 2
"""Starting a program keeps a supervisor waiting for half a millisecond; meanwhile the other one starts the next."""

OnEnd: TypeAlias = Callable[[CommandReport | SupervisorDied], None]
"""Told how a command ended."""


class Commands:
    """Nothing here waits but `poll`, and nothing but `wake` may be called from another thread or a signal handler."""

    def __init__(self, journal: Journal | None = None) -> None:
        self._selector = selectors.DefaultSelector()
        self._journal = journal
        self._supervisors = [self._new_supervisor()]
        self._idle: list[CommandChannel] = []
        self._running: dict[str, tuple[CommandChannel, OnEnd]] = {}
        self._lanes: Counter[SupervisorProcess] = Counter()
        self._task_on: dict[CommandChannel, str] = {}
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)
        self._woken.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ, None)

    def start(self, request: CommandRequest, on_end: OnEnd) -> None:
        task_id = request.id
        lane = self._idle.pop() if self._idle else self._open_lane()
        self._running[task_id] = lane, on_end
        self._task_on[lane] = task_id
        with contextlib.suppress(OSError):  # of a supervisor that has gone the lane's end tells
            lane.start(request)

    def poll(self, timeout: float) -> None:
        """Wait until commands have ended, somebody calls `wake`, or `timeout` seconds have passed."""
        for key, _ in self._selector.select(timeout):
            if key.fileobj is self._woken:
                with contextlib.suppress(BlockingIOError):
                    self._woken.recv(4096)
            elif key.data in self._task_on:
                self._finish(self._task_on.pop(key.data))

    def revoke(self, task_id: str) -> None:
        """End a command, if it runs: TERM, its grace, KILL."""
        running = self._running.get(task_id)
        if running is not None:
            running[0].stop(task_id, StopReason.REVOKED)

    def wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # woken often enough already
            self._waker.send(b"!")

    def close(self) -> None:
        """End everything that runs, and the supervisors. Returns when all of it is dead."""
        for supervisor in self._supervisors:
            supervisor.begin_shutdown()
        for supervisor in self._supervisors:
            supervisor.close()
        for lane in [*self._idle, *(lane for lane, _ in self._running.values())]:
            lane.close()
        self._selector.close()
        self._waker.close()
        self._woken.close()

    def _new_supervisor(self) -> SupervisorProcess:
        return SupervisorProcess(None if self._journal is None else self._journal.place)

    def _open_lane(self) -> CommandChannel:
        if len(self._supervisors) < SUPERVISORS and all(self._lanes[each] for each in self._supervisors):
            self._supervisors.append(self._new_supervisor())
        supervisor = min(self._supervisors, key=lambda each: self._lanes[each])
        lane = supervisor.open_channel()
        self._lanes[supervisor] += 1
        self._selector.register(lane, selectors.EVENT_READ, lane)
        return lane

    def _finish(self, task_id: str) -> None:
        lane, on_end = self._running.pop(task_id)
        report: CommandReport | SupervisorDied
        try:
            report = lane.report()
        except OSError:
            self._bury(lane.owner)
            report = SupervisorDied()
            self._selector.unregister(lane)
            lane.close()
        else:
            self._idle.append(lane)
            if self._journal is not None:
                self._journal.hear(report)
        on_end(report)

    def _bury(self, dead: SupervisorProcess) -> None:
        if dead not in self._supervisors:
            return
        self._supervisors.remove(dead)
        del self._lanes[dead]
        dead.clean_up()
        if self._journal is not None:
            self._journal.bury(dead)
        for lane in [lane for lane in self._idle if lane.owner is dead]:
            self._selector.unregister(lane)
            self._idle.remove(lane)
            lane.close()
