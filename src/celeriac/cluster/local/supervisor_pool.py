"""Run commands under two supervisors: one thread starts them, and collects their reports when it polls."""

from __future__ import annotations

import contextlib
import selectors
from collections import Counter
from collections.abc import Callable
from typing import TypeAlias

from celeriac.broker.wakeup import Wakeup
from celeriac.cluster.local.journal import Journal
from celeriac.worker.supervisor.messages import CommandReport, CommandRequest, StopReason
from celeriac.worker.supervisor_client import CommandChannel, SupervisorDied, SupervisorProcess

MAX_SUPERVISORS = 2
"""Starting a program blocks a supervisor for half a millisecond; meanwhile the other supervisor starts the next one."""

OnEnd: TypeAlias = Callable[[CommandReport | SupervisorDied], None]
"""Called with the report of a command."""


class SupervisorPool:
    """Only `poll` waits, and only `wake` may be called from another thread or a signal handler."""

    def __init__(self, journal: Journal | None = None) -> None:
        self._journal = journal
        self._supervisors = [self._new_supervisor()]
        self._channels: Counter[SupervisorProcess] = Counter()
        """The number of channels to each supervisor."""

        self._idle: list[CommandChannel] = []
        self._running: dict[str, tuple[CommandChannel, OnEnd]] = {}
        """By task id."""

        self._task_on: dict[CommandChannel, str] = {}
        self._wakeup = Wakeup()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wakeup, selectors.EVENT_READ)

    def start(self, request: CommandRequest, on_end: OnEnd) -> None:
        """Start a command. `poll` calls `on_end` when it has ended."""
        channel = self._idle.pop() if self._idle else self._open_channel()
        self._running[request.id] = channel, on_end
        self._task_on[channel] = request.id
        with contextlib.suppress(OSError):  # the supervisor has ended: the next `poll` finds the channel closed
            channel.start(request)

    def poll(self, timeout: float) -> None:
        """Wait until commands have ended, `wake` is called, or `timeout` seconds have passed."""
        for key, _ in self._selector.select(timeout):
            if key.fileobj is self._wakeup:
                self._wakeup.clear()
            elif key.data in self._task_on:
                self._finish(self._task_on.pop(key.data))

    def revoke(self, task_id: str) -> None:
        """End a command, if it runs: TERM, its grace, KILL."""
        if task_id in self._running:
            channel, _ = self._running[task_id]
            channel.stop(task_id, StopReason.REVOKED)

    def wake(self) -> None:
        """End the current `poll`, or else the next one."""
        self._wakeup.notify()

    def close(self) -> None:
        """End all commands and the supervisors. Return when their processes are dead."""
        for supervisor in self._supervisors:
            supervisor.begin_shutdown()
        for supervisor in self._supervisors:
            supervisor.close()
        for channel in [*self._idle, *(channel for channel, _ in self._running.values())]:
            channel.close()
        self._selector.close()
        self._wakeup.close()

    def _new_supervisor(self) -> SupervisorProcess:
        return SupervisorProcess(None if self._journal is None else self._journal.place)

    def _open_channel(self) -> CommandChannel:
        """Return a channel to the supervisor with the fewest channels. Start another supervisor if each has one."""
        if len(self._supervisors) < MAX_SUPERVISORS and all(
            self._channels[candidate] for candidate in self._supervisors
        ):
            self._supervisors.append(self._new_supervisor())
        supervisor = min(self._supervisors, key=lambda candidate: self._channels[candidate])
        channel = supervisor.open_channel()
        self._channels[supervisor] += 1
        self._selector.register(channel, selectors.EVENT_READ, channel)
        return channel

    def _finish(self, task_id: str) -> None:
        channel, on_end = self._running.pop(task_id)
        report: CommandReport | SupervisorDied
        try:
            report = channel.report()
        except OSError:
            self._remove_supervisor(channel.owner)
            report = SupervisorDied()
            self._selector.unregister(channel)
            channel.close()
        else:
            self._idle.append(channel)
            if self._journal is not None:
                self._journal.record_news(report)
        on_end(report)

    def _remove_supervisor(self, dead: SupervisorProcess) -> None:
        if dead not in self._supervisors:
            return
        self._supervisors.remove(dead)
        del self._channels[dead]
        dead.clean_up()
        if self._journal is not None:
            self._journal.finish_segments_of(dead)
        for channel in [channel for channel in self._idle if channel.owner is dead]:
            self._selector.unregister(channel)
            self._idle.remove(channel)
            channel.close()
