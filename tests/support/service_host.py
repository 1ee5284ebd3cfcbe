"""`celeriac serve` beside a test, on ledgers of its own, and commands that write down that they began."""

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

BEGUN = "echo ${CELERIAC_KEY##*/} $CELERIAC_ATTEMPT >> begun; "
GATE = "while [ ! -e go ]; do sleep 0.05; done"
PATIENCE = 60.0  # seconds


class Serving:
    def __init__(self, celeriac: Celeriac, log: Path) -> None:
        self.celeriac, self._log = celeriac, log

    @property
    def log(self) -> str:
        return self._log.read_text()

    def lines(self, event: str) -> list[dict[str, Any]]:
        """What it said of that kind."""
        said = [json.loads(line) for line in self.log.splitlines() if line.startswith("{") and line.endswith("}")]
        return [line for line in said if line["event"].startswith(event)]

    def taken(self, run: str) -> list[dict[str, Any]]:
        return [line for line in self.lines("run taken") if line["run"] == run]

    def hears(self, event: str, number: int = 1) -> None:
        until(lambda: len(self.lines(event)) >= number, f"{event!r} in its log", PATIENCE)

    def ends(self) -> int:
        return self.celeriac.process.wait(timeout=PATIENCE)


@contextmanager
def serving(folder: Path, name: str, ledger: str, *options: str) -> Iterator[Serving]:
    """At work, and killed in the end."""
    log = folder / f"{name}.log"
    with log.open("wb") as file:
        words = ("serve", "--ledger", ledger, "--log-format", "json", *options)
        with started(*words, cwd=folder, log=file) as celeriac:
            serve = Serving(celeriac, log)
            serve.hears("serving")
            yield serve


def submit(folder: Path, ledger: str, *lines: dict[str, Any], name: str = "jobs") -> str:
    ended = run("submit", jobs(folder, *lines, name=f"{name}.jsonl"), "--ledger", ledger, cwd=folder)
    assert ended.status == 0, ended.err
    return ended.out.strip()


def job(key: str, then: str = GATE, **fields: Any) -> dict[str, Any]:
    return {"key": key, "command": BEGUN + then, **fields}


def begun(folder: Path) -> list[tuple[str, int]]:
    """Key and attempt of each start, in their order."""
    file = folder / "begun"
    lines = file.read_text().splitlines() if file.exists() else []
    return [(key, int(attempt)) for key, attempt in (line.split() for line in lines)]


def states(ledger: str, name: str) -> dict[str, int]:
    with RunStore(ledger, must_exist=True) as opened:
        number = opened.find_run(name)
        assert number is not None
        return {state.value: many for state, many in opened.count_states(number).items()}


def ended(ledger: str, name: str) -> bool:
    with RunStore(ledger, must_exist=True) as opened:
        number = opened.find_run(name)
        return number is not None and opened.has_ended(number)


def until_ended(ledger: str, *names: str) -> None:
    for name in names:
        until(lambda name=name: ended(ledger, name), f"the end of run {name}", PATIENCE)  # type: ignore[misc]


def postgres_ledger(server: PostgresServer, name: str) -> str:
    """An empty database on it."""
    server.sql(f"CREATE DATABASE {name}")
    return server.url.removeprefix("db+").rpartition("/")[0] + f"/{name}"


def all_succeeded(ledger: str, name: str, number: int) -> bool:
    return states(ledger, name) == {State.SUCCESS.value: number}
