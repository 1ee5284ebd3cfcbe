"""Workers, each as if on a machine of its own: tests can kill or freeze its processes, and cut its connections."""

from __future__ import annotations

import contextlib
import os
import signal
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import psutil

from tests.support.cli_runner import MARK, started, until
from tests.support.proxy import Proxy
from tests.support.servers import Server

ROOT = Path(__file__).parents[2]


class Network:
    """A proxy before each server, for one machine."""

    def __init__(self, *servers: Server) -> None:
        self._proxies = {server.port: Proxy(server.port) for server in servers}

    def url(self, url: str) -> str:
        """Return the URL of a server through its proxy."""
        port = urlsplit(url.removeprefix("db+")).port
        assert port is not None
        return url.replace(f":{port}/", f":{self._proxies[port].port}/") if self._proxies else url

    def cut(self) -> None:
        """Close all connections; new ones work."""
        for proxy in self._proxies.values():
            proxy.heal()

    def vanish(self) -> None:
        """Lose all packets, and accept no connections."""
        for proxy in self._proxies.values():
            proxy.vanish()

    def hold(self) -> None:
        """Keep the connections to the servers open when the machine's processes die."""
        for proxy in self._proxies.values():
            proxy.hold()

    def close(self) -> None:
        for proxy in self._proxies.values():
            proxy.close()


class WorkerHost:
    """One `celeriac worker`. It is ready when the constructor returns."""

    def __init__(
        self,
        name: str,
        broker: Server,
        backend: Server,
        folder: Path,
        *options: str,
        program: str = "celeriac",
        is_behind_proxies: bool = True,
        env: dict[str, str] | None = None,
    ) -> None:
        self.name, self.log = name, folder / f"{name}.log"
        self._stack = ExitStack()
        self.network = Network(*{broker, backend} if is_behind_proxies else ())
        self._stack.callback(self.network.close)
        urls = ["--broker", self.network.url(broker.url), "--backend", self.network.url(backend.url)]
        self.worker = self._stack.enter_context(
            started(
                *("worker", "--name", name, *urls, *options),
                cwd=folder,
                log=self._stack.enter_context(self.log.open("ab")),
                program=program,
                env={"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), **(env or {})},
            )
        )
        until(lambda: "ready" in self.log.read_text() or self.worker.process.poll() is not None, f"worker {name}", 60)
        assert self.worker.process.poll() is None, self.log.read_text()

    def kill_worker(self) -> None:
        """Kill the worker's first process alone."""
        self.worker.signal(signal.SIGKILL)
        self.worker.process.wait()

    def kill(self) -> None:
        """Kill all processes at once. The connections stay half open."""
        self.network.hold()
        while processes := self.processes():
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self.worker.process.wait()

    def freeze(self) -> None:
        """Freeze the worker's first process alone: its supervisors go on."""
        self.worker.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        if self.worker.process.poll() is None:
            self.worker.signal(signal.SIGCONT)

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == self.worker.mark:
                    found.append(process)
        return found

    def close(self) -> None:
        self._stack.close()
        until(lambda: not self.processes(), f"the end of everything on {self.name}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
