"""The supervisor's loop: sockets, pipes, children and timers, one at a time."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Container
from functools import partial

from celeriac.shortages import describe_shortage, is_shortage
from celeriac.worker.supervisor import orphans
from celeriac.worker.supervisor.command import Command
from celeriac.worker.supervisor.connection import SHUTDOWN_GRACE, WorkerConnection
from celeriac.worker.supervisor.journal import Journal
from celeriac.worker.supervisor.lease_policy import LeasePolicy
from celeriac.worker.supervisor.messages import (
    CONTINUE_ALL,
    HEARTBEAT,
    NEW_CONNECTION,
    STOP_ALL,
    TIME,
    StopReason,
)
from celeriac.worker.supervisor.processes import processes_of
from celeriac.worker.supervisor.resources import DESCRIPTORS_PER_COMMAND, allow_open_files
from celeriac.worker.supervisor.setup import apply_setup, receive_setup
from celeriac.worker.supervisor.timers import Timers

OVERSLEEP_LIMIT = 1.0  # seconds: see `LeasePolicy`
LEFTOVER_POLL_INTERVAL = 0.05  # seconds between two checks of a group that should be empty
STOP_RETRY_DELAY = 0.5  # seconds after a bug until a command is stopped once more
ORPHAN_POLL_INTERVAL = 0.5  # seconds between two searches for processes that left their group
MAX_SEARCHES = 10  # searches for the processes of commands that fork without end
MAX_SELECT_TIME = 24 * 3600.0  # seconds; Linux cannot wait longer than 24 days in one call
PR_SET_CHILD_SUBREAPER = 36
TYPE_CHECKING = False

if TYPE_CHECKING:
    from celeriac.worker.supervisor.background import Background
    from celeriac.worker.supervisor.memory_limit import MemoryLimit, MemoryLimits
    from celeriac.worker.supervisor.scratch import ScratchFolders


class Supervisor:
    """The loop: sockets, pipes, children and timers, one at a time."""

    def __init__(self, control: socket.socket, journal: Journal | None = None, renewed_at: float | None = None) -> None:
        """`renewed_at` is when the worker's lease was renewed; None if it has none. It counts as a heartbeat."""
        self.null = os.open(os.devnull, os.O_RDWR)
        self.leaders: dict[int, Command] = {}
        self.closing: set[Command] = set()
        self.waiting: set[Command] = set()
        self.environment: dict[bytes, bytes] = dict(os.environb)
        self._selector = selectors.DefaultSelector()
        self._timers = Timers()
        self._control = control
        self._journal = journal
        self._connections = 0
        self.is_shutting_down = False
        """Whether all commands are being ended. No command starts any more."""

        self._term_received = False
        self._known_bugs: set[tuple[str, int]] = set()
        """File and line of each error that was printed."""

        self._has_reported_shortage = False
        self._next_sweep = 0.0
        self._sweep_wanted = False
        self._term_sent_at: dict[int, float] = {}
        """When each orphan that should end got its first signal, by process id."""

        self._orphan_signals: dict[str, int] = {}
        """Tasks whose orphans must get a signal, and the number of the signal."""

        self._lease = LeasePolicy(oversleep_limit=OVERSLEEP_LIMIT)
        self._checks_lease = False
        self._background: Background | None = None
        self._scratch: ScratchFolders | None = None
        self._memory_limits: MemoryLimits | None = None
        self._signal_pipe = self._catch_signals()
        self.watch(control.fileno(), self._on_control)
        self.watch(self._signal_pipe, self._on_signal)
        if renewed_at is not None:
            self._on_heartbeat(renewed_at)

    def watch(self, descriptor: int, callback: Callable[[], None]) -> None:
        """Call a function whenever a descriptor is readable."""
        self._selector.register(descriptor, selectors.EVENT_READ, callback)

    def unwatch(self, descriptor: int) -> None:
        self._selector.unregister(descriptor)

    def call_at(self, when: float, callback: Callable[[], None]) -> None:
        """Call a function at a time of the monotonic clock."""
        self._timers.add(when, callback)

    def run_beside(self, work: Callable[[], None], then: Callable[[], None]) -> None:
        """Call a function in a thread, then another one in this loop."""
        if self._background is None:
            from celeriac.worker.supervisor.background import Background  # late: few commands need it

            self._background = Background(self)
        self._background.run(work, then)

    def scratch_folders(self) -> ScratchFolders:
        """Return the scratch folders of this supervisor. The first call removes those that others have left behind."""
        if self._scratch is None:
            from celeriac.worker.supervisor.scratch import ScratchFolders, remove_abandoned  # late, as above
            from celeriac.worker.supervisor_start import SUPERVISOR_VARIABLE

            self._scratch = ScratchFolders(os.environ[SUPERVISOR_VARIABLE])
            self.run_beside(remove_abandoned, lambda: None)
        return self._scratch

    def memory_limit(self, command: Command, size: int) -> MemoryLimit:
        """Return the limit of a command that may use so many bytes of memory."""
        from celeriac.worker.supervisor.memory_limit import MemoryLimit, MemoryLimits  # late, as above
        from celeriac.worker.supervisor_start import SUPERVISOR_VARIABLE

        if self._memory_limits is None:
            self._memory_limits = MemoryLimits(self, os.environ[SUPERVISOR_VARIABLE])
        return MemoryLimit(self._memory_limits, command, size)

    def run(self) -> None:
        """Run until all commands have ended after a shutdown request."""
        while not self._is_done():
            for key, _ in self._selector.select(self._time_to_wait()):
                # An earlier callback of this round may have closed the descriptor, and reopened its number.
                if self._selector.get_map().get(key.fd) is key:
                    self._call(key.data)
            now = time.monotonic()
            for callback in self._timers.take_due(now):
                self._call(callback)
            if self._orphan_signals:
                self._call(self._signal_orphans)
            for command in list(self.closing):
                self._call(command.finish_if_group_is_empty)
            if self._needs_sweep() and now >= self._next_sweep:
                self._call(partial(self._sweep, now))

    def close(self) -> None:
        """Remove what is left of scratch folders, where a process that had left its group wrote, and control groups."""
        if self._memory_limits is not None:
            self._call(self._memory_limits.close)
        if self._scratch is not None:
            self._call(self._scratch.close)

    def _call(self, callback: Callable[[], None]) -> bool:
        """Call a function. Return whether it raised nothing. An unexpected error must not end the commands of other
        tasks: it is printed, once for each place in the code."""
        try:
            callback()
        except Exception as error:  # noqa: BLE001 - a bug
            place = place_of(error)
            if place not in self._known_bugs:
                self._known_bugs.add(place)
                sys.excepthook(type(error), error, error.__traceback__)
            return False
        return True

    def _is_done(self) -> bool:
        if not self.is_shutting_down or self.leaders or self.closing or self.waiting:
            return False
        if self._background is not None and self._background.unfinished:
            return False
        try:
            return not orphans.find(self.leaders)
        except OSError as error:
            self.report_shortage(error)
            return False

    def report_shortage(self, error: Exception) -> None:
        """Tell the worker, once, that descriptors, processes or memory are exhausted. Raises any other error."""
        if not is_shortage(error):
            raise error
        if not self._has_reported_shortage:
            self._has_reported_shortage = True
            with contextlib.suppress(OSError):  # the worker has gone
                self._control.send(describe_shortage(error).encode(), socket.MSG_DONTWAIT)

    def signal_orphans(self, task_id: str, number: int) -> None:
        """Send a signal, soon, to the processes of a task that left their process group: one search for all tasks."""
        self._orphan_signals[task_id] = number

    def _signal_orphans(self) -> None:
        if (tasks := self._find_orphans()) is None:
            return  # the signals are kept for the next search
        numbers, self._orphan_signals = self._orphan_signals, {}
        for pid, task_id in tasks.items():
            if task_id in numbers:
                orphans.send(pid, numbers[task_id])

    def _find_orphans(self, known_groups: Container[int | None] = ()) -> dict[int, str | None] | None:
        """Return the task of each process that left its parent, but not of those in `known_groups`. Return None if
        descriptors or memory are exhausted for now."""
        try:
            return {
                pid: orphans.task_of(pid)
                for pid in orphans.find(self.leaders)
                if orphans.group_of(pid) not in known_groups
            }
        except OSError as error:
            self.report_shortage(error)
            return None

    def _time_to_wait(self) -> float | None:
        """Return the seconds until the next timer or check is due; None if there is none."""
        now = time.monotonic()
        times = []
        if (next_at := self._timers.next_at) is not None:
            times.append(next_at - now)
        if self.closing or self._orphan_signals:
            times.append(LEFTOVER_POLL_INTERVAL)
        if self._needs_sweep():
            times.append(self._next_sweep - now)
        return min(max(0.0, min(times)), MAX_SELECT_TIME) if times else None

    def _catch_signals(self) -> int:
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, lambda *_: None)  # not SIG_IGN, which commands would inherit
        signal.signal(signal.SIGTERM, self._on_term)
        return read_end

    def _on_term(self, *_: object) -> None:
        self._term_received = True  # the loop handles it: during this handler, a command may be half started

    def _on_signal(self) -> None:
        os.read(self._signal_pipe, 4096)
        self.reap()
        if self._term_received:
            self._shut_down()

    def reap(self) -> None:
        """Reap children that have ended. Call this before you stop a command: it may have ended by itself."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._term_sent_at.pop(pid, None)
            command = self.leaders.pop(pid, None)
            if command is not None:
                self._sweep_wanted = True
                memory = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
                self._call(partial(command.on_exit, status, memory))

    def _on_control(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._control, 1, 1)
        except ConnectionError:
            data, descriptors = b"", []
        if not data:
            self.unwatch(self._control.fileno())
            self._shut_down()
        if data == HEARTBEAT:
            (sent_at,) = TIME.unpack(self._control.recv(TIME.size, socket.MSG_WAITALL))
            self._on_heartbeat(sent_at)
        if data == STOP_ALL:
            self._pause()
        if data == CONTINUE_ALL:
            self._resume()
        if data == NEW_CONNECTION and not descriptors:  # the worker sees that its channel is closed, and repeats
            self.report_shortage(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
            self._connections += 1
            allow_open_files(DESCRIPTORS_PER_COMMAND * self._connections)
            WorkerConnection(self, socket.socket(fileno=descriptor), self._journal)

    def _on_heartbeat(self, sent_at: float) -> None:
        self._lease.record_heartbeat(sent_at, time.monotonic())
        if not self._checks_lease:
            self._checks_lease = True
            self.call_at(self._lease.silent_at, self._check_lease)

    def _check_lease(self) -> None:
        grace = self._lease.grace(time.monotonic())
        if grace is None:
            self.call_at(self._lease.silent_at, self._check_lease)
            return
        self._stop_all(StopReason.WORKER_SILENT, grace)
        self._checks_lease = False  # until the next heartbeat

    def has_lease(self) -> bool:
        """Return whether the worker sends heartbeats, and the last one is recent."""
        return self._checks_lease and time.monotonic() < self._lease.silent_at

    def _shut_down(self) -> None:
        self.is_shutting_down = True
        self._next_sweep = 0.0
        self.reap()
        self._stop_all(StopReason.WORKER_GONE, SHUTDOWN_GRACE)
        self._resume()  # a process that is stopped does not see TERM

    def _stop_all(self, reason: StopReason, grace: float) -> None:
        for command in [*self.leaders.values(), *self.closing, *self.waiting]:
            stop = partial(command.stop, reason, min(command.grace, grace))
            if not self._call(stop):
                self.call_at(time.monotonic() + STOP_RETRY_DELAY, stop)

    # — pause —

    @property
    def is_paused(self) -> bool:
        """Whether all commands are stopped. No command starts."""
        return self._timers.are_paused

    def _pause(self) -> None:
        """Stop the processes and the clocks of all commands: not those of a lease, without which they must end."""
        if self.is_paused or self.is_shutting_down or self._checks_lease:
            return
        self._timers.pause()
        self._signal_all(signal.SIGSTOP)

    def _resume(self) -> None:
        if not self.is_paused:
            return
        length = self._timers.resume()
        for command in [*self.leaders.values(), *self.closing]:
            command.leave_out(length)
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: int) -> None:
        """Send a signal to all processes of all commands. Repeat until no process is new: one may fork meanwhile."""
        commands = [*self.leaders.values(), *self.closing]
        for command in commands:
            command.signal_group(number)
        leaders = {command.pid: command.id for command in commands if command.pid}
        sent: set[int] = set()
        try:
            for _ in range(MAX_SEARCHES):
                found = {pid for sizes in processes_of(leaders).values() for pid in sizes} - sent
                if not found:
                    return
                for pid in found:
                    orphans.send(pid, number)
                sent |= found
        except OSError as error:
            self.report_shortage(error)

    # — processes that left their group —

    def _needs_sweep(self) -> bool:
        return bool(self._sweep_wanted or self._term_sent_at or self.is_shutting_down)

    def _sweep(self, now: float) -> None:
        """End processes that left their process group and outlived their command: TERM, later KILL."""
        self._next_sweep = now + ORPHAN_POLL_INTERVAL
        commands = [*self.leaders.values(), *self.closing]
        running: set[str | None] = {command.id for command in commands}
        if running:
            running.add(None)  # a process without a task id may belong to any command: keep it until none runs
        groups = {command.pid for command in commands}
        tasks = self._find_orphans(groups)
        self._sweep_wanted = tasks is None
        for pid, task_id in (tasks or {}).items():
            if task_id not in running:
                term_sent_at = self._term_sent_at.setdefault(pid, now)
                orphans.send(pid, signal.SIGTERM if now - term_sent_at < SHUTDOWN_GRACE else signal.SIGKILL)


def place_of(error: BaseException) -> tuple[str, int]:
    """Return file and line of an error. Importing `traceback` for that would make the start slower."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return ("", 0) if trace is None else (trace.tb_frame.f_code.co_filename, trace.tb_lineno)


def main(control_descriptor: int) -> None:
    """Run a supervisor, once its setup has come."""
    control = socket.socket(fileno=control_descriptor)
    control.set_inheritable(False)
    if (setup := receive_setup(control)) is None:
        return
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    supervisor = Supervisor(control, apply_setup(setup), setup["renewed_at"])
    supervisor.run()
    supervisor.close()
    os._exit(0)  # at its usual end the interpreter frees all that it has imported, while the worker waits
