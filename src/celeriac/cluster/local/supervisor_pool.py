"""Run commands under two supervisors: one thread starts them, and collects their reports when it polls."""

from __future__ import annotations

import contextlib
import selectors
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

from celeriac.broker.wakeup import Wakeup
from celeriac.cluster.local.journal import Journal
from celeriac.log_lines import logger_for
from celeriac.shortages import describe_shortage, is_shortage
from celeriac.worker.runner import ShortageLog
from celeriac.worker.supervisor.messages import CommandReport, CommandRequest, StopReason
from celeriac.worker.supervisor.resources import RETRY_DELAY, allow_open_files, commands_that_fit, hard_limit
from celeriac.worker.supervisor_client import CommandChannel, SupervisorDied, SupervisorProcess

logger = logger_for(__name__)

MAX_SUPERVISORS = 2
"""Starting a program blocks a supervisor for half a millisecond; meanwhile the other supervisor starts the next one."""

OnEnd: TypeAlias = Callable[[CommandReport | SupervisorDied], None]
"""Called with the report of a command."""


class Job(NamedTuple):
    """A command to run, and the functions to call at its start and its end."""

    request: CommandRequest
    on_start: Callable[[], None]
    on_end: OnEnd


class SupervisorPool:
    """Only `poll` waits, and only `wake` may be called from another thread or a signal handler."""

    def __init__(
        self, journal: Journal | None = None, folder: Path | None = None, *, inherits_streams: bool = False
    ) -> None:
        """`folder` is the working folder of the commands, by default that of this process. `inherits_streams` says
        whether commands may use the standard streams of this process."""
        self._journal, self._folder, self._inherits_streams = journal, folder, inherits_streams
        self.capacity = commands_that_fit(hard_limit(), supervisors=MAX_SUPERVISORS)
        """The number of commands that the limit of open files allows at once. The others wait here."""

        self._supervisors: list[SupervisorProcess] = []
        self._channels: Counter[SupervisorProcess] = Counter()
        """The number of channels to each supervisor."""

        self._idle: list[CommandChannel] = []
        self._running: dict[str, tuple[CommandChannel, Job]] = {}
        """By task id."""

        self._waiting: dict[str, Job] = {}
        """By task id, the commands for which there were no descriptors."""

        self._retry_at = 0.0
        self._shortages = ShortageLog(logger)
        self._task_on: dict[CommandChannel, str] = {}
        self._wakeup = Wakeup()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wakeup, selectors.EVENT_READ)
        try:
            with self._shortage_is_reported():  # otherwise the first command starts a supervisor
                self._add_supervisor()
        except BaseException:  # an interrupt
            self.close()
            raise

    def start(self, request: CommandRequest, on_start: Callable[[], None], on_end: OnEnd) -> None:
        """Start a command, or let it wait until its descriptors fit. `poll` calls `on_end` when it has ended."""
        job = Job(request, on_start, on_end)
        if self._waiting or not self._start(job):
            self._waiting[request.id] = job

    def poll(self, timeout: float) -> None:
        """Wait until commands have ended, `wake` is called, or `timeout` seconds have passed."""
        if self._waiting:
            timeout = min(timeout, RETRY_DELAY)
        for key, _ in self._selector.select(timeout):
            if key.fileobj is self._wakeup:
                self._wakeup.clear()
            elif isinstance(key.data, SupervisorProcess):
                self._on_notice(key.data)
            elif key.data in self._task_on:
                self._finish(self._task_on.pop(key.data))
        if self._waiting:
            self._start_waiting()

    def revoke(self, task_id: str) -> None:
        """End a command, if it runs: TERM, its grace, KILL. One that waits never starts."""
        if task_id in self._running:
            channel, _ = self._running[task_id]
            channel.stop(task_id, StopReason.REVOKED)
        else:
            self.revoke_waiting(task_id)

    def revoke_waiting(self, task_id: str) -> None:
        """End a command that waits: it never starts."""
        if task_id in self._waiting:
            self._waiting.pop(task_id).on_end(CommandReport.not_started(stopped=StopReason.REVOKED))

    def pause(self) -> None:
        """Stop the processes of all commands, and the clocks of their timeouts."""
        for supervisor in self._supervisors:
            supervisor.pause()

    def resume(self) -> None:
        """Let the processes and clocks of all commands go on."""
        for supervisor in self._supervisors:
            supervisor.resume()

    def wake(self) -> None:
        """End the current `poll`, or else the next one."""
        self._wakeup.notify()

    def close(self) -> None:
        """End all commands and the supervisors. Return when their processes are dead."""
        for supervisor in self._supervisors:
            supervisor.begin_shutdown()
        for supervisor in self._supervisors:
            supervisor.close()
        self._close_descriptors()

    def forget(self) -> None:
        """Close the descriptors in a forked child. The parent's commands and supervisors go on."""
        for supervisor in self._supervisors:
            supervisor.begin_shutdown()  # which begins when the parent has closed its own descriptor, too
        self._close_descriptors()

    def _close_descriptors(self) -> None:
        for channel in [*self._idle, *(channel for channel, _ in self._running.values())]:
            channel.close()
        self._selector.close()
        self._wakeup.close()

    def _start_waiting(self) -> None:
        """Start commands that wait, as far as they fit now."""
        if time.monotonic() < self._retry_at:
            return
        for task_id, job in list(self._waiting.items()):
            if not self._start(job):
                return
            del self._waiting[task_id]

    def _start(self, job: Job) -> bool:
        """Start a command. Return False if it does not fit now."""
        if len(self._running) >= self.capacity:
            return False
        channel = None
        with self._shortage_is_reported():
            channel = self._idle.pop() if self._idle else self._open_channel()
        if channel is None:
            return False
        self._running[job.request.id] = channel, job
        self._task_on[channel] = job.request.id
        with contextlib.suppress(OSError):  # the supervisor has ended: the next `poll` finds the channel closed
            channel.start(job.request)
        job.on_start()
        return True

    @contextlib.contextmanager
    def _shortage_is_reported(self) -> Iterator[None]:
        """Catch the errors after which a start is tried again later."""
        try:
            yield
        except (OSError, MemoryError) as error:
            if not is_shortage(error):
                raise
            self._retry_at = time.monotonic() + RETRY_DELAY
            self._shortages.warn(describe_shortage(error))

    def _on_notice(self, supervisor: SupervisorProcess) -> None:
        """Read what a supervisor says. Without a word it has ended."""
        if supervisor not in self._supervisors:
            return
        notice = supervisor.take_notice()
        if notice is None:
            self._remove_supervisor(supervisor)
        else:
            self._shortages.warn(notice)

    def _add_supervisor(self) -> None:
        place = None if self._journal is None else self._journal.place
        supervisor = SupervisorProcess(place, self._folder, inherits_streams=self._inherits_streams)
        self._supervisors.append(supervisor)
        self._selector.register(supervisor, selectors.EVENT_READ, supervisor)

    def _open_channel(self) -> CommandChannel:
        """Return a channel to the supervisor with the fewest channels. Start another supervisor if each has one."""
        if len(self._supervisors) < MAX_SUPERVISORS and all(
            self._channels[candidate] for candidate in self._supervisors
        ):
            self._add_supervisor()
        supervisor = min(self._supervisors, key=lambda candidate: self._channels[candidate])
        allow_open_files(self._channels.total() + 1)
        channel = supervisor.open_channel()
        self._channels[supervisor] += 1
        self._selector.register(channel, selectors.EVENT_READ, channel)
        return channel

    def _close_channel(self, channel: CommandChannel) -> None:
        self._selector.unregister(channel)
        self._channels[channel.owner] -= 1
        channel.close()

    def _finish(self, task_id: str) -> None:
        channel, job = self._running.pop(task_id)
        report: CommandReport | SupervisorDied
        try:
            report = channel.report()
        except OSError:
            self._close_channel(channel)
            if not channel.owner.has_ended():  # it had no descriptor for the channel, and never saw the request
                self._waiting[task_id] = job
                self._retry_at = time.monotonic() + RETRY_DELAY
                return
            self._remove_supervisor(channel.owner)
            report = SupervisorDied()
        else:
            self._idle.append(channel)
            if self._journal is not None:
                self._journal.record_news(report)
        job.on_end(report)

    def _remove_supervisor(self, dead: SupervisorProcess) -> None:
        if dead not in self._supervisors:
            return
        self._supervisors.remove(dead)
        self._selector.unregister(dead)
        dead.clean_up()
        if self._journal is not None:
            self._journal.finish_segments_of(dead)
        for channel in [channel for channel in self._idle if channel.owner is dead]:
            self._idle.remove(channel)
            self._close_channel(channel)
