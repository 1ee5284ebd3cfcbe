"""A broker, a result backend, workers and runs, which reach the servers through proxies that can refuse."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from psycopg.errors import LockNotAvailable

from celeriac.worker.outcome import STOP_DETAILS
from celeriac.worker.supervisor.messages import StopReason
from tests.support.cli_runner import Celeriac, jobs, run_in_process, started, until
from tests.support.refusing_proxy import (
    AmqpConversation,
    Conversation,
    RedisConversation,
    Refusal,
    RefusingProxy,
    SqlConversation,
)
from tests.support.servers import PgBouncer, PostgresServer, RabbitServer, RedisServer, Server

WORKERS, CONCURRENCY = 2, 2
SLOTS = WORKERS * CONCURRENCY
END_TIMEOUT = 60.0  # seconds from the end of a refusal until all tasks have ended

FAST = {
    "CELERIAC_SEARCH_INTERVAL": "2",
    "CELERIAC_RECONCILE_INTERVAL": "1",
    "CELERIAC_PUBLISH_BACKOFF_MAX": "1",
}
"""Settings of the runs."""

RECORD = "echo $CELERIAC_KEY >> begun; while [ ! -e go-{gate} ]; do sleep 0.05; done; echo $CELERIAC_KEY >> ended"
"""A command that records its start and its end, and ends when the file of its gate exists."""

MEET = f"echo $CELERIAC_KEY >> met-{{name}}; while [ $(wc -l < met-{{name}}) -lt {SLOTS} ]; do sleep 0.05; done"
"""A command that ends once as many of a run's commands run at once as there are slots."""


