"""Start the workers of all hosts, show what they write, start again those that fail, and end them."""

from __future__ import annotations

import json
import selectors
import time
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

from celeriac.ssh.hosts import Host
from celeriac.ssh.process import HostWorker

POLL_INTERVAL = 0.2  # seconds between two looks for a signal and for workers to start
KILL_AT = 3  # the number of the signal at which ssh is killed


class SshStarter:
    """The workers of some hosts. It belongs to one thread; a signal handler may call `stop`."""

    def __init__(self, hosts: Sequence[Host], settings: Mapping[str, Any], report: Callable[[str, str], None]) -> None:
        """`settings` are those of each worker. `report` gets the name of a host, and a line about it or from it."""
        random = Random()
        self._workers = [HostWorker(host, line_of(host, settings), random) for host in hosts]
        self._report = report
        self._selector = selectors.DefaultSelector()
        self._signals = self._ordered = 0

    def stop(self) -> None:
        """End the workers: let them drain; the second time end their commands; the third time kill ssh."""
        self._signals += 1

    def run(self) -> None:
        """Run until all workers have ended for good."""
        try:
            while not all(worker.is_over for worker in self._workers):
                self._obey()
                self._start_due()
                for key, _ in self._selector.select(POLL_INTERVAL):
                    self._read(key.data)
        finally:
            for worker in self._workers:
                worker.kill()
            self._selector.close()

    def _obey(self) -> None:
        while self._ordered < self._signals:
            self._ordered += 1
            for worker in self._workers:
                if self._ordered < KILL_AT:
                    worker.order_end()
                else:
                    worker.kill()

    def _start_due(self) -> None:
        now = time.monotonic()
        for worker in self._workers:
            if worker.start_at is not None and now >= worker.start_at:
                self._selector.register(worker.start(), selectors.EVENT_READ, worker)
                slots = "" if worker.host.slots is None else f" with slots={worker.host.slots}"
                self._report(worker.host.name, f"starting{slots}")

    def _read(self, worker: HostWorker) -> None:
        lines = worker.read_lines()
        for line in lines or ():
            self._report(worker.host.name, line)
        if lines is None:
            self._selector.unregister(worker.output)
            status, delay = worker.ended(is_stopping=self._signals > 0)
            again = "" if delay is None else f"; starting again in {delay:.0f} s"
            self._report(worker.host.name, f"ended with status {status}{again}")


def line_of(host: Host, settings: Mapping[str, Any]) -> bytes:
    """Return the settings of one worker as one line of JSON."""
    own = {} if host.slots is None else {"concurrency": host.slots}
    return json.dumps({**settings, **own}).encode() + b"\n"
