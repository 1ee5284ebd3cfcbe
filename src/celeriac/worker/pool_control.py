"""Reach the running tasks of a worker: in threads of this process, or in its children.

threads: ThreadPoolControl ─► Runner
prefork: PreforkControl ─► datagram to the child's socket ─► the child's Runner
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import time
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from celery import signals

from celeriac.surviving_loop import SurvivingLoop
from celeriac.worker.runner import Runner
from celeriac.worker.supervisor.messages import TIME
from celeriac.worker.temporary_folder import make_temporary_folder

END = b"\0end"
HEARTBEAT = b"\0alive"
SUPERSEDED = b"\0superseded "
MAX_ID_SIZE = 4096  # bytes
MAX_ROUND_DELAY = 1.0  # seconds after an unexpected exception until the next datagram is read


class PoolControl(Protocol):
    """Reaches the running tasks. A `request` is Celery's request for a task."""

    def revoke(self, request: Any) -> None:
        """End a running task."""
        ...

    def heartbeat(self) -> None:
        """Tell the supervisors that the worker's lease is good. They end all commands if this stops."""
        ...

    def supersede(self, request: Any) -> None:
        """End a task that may run elsewhere by now; None ends all of them."""
        ...

    def has_started(self, request: Any) -> bool:
        """Return whether an active task counts as running here. Otherwise another worker may still have it."""
        ...

    def take_no_more(self) -> None:
        """Hand back tasks that have not started."""
        ...

    def end(self) -> None:
        """End all tasks. No task starts any more. May wait for them."""
        ...

    def close(self) -> None: ...


class ThreadPoolControl:
    """Reaches tasks in threads of this process."""

    def __init__(self) -> None:
        self.runner = Runner()

    def revoke(self, request: Any) -> None:
        self.runner.revoke(request.id)

    def heartbeat(self) -> None:
        self.runner.heartbeat(time.monotonic())

    def supersede(self, request: Any) -> None:
        self.runner.supersede(request.id if request is not None else None)

    def has_started(self, request: Any) -> bool:
        return True

    def take_no_more(self) -> None:
        pass

    def end(self) -> None:
        self.runner.close()

    def close(self) -> None:
        self.runner.close()


class PreforkControl:
    """Reaches tasks in children. Each child has a socket, and ends only the task that a datagram names. So a late
    datagram ends no other task."""

    def __init__(self) -> None:
        """Make the folder of the sockets. Raises `InvalidConfig` without a usable temporary folder."""
        self.runner = Runner()
        self._folder = make_temporary_folder("celeriac-worker-")
        signals.worker_process_init.connect(self._begin_child, weak=False)

    def revoke(self, request: Any) -> None:
        if request.worker_pid is not None:
            self._send(self._folder / str(request.worker_pid), request.id.encode())

    def heartbeat(self) -> None:
        self._send_to_all(HEARTBEAT + TIME.pack(time.monotonic()))

    def supersede(self, request: Any) -> None:
        if request is None:
            self._send_to_all(SUPERSEDED)
        elif request.worker_pid is not None:
            self._send(self._folder / str(request.worker_pid), SUPERSEDED + request.id.encode())

    def has_started(self, request: Any) -> bool:
        return True

    def take_no_more(self) -> None:
        pass

    def end(self) -> None:
        self._send_to_all(END)

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _send_to_all(self, datagram: bytes) -> None:
        for child in self._folder.iterdir():
            self._send(child, datagram)

    def _send(self, child: Path, datagram: bytes) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):  # it has ended
            sock.sendto(datagram, socket.MSG_DONTWAIT, str(child))

    def _begin_child(self, **_: Any) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sock.bind(str(self._folder / str(os.getpid())))
        SurvivingLoop("celeriac-child", partial(self._handle_datagram, sock), max_delay=MAX_ROUND_DELAY).start()

    def _handle_datagram(self, sock: socket.socket) -> bool:
        datagram = sock.recv(MAX_ID_SIZE)
        if datagram == END:
            sock.close()
            self.runner.close()
            return False
        if datagram.startswith(HEARTBEAT):
            self.runner.heartbeat(*TIME.unpack(datagram.removeprefix(HEARTBEAT)))
        elif datagram.startswith(SUPERSEDED):
            self.runner.supersede(datagram.removeprefix(SUPERSEDED).decode() or None)
        else:
            self.runner.revoke(datagram.decode())
        return True
