"""Where a worker's tasks run, and how they are reached: in threads of this process, or in its children.

threads: Hands ─► Runner
prefork: Hands ─► datagram to the child's socket ─► its Runner
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
import threading
from pathlib import Path
from typing import Any, Protocol

from celery import signals

from celeriac.worker.runner import Runner

END = b"\0end"
ALIVE = b"\0alive"
SUPERSEDED = b"\0superseded "
LONGEST_ID = 4096  # bytes


class PoolControl(Protocol):
    def revoke(self, request: Any) -> None:
        """End a task that runs: Celery's request for it."""
        ...

    def heartbeat(self) -> None:
        """The worker's lease is good: what runs may go on for a while, should the worker fall silent."""
        ...

    def supersede(self, request: Any) -> None:
        """End a task that is no longer this worker's to run; None: all of them."""
        ...

    def has_started(self, request: Any) -> bool:
        """Of one that was handed out to run: whether it counts as running. Else it may still be another worker's."""
        ...

    def take_no_more(self) -> None:
        """What has not begun need not begin here."""
        ...

    def end(self) -> None:
        """End all tasks; nothing starts any more. May wait for them."""
        ...

    def close(self) -> None: ...


class ThreadPoolControl:
    def __init__(self) -> None:
        self.runner = Runner()

    def revoke(self, request: Any) -> None:
        self.runner.revoke(request.id)

    def heartbeat(self) -> None:
        self.runner.heartbeat()

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
    """Each child listens on a socket of its own, so that a word for one that is busy elsewhere by now ends nothing."""

    def __init__(self) -> None:
        self.runner = Runner()
        self._folder = Path(tempfile.mkdtemp(prefix="celeriac-worker-"))
        signals.worker_process_init.connect(self._begin_child, weak=False)

    def revoke(self, request: Any) -> None:
        if request.worker_pid is not None:
            self._say(self._folder / str(request.worker_pid), request.id.encode())

    def heartbeat(self) -> None:
        self._say_to_all(ALIVE)

    def supersede(self, request: Any) -> None:
        if request is None:
            self._say_to_all(SUPERSEDED)
        elif request.worker_pid is not None:
            self._say(self._folder / str(request.worker_pid), SUPERSEDED + request.id.encode())

    def has_started(self, request: Any) -> bool:
        return True

    def take_no_more(self) -> None:
        pass

    def end(self) -> None:
        self._say_to_all(END)

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _say_to_all(self, word: bytes) -> None:
        for child in self._folder.iterdir():
            self._say(child, word)

    def _say(self, child: Path, word: bytes) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):  # it has ended
            sock.sendto(word, socket.MSG_DONTWAIT, str(child))

    def _begin_child(self, **_: Any) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sock.bind(str(self._folder / str(os.getpid())))
        threading.Thread(target=self._listen, args=(sock,), name="celeriac-child", daemon=True).start()

    def _listen(self, sock: socket.socket) -> None:
        while (word := sock.recv(LONGEST_ID)) != END:
            if word == ALIVE:
                self.runner.heartbeat()
            elif word.startswith(SUPERSEDED):
                self.runner.supersede(word.removeprefix(SUPERSEDED).decode() or None)
            else:
                self.runner.revoke(word.decode())
        self.runner.close()
