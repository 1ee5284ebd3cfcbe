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
LONGEST_ID = 4096  # bytes


class Hands(Protocol):
    def revoke(self, request: Any) -> None:
        """End a task that runs: Celery's request for it."""
        ...

    def take_no_more(self) -> None:
        """What has not begun need not begin here."""
        ...

    def end(self) -> None:
        """End all tasks; nothing starts any more. May wait for them."""
        ...

    def close(self) -> None: ...


class ThreadHands:
    def __init__(self) -> None:
        self.runner = Runner()

    def revoke(self, request: Any) -> None:
        self.runner.revoke(request.id)

    def take_no_more(self) -> None:
        pass

    def end(self) -> None:
        self.runner.close()

    def close(self) -> None:
        self.runner.close()


class ChildHands:
    """Each child listens on a socket of its own, so that a word for one that is busy elsewhere by now ends nothing."""

    def __init__(self) -> None:
        self.runner = Runner()
        self._folder = Path(tempfile.mkdtemp(prefix="celeriac-worker-"))
        signals.worker_process_init.connect(self._begin_child, weak=False)

    def revoke(self, request: Any) -> None:
        if request.worker_pid is not None:
            self._say(self._folder / str(request.worker_pid), request.id.encode())

    def take_no_more(self) -> None:
        pass

    def end(self) -> None:
        for child in self._folder.iterdir():
            self._say(child, END)

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _say(self, child: Path, word: bytes) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):  # it has ended
            sock.sendto(word, str(child))

    def _begin_child(self, **_: Any) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sock.bind(str(self._folder / str(os.getpid())))
        threading.Thread(target=self._listen, args=(sock,), name="celeriac-child", daemon=True).start()

    def _listen(self, sock: socket.socket) -> None:
        while (word := sock.recv(LONGEST_ID)) != END:
            self.runner.revoke(word.decode())
        self.runner.close()
