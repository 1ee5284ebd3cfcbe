"""The supervisor's loop: sockets, pipes, children and timers, one at a time."""

from __future__ import annotations

import ctypes
import heapq
import os
import resource
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from itertools import count

from celeriac.worker.supervisor import orphans
from celeriac.worker.supervisor.command import WORKER_GONE, Command
from celeriac.worker.supervisor.connection import AT_ONCE, HEARTBEAT, SHUTDOWN_GRACE, WorkerConnection
from celeriac.worker.supervisor.journal import Journal

SILENCE = 6.0  # seconds without a word of life until what runs is ended, so that it is dead before the lease is over
SILENCE_GRACE = 1.5  # seconds from TERM to KILL then
OVERSLEPT = 1.0  # seconds too late, from which on there is no time for that: the machine itself had stopped
LEFTOVER_POLL = 0.05  # seconds between two looks at a group that should be empty
ORPHAN_SWEEP = 0.5  # seconds between two looks for processes that left their group
DESCRIPTORS_PER_LANE = 8  # its socket, two pipes with two ends each, two files; and one to spare
DESCRIPTORS_BESIDES = 64
PR_SET_CHILD_SUBREAPER = 36


class Supervisor:
    """The loop: sockets, pipes, children and timers, one at a time."""

    def __init__(self, control: socket.socket, journal: Journal | None = None) -> None:
        self.null = os.open(os.devnull, os.O_RDWR)
        self.leaders: dict[int, Command] = {}
        self.closing: set[Command] = set()
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_numbers = count()
        self._control = control
        self._journal = journal
        self._lanes = 0
        self.going = False
        """Whether everything is being ended: nothing more is started."""

        self._term_came = False
        self._next_sweep = 0.0
        self._sweep_wanted = False
        self._told_to_end: dict[int, float] = {}
        self._to_signal: dict[str, int] = {}
        """Tasks whose processes outside their group are to be reached, and with which signal."""

        self._heard_at: float | None = None
        self._child_ended = self._catch_signals()
        self.watch(control.fileno(), self._on_control)
        self.watch(self._child_ended, self._on_signal)

    def watch(self, descriptor: int, callback: Callable[[], None]) -> None:
        self._selector.register(descriptor, selectors.EVENT_READ, callback)

    def unwatch(self, descriptor: int) -> None:
        self._selector.unregister(descriptor)

    def call_at(self, when: float, callback: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (when, next(self._timer_numbers), callback))

    def run(self) -> None:
        while not self._gone():
            for key, _ in self._selector.select(self._pause()):
                # A callback of this round may have closed the descriptor, and another one opened its number anew.
                if self._selector.get_map().get(key.fd) is key:
                    key.data()
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                heapq.heappop(self._timers)[2]()
            if self._to_signal:
                self._signal_orphans()
            for command in list(self.closing):
                command.check_closed()
            if (self._sweep_wanted or self._told_to_end or self.going) and now >= self._next_sweep:
                self._sweep(now)

    def _gone(self) -> bool:
        return self.going and not self.leaders and not self.closing and not orphans.find(self.leaders)

    def signal_orphans(self, task_id: str, number: int) -> None:
        """Reach the processes of a task that left their process group: soon, all tasks at once."""
        self._to_signal[task_id] = number

    def _signal_orphans(self) -> None:
        wanted, self._to_signal = self._to_signal, {}
        for pid in orphans.find(self.leaders):
            number = wanted.get(orphans.task_of(pid) or "")
            if number is not None:
                orphans.send(pid, number)

    def _pause(self) -> float | None:
        """Seconds until something is due."""
        now = time.monotonic()
        pauses = []
        if self._timers:
            pauses.append(self._timers[0][0] - now)
        if self.closing:
            pauses.append(LEFTOVER_POLL)
        if self._sweep_wanted or self._told_to_end or self.going:
            pauses.append(self._next_sweep - now)
        return max(0.0, min(pauses)) if pauses else None

    def _catch_signals(self) -> int:
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, lambda *_: None)  # a handler, for what is ignored would be ignored by commands too
        signal.signal(signal.SIGTERM, self._on_term)
        return read_end

    def _on_term(self, *_: object) -> None:
        self._term_came = True  # acted on in the loop: here a command may be half started

    def _on_signal(self) -> None:
        os.read(self._child_ended, 4096)
        self.reap()
        if self._term_came:
            self._go()

    def reap(self) -> None:
        """See which children have ended. To be called before any of them is stopped: it may have ended by itself."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._told_to_end.pop(pid, None)
            command = self.leaders.pop(pid, None)
            if command is not None:
                self._sweep_wanted = True
                command.on_exit(status, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))

    def _on_control(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._control, 1, 1)
        except ConnectionError:
            data, descriptors = b"", []
        if not data:
            self.unwatch(self._control.fileno())
            self._go()
        if data == HEARTBEAT:
            self._on_word_of_life()
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
            self._lanes += 1
            allow_open_files(self._lanes)
            WorkerConnection(self, socket.socket(fileno=descriptor), self._journal)

    def _on_word_of_life(self) -> None:
        before, self._heard_at = self._heard_at, time.monotonic()
        if before is None:
            self.call_at(self._heard_at + SILENCE, self._look_for_silence)

    def _look_for_silence(self) -> None:
        now = time.monotonic()
        silent_at = (self._heard_at or now) + SILENCE
        if now < silent_at:
            self.call_at(silent_at, self._look_for_silence)
            return
        has_overslept = now - silent_at > OVERSLEPT
        for command in [*self.leaders.values(), *self.closing]:
            command.stop("worker silent", AT_ONCE if has_overslept else min(command.grace, SILENCE_GRACE))
        self._heard_at = None

    def _go(self) -> None:
        self.going = True
        self._next_sweep = 0.0
        self.reap()
        for command in [*self.leaders.values(), *self.closing]:
            command.stop(WORKER_GONE, min(command.grace, SHUTDOWN_GRACE))

    # — processes that left their group —

    def _sweep(self, now: float) -> None:
        """End what has left its process group and outlived its command: TERM, and KILL if it is still there later."""
        self._sweep_wanted = False
        self._next_sweep = now + ORPHAN_SWEEP
        commands = [*self.leaders.values(), *self.closing]
        running: set[str | None] = {command.id for command in commands}
        if running:
            running.add(None)  # one without the mark may be any command's: it is left until nothing runs
        groups = {command.pid for command in commands}
        for pid in orphans.find(self.leaders):
            if orphans.group_of(pid) not in groups and orphans.task_of(pid) not in running:
                told = self._told_to_end.setdefault(pid, now)
                orphans.send(pid, signal.SIGTERM if now - told < SHUTDOWN_GRACE else signal.SIGKILL)


def allow_open_files(lanes: int) -> None:
    """Two pipes and a socket for each command. The limit is raised only when it must be: commands inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_PER_LANE * lanes + DESCRIPTORS_BESIDES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def main(control_descriptor: int, lock_descriptor: str | None = None, folder: str = "", mark: str = "") -> None:
    """With the descriptor of a lock, commands are written down in its folder."""
    control = socket.socket(fileno=control_descriptor)
    control.set_inheritable(False)
    if lock_descriptor is not None:
        os.set_inheritable(int(lock_descriptor), False)  # held as long as this process lives, and by no command
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    Supervisor(control, None if lock_descriptor is None else Journal(folder, mark)).run()
