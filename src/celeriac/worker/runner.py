"""Run commands for the threads of a Celery worker: one command a thread, all through one supervisor."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable

from celeriac.log_lines import logger_for
from celeriac.shortages import describe_shortage, is_shortage
from celeriac.worker.supervisor.messages import CommandReport, CommandRequest, StopReason
from celeriac.worker.supervisor.resources import RETRY_DELAY
from celeriac.worker.supervisor_client import CommandChannel, SupervisorDied, SupervisorProcess

logger = logger_for("celeriac.worker")

SHORTAGE = "commands cannot start for now: %s; they wait. Raise the limits of the system, or run fewer at a time"


class ShortageLog:
    """Logs, once, why commands cannot start."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._has_warned = False

    def warn(self, shortage: str | None) -> None:
        if shortage and not self._has_warned:
            self._has_warned = True
            self._log.warning(SHORTAGE, shortage)


class Runner:
    """Runs commands. Threads may share a runner; each forked process needs its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._local = threading.local()
        self._supervisor: SupervisorProcess | None = None
        self._running: dict[str, CommandChannel] = {}
        self._revoked: set[str] = set()
        self._is_closed = False
        self._shortages = ShortageLog(logger)
        self.renewed_at: Callable[[], float | None] = lambda: None
        """Returns when the worker's lease was renewed, by the monotonic clock; None if it was not. A new supervisor
        counts the silence of its worker from then: the command that it starts may have been claimed before."""

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called: no command starts any more."""
        return self._is_closed

    def run(
        self, request: CommandRequest, take_output: Callable[[int, bytes], None] = lambda *_: None
    ) -> CommandReport | None:
        """Run one command to its end. Return None if it was revoked before it started. Raises `SupervisorDied`.

        `take_output` gets the output that the request asks for: see `CommandChannel.report`.
        """
        while True:
            try:
                channel = self._start(request)
            except (OSError, MemoryError) as error:
                if not is_shortage(error):
                    raise
                self._shortages.warn(describe_shortage(error))
                time.sleep(RETRY_DELAY)
                continue
            if channel is None:
                return None
            try:
                return channel.report(take_output)
            except OSError:
                if channel.owner.has_ended():
                    with self._lock:
                        self._discard_supervisor(channel.owner)
                    raise SupervisorDied from None
                self._discard_channel()
            finally:
                with self._lock:
                    del self._running[request.id]
                self._shortages.warn(channel.owner.take_notice())

    def _start(self, request: CommandRequest) -> CommandChannel | None:
        """Start a command. Return None if it was revoked, or no command starts any more. Raises `OSError`."""
        with self._lock:
            if request.id in self._revoked or self._is_closed:
                self._revoked.discard(request.id)
                return None
            channel = self._channel_of_this_thread()
            # Start under the lock: a concurrent revoke must find no channel, or a channel with the command sent.
            with contextlib.suppress(OSError):  # the supervisor has ended: `report` raises
                channel.start(request)
            self._running[request.id] = channel
            return channel

    def is_cut_short(self, task_id: str) -> bool:
        """Return whether all commands are being ended, or this one, because its task may run elsewhere by now."""
        channel = self._running.get(task_id)
        return self._is_closed or (channel is not None and channel.is_superseded)

    def heartbeat(self, sent_at: float) -> None:
        """Tell the supervisor when the worker's lease was good. See `SupervisorProcess.heartbeat`."""
        supervisor = self._supervisor
        if supervisor is not None:
            supervisor.heartbeat(sent_at)
            self._shortages.warn(supervisor.take_notice())

    def supersede(self, task_id: str | None = None) -> None:
        """End a command that may run elsewhere by now; None ends all of them."""
        with self._lock:
            for running_id, channel in self._running.items():
                if task_id in (None, running_id):
                    channel.stop(running_id, StopReason.SUPERSEDED)

    def revoke(self, task_id: str) -> None:
        """End a command: TERM, its grace, KILL. A command that has not started never starts."""
        with self._lock:
            channel = self._running.get(task_id)
            if channel is None:
                self._revoked.add(task_id)
            else:
                channel.stop(task_id, StopReason.REVOKED)

    def close(self) -> None:
        """End all commands, and the supervisor. Returns when all their processes are dead."""
        with self._lock:
            self._is_closed = True
            supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            supervisor.close()

    def _channel_of_this_thread(self) -> CommandChannel:
        if self._supervisor is None:
            self._supervisor = SupervisorProcess(renewed_at=self.renewed_at())
        channel: CommandChannel | None = getattr(self._local, "channel", None)
        if channel is None or channel.owner is not self._supervisor:
            channel = self._local.channel = self._supervisor.open_channel()
        return channel

    def _discard_channel(self) -> None:
        """Close the channel of this thread: the supervisor had no descriptor for it and never saw the request."""
        self._local.channel.close()
        self._local.channel = None
        time.sleep(RETRY_DELAY)

    def _discard_supervisor(self, supervisor: SupervisorProcess) -> None:
        if self._supervisor is supervisor:
            self._supervisor = None
            supervisor.clean_up()
