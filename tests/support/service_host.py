"""`celeriac serve` processes for tests, their ledgers, and jobs that record their starts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from celeriac.ledger.run_store import RunStore
from celeriac.task.state import State
from tests.support.cli_runner import Celeriac, jobs, run, started, until
from tests.support.servers import PostgresServer

RECORD_START = "echo ${CELERIAC_KEY##*/} $CELERIAC_ATTEMPT >> begun; "
WAIT_FOR_GO = "while [ ! -e go ]; do sleep 0.05; done"
SERVICE_TIMEOUT = 60.0  # seconds


class ServiceProcess:
    """A running `celeriac serve`, and its log."""

    def __init__(self, celeriac: Celeriac, log: Path) -> None:
        self.celeriac, self._log = celeriac, log

    @property
    def log(self) -> str:
        return self._log.read_text()

    def log_lines(self, event: str) -> list[dict[str, Any]]:
        """Return the log lines whose event begins with this text."""
        lines = [json.loads(line) for line in self.log.splitlines() if line.startswith("{") and line.endswith("}")]
        return [line for line in lines if line["event"].startswith(event)]

    def runs_taken(self, run: str) -> list[dict[str, Any]]:
        """Return the log lines that say that the process took the run."""
        return [line for line in self.log_lines("run taken") if line["run"] == run]

    def wait_for_log(self, event: str, number: int = 1) -> None:
        until(lambda: len(self.log_lines(event)) >= number, f"{event!r} in the log", SERVICE_TIMEOUT)

    def wait_for_end(self) -> int:
        return self.celeriac.process.wait(timeout=SERVICE_TIMEOUT)


@contextmanager
def running_service(folder: Path, name: str, ledger: str, *options: str) -> Iterator[ServiceProcess]:
    """Start a service, and kill it in the end."""
    log = folder / f"{name}.log"
    with log.open("wb") as file:
        arguments = ("serve", "--ledger", ledger, "--log-format", "json", *options)
        with started(*arguments, cwd=folder, log=file) as celeriac:
            service = ServiceProcess(celeriac, log)
            service.wait_for_log("serving")
            yield service


def submit(folder: Path, ledger: str, *lines: dict[str, Any], name: str = "jobs") -> str:
    """Submit jobs, and return the name of their run."""
    submitted = run("submit", jobs(folder, *lines, name=f"{name}.jsonl"), "--ledger", ledger, cwd=folder)
    assert submitted.status == 0, submitted.err
    return submitted.out.strip()


def job(key: str, then: str = WAIT_FOR_GO, **fields: Any) -> dict[str, Any]:
    """Return a job that records its start, and then runs another command: by default it waits for the file `go`."""
    return {"key": key, "command": RECORD_START + then, **fields}


def starts(folder: Path) -> list[tuple[str, int]]:
    """Return the key and the attempt of each start, in order."""
    file = folder / "begun"
    lines = file.read_text().splitlines() if file.exists() else []
    return [(key, int(attempt)) for key, attempt in (line.split() for line in lines)]


def run_states(ledger: str, name: str) -> dict[str, int]:
    """Return how many tasks of the run are in each state."""
    with RunStore(ledger, must_exist=True) as opened:
        number = opened.find_run(name)
        assert number is not None
        return {state.value: count for state, count in opened.count_states(number).items()}


def has_ended(ledger: str, name: str) -> bool:
    with RunStore(ledger, must_exist=True) as opened:
        number = opened.find_run(name)
        return number is not None and opened.has_ended(number)


def wait_until_ended(ledger: str, *names: str) -> None:
    for name in names:
        until(lambda name=name: has_ended(ledger, name), f"the end of run {name}", SERVICE_TIMEOUT)  # type: ignore[misc]


def postgres_ledger(server: PostgresServer, name: str) -> str:
    """Create an empty database on the server, and return its URL."""
    server.sql(f"CREATE DATABASE {name}")
    return server.url.removeprefix("db+").rpartition("/")[0] + f"/{name}"


def all_succeeded(ledger: str, name: str, number: int) -> bool:
    return run_states(ledger, name) == {State.SUCCESS.value: number}