class RefusalSite:
    """The servers of one cell, and everything that uses them."""

    def __init__(
        self,
        folder: Path,
        broker: Server,
        backend: Server,
        *,
        postgres: PostgresServer | None = None,
        ledger: PostgresServer | None = None,
        broker_url: str | None = None,
        backend_url: str | None = None,
        role: str = "",
    ) -> None:
        """`postgres` refuses. `broker_url` and `backend_url` are the servers' URLs for a certain user, `role` is its
        name in PostgreSQL."""
        self.folder, self.broker, self.backend, self.role = folder, broker, backend, role
        self.broker_url = broker_url or broker.url
        self._postgres = postgres
        self._stack = ExitStack()
        self._proxies: dict[Server, RefusingProxy] = {
            server: self._stack.enter_context(RefusingProxy(server.port, conversation_with(server)))
            for server in {broker, backend, *([] if ledger is None else [ledger])}
        }
        self.urls = (self._url(broker, self.broker_url), self._url(backend, backend_url or backend.url))
        self._ledger = "none" if ledger is None else self._url(ledger, ledger.ledger_url)
        self._logs: list[Path] = []

    def proxy(self, server: Server) -> RefusingProxy:
        return self._proxies[server]

    @property
    def postgres(self) -> PostgresServer:
        assert self._postgres is not None
        return self._postgres

    # — processes —

    def worker(self, number: int) -> AbstractContextManager[Celeriac]:
        """Start a worker. It may not be ready yet."""
        name = f"w{number}"
        return self._start("worker", "--name", name, "--concurrency", str(CONCURRENCY), name=name)

    @contextmanager
    def workers(self) -> Iterator[list[Celeriac]]:
        """Start all workers, and wait until they are ready."""
        with ExitStack() as stack:
            workers = [stack.enter_context(self.worker(number)) for number in range(WORKERS)]
            logs = [self.log(f"w{number}") for number in range(WORKERS)]
            ready: list[Path] = []
            while len(ready) < WORKERS:
                assert all(worker.process.poll() is None for worker in workers), "a worker has ended"
                ready = [log for log in logs if "ready" in log.read_text()]
                time.sleep(0.05)  # between two checks
            yield workers

    def run(self, name: str, tasks: dict[str, str]) -> AbstractContextManager[Celeriac]:
        """Start a run of these commands, by key."""
        lines = [{"key": key, "command": command, "cwd": str(self.folder)} for key, command in tasks.items()]
        file = jobs(self.folder, *lines, name=f"{name}.jsonl")
        options = ["--json", "--events", f"{name}.events", "--ledger", self._ledger]
        return self._start("run", file, *options, name=name)

    def wait(self, process: Celeriac, what: str) -> int:
        """Wait until a process ends. Return its exit status."""
        until(lambda: process.process.poll() is not None, f"the end of {what}", END_TIMEOUT)
        return process.process.returncode

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def running(self) -> list[int]:
        """Return how many tasks each worker runs, as `celeriac status` shows it."""
        ended = run_in_process("status", *self._connection(), "--json", cwd=self.folder)
        assert ended.status == 0, ended.err
        return [worker["running"] for worker in json.loads(ended.out)["workers"]]

    def stop(self, workers: Sequence[Celeriac]) -> list[int]:
        """End the workers by TERM. Return their exit statuses."""
        for worker in workers:
            worker.signal(signal.SIGTERM)
        until(lambda: all(worker.process.poll() is not None for worker in workers), "the end of the workers", 60)
        return [worker.process.returncode for worker in workers]

    # — commands —

    def open_gate(self, gate: str) -> None:
        (self.folder / f"go-{gate}").touch()

    def keys(self, file: str) -> Counter[str]:
        path = self.folder / file
        return Counter(path.read_text().split() if path.exists() else [])

    # — refusals —

    @contextmanager
    def answering(self, server: Server, request: bytes, refusal: Refusal) -> Iterator[None]:
        """Answer requests that contain this pattern with a refusal."""
        self.proxy(server).refuse(request, refusal)
        try:
            yield
        finally:
            self.proxy(server).allow()

    @contextmanager
    def refusing_from(
        self, server: Server, request: bytes, refuse: Callable[[], AbstractContextManager[object]], gate: str | None
    ) -> Iterator[None]:
        """Begin a refusal just before a request that contains this pattern. Open a gate first, if that must happen for
        the request to be made."""
        has_arrived = threading.Event()
        with ExitStack() as stack:

            def begin() -> bool:
                try:
                    stack.enter_context(refuse())
                except LockNotAvailable:  # a transaction that goes on only when the proxy does
                    return False
                has_arrived.set()
                return True

            self.proxy(server).before(request, begin)
            if gate is not None:
                self.open_gate(gate)
            until(has_arrived.is_set, f"a request like {request!r}", 60)
            yield

    # — checks —

    def tracebacks(self) -> list[str]:
        """Return the logs that contain a traceback."""
        return [log.name for log in self._logs if "Traceback" in log.read_text()]

    def losses(self, name: str) -> Counter[str]:
        """Return how many attempts of each task a run lost that may have started, by its events. A message that was
        re-sent is no loss, and neither is an attempt whose worker knows that it came too late to start."""
        events = map(json.loads, (self.folder / f"{name}.events").read_text().splitlines())
        lost = [event for event in events if (event["state"], event.get("reason")) == ("waiting", "lost")]
        _, too_late = STOP_DETAILS[StopReason.TOO_LATE]
        return Counter(event["key"] for event in lost if event.get("detail") != too_late)

    def print_logs(self) -> None:
        """Print the end of each log, for pytest to show if the test fails."""
        for log in self._logs:
            print(f"——— {log.name} ———", *log.read_text().splitlines()[-60:], sep="\n")

    def close(self) -> None:
        self.print_logs()
        self._stack.close()

    @contextmanager
    def _start(self, command: str, *options: str | Path, name: str) -> Iterator[Celeriac]:
        self._logs.append(self.log(name))
        with (
            self.log(name).open("wb") as log,
            started(command, *options, *self._connection(), cwd=self.folder, log=log, env=FAST) as celeriac,
        ):
            yield celeriac

    def _connection(self) -> tuple[str, ...]:
        return "--broker", self.urls[0], "--backend", self.urls[1]

    def _url(self, server: Server, url: str) -> str:
        return url.replace(f":{server.port}/", f":{self.proxy(server).port}/")


def conversation_with(server: Server) -> Callable[[], Conversation]:
    match server:
        case RedisServer():
            return RedisConversation
        case RabbitServer():
            return AmqpConversation
        case PostgresServer() | PgBouncer():
            return SqlConversation
    raise TypeError(server)
