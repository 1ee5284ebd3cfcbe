"""`celeriac status --watch` on a real terminal, with real servers that go away and come back."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from celeriac.backend.claims import claims_for
from celeriac.backend.claims.claim import Claims, Lease
from celeriac.broker.app import app_for
from celeriac.cluster.status import StatusReader
from celeriac.config.settings import read_settings
from celeriac.errors import BrokerUnavailable
from celeriac.ledger.run_store import RunStore
from celeriac.runs.overview import OverviewReader
from tests.integration.test_json_output import check
from tests.support.cli_runner import jobs, run, started, until
from tests.support.servers import RedisServer
from tests.support.terminal import on_terminal

TO_FILE = ("sh", "-c", 'exec "$@" > lines', "sh")
HOSTILE = "\x1b[2J[red]x[/]"


def lease(name: str, **fields: object) -> Lease:
    values = {"holder": name, "name": name, "host": "h", "pid": 1, "boot_id": "b", "queues": ("gpu",), "slots": 4}
    return Lease(**{**values, **fields})  # type: ignore[arg-type]


@pytest.fixture
def claims(redis: RedisServer) -> Iterator[Claims]:
    claims = claims_for(app_for(read_settings({"broker": redis.url}, environment={}).connection), timeout=5)
    assert claims is not None
    with closing(claims):
        yield claims


@pytest.fixture
def ledger(tmp_path: Path) -> str:
    """A ledger with an ended run of three tasks, one of which failed."""
    path = str(tmp_path / "ledger.db")
    file = jobs(tmp_path, {"command": "true"}, {"command": "true"}, {"command": "false"}, name="nightly.jsonl")
    assert run("run", file, "--ledger", path, cwd=tmp_path).status == 1
    return path


def connections_of(pid: int, port: int) -> set[int]:
    """Return the local ports of a process's connections to a server."""
    return {each.laddr.port for each in psutil.Process(pid).net_connections() if each.raddr and each.raddr.port == port}


def lines_of(folder: Path) -> list[str]:
    """Return the whole lines that were written to the file so far."""
    file = folder / "lines"
    return file.read_text().split("\n")[:-1] if file.exists() else []


def test_the_overview_follows_what_happens_on_one_connection_and_leaves_a_clean_terminal(
    redis, claims, ledger, tmp_path
):
    claims.renew(lease("w1", running=("a",)))
    command = ["status", "--watch", "--interval", "0.5", "--broker", redis.url, "--ledger", ledger]
    with on_terminal(*command, cwd=tmp_path) as terminal:
        text = terminal.wait_for(lambda text: "w1 " in text and "nightly" in text)
        assert text.splitlines()[2].split() == ["queue", "waiting", "oldest", "slots", "in", "use"]
        connections = connections_of(terminal.process.pid, redis.port)
        claims.renew(lease(HOSTILE, holder="w2", slots=3))  # what cannot be printed makes a lease malformed
        claims.renew(lease("[red]w3[/]", holder="w3", slots=3, queues=("[@click=app.quit]q",)))
        text = terminal.wait_for("[red]w3[/]")
        assert "[@click=app.quit]q" in text
        terminal.resize(40, 24)
        narrow = terminal.wait_for(lambda text: text.startswith("celeriac") and "q q" in text.splitlines()[0])
        assert "w1" in narrow
        terminal.resize(160, 40)
        terminal.wait_for(lambda text: "ended" in text and "q quits" in text)
        assert connections_of(terminal.process.pid, redis.port) == connections
        assert len(connections) == 1
        terminal.press("x\x1a")  # neither echoed nor a stop
        terminal.press("\x03")
        assert terminal.wait() == 0
        assert terminal.is_clean


@pytest.mark.parametrize("end", ["q", signal.SIGTERM])
def test_a_server_that_goes_away_is_one_line_until_it_is_back(redis, claims, tmp_path, end):
    claims.renew(lease("w1"))
    command = ["status", "--watch", "--interval", "0.5", "--broker", redis.url]
    with on_terminal(*command, cwd=tmp_path, columns=80) as terminal:
        terminal.wait_for("w1")
        redis.kill()
        down = terminal.wait_for(lambda text: "is unavailable" in text and "w1" not in text)
        assert "Traceback" not in down
        redis.start()
        claims.renew(lease("w2"))
        terminal.wait_for(lambda text: "w2" in text and "is unavailable" not in text)
        terminal.press(end) if isinstance(end, str) else terminal.process.send_signal(end)
        assert terminal.wait() == 0
        assert terminal.is_clean


def test_without_a_terminal_it_prints_one_line_for_each_change(redis, claims, tmp_path):
    claims.renew(lease("w1"))
    command = ["status", "--watch", "--interval", "0.5", "--broker", redis.url]
    with started(*command, cwd=tmp_path, before=TO_FILE) as watching:

        def lines() -> list[str]:
            return [line.split("  ", 1)[1] for line in lines_of(tmp_path)]

        until(lambda: "worker w1  in use 0/4, queues gpu" in lines(), "the first lines")
        claims.end_lease("w1")
        until(lambda: "worker w1: gone" in lines(), "the line about the worker that has gone")
        watching.signal(signal.SIGINT)
        ended = watching.wait()
    assert (ended.status, ended.err) == (0, "")
    first = ["queue default  waiting 0, slots 0, in use 0", "queue gpu  waiting 0, slots 4, in use 0"]
    assert sorted(lines()) == sorted(
        [*first, "worker w1  in use 0/4, queues gpu", "worker w1: gone", "queue gpu: gone"]
    )


def test_as_json_it_prints_one_object_for_each_change(redis, claims, ledger, tmp_path):
    claims.renew(lease("w1"))
    command = ["status", "--watch", "--interval", "0.5", "--broker", redis.url, "--ledger", ledger, "--json"]
    with started(*command, cwd=tmp_path, before=TO_FILE) as watching:

        def objects() -> list[Any]:
            return [check("watch", line) for line in lines_of(tmp_path)]

        until(lambda: len(objects()) == 1, "the first object")
        claims.renew(lease("w1", draining=True))
        until(lambda: len(objects()) == 2, "the second object")
        watching.signal(signal.SIGINT)
        assert watching.wait().status == 0
    assert [each.workers[0].draining for each in objects()] == [False, True]
    assert [run.run for run in objects()[0].runs] == ["nightly"]


def test_rabbitmq_is_read_over_one_connection_which_is_made_anew(rabbit):
    app = app_for(read_settings({"broker": rabbit.url, "backend": "cache+memory://"}, environment={}).connection)
    with closing(StatusReader(app, timeout=5)) as reader:
        assert [queue.name for queue in reader.read(("default",)).queues] == ["default"]
        assert [queue.name for queue in reader.read(("default", "x")).queues] == ["default", "x"]

        def has_read() -> bool:
            try:
                return bool(reader.read(("default",)).queues)
            except BrokerUnavailable:  # or Kombu has noticed first, and has connected again by itself
                return False

        rabbit.control("close_all_connections", "test")
        until(has_read, "a read over a new connection")


def test_a_ledger_on_a_server_that_goes_away_is_read_again_when_it_is_back(postgres):
    def open_ledger() -> RunStore:
        return RunStore(postgres.ledger_url)

    with closing(OverviewReader(broker=None, ledger=open_ledger)) as reader:
        before = reader.read()
        assert (before.runs, before.problems) == ((), ())
        postgres.kill()
        until(lambda: reader.read().problems, "the line about the ledger")
        assert reader.read().runs is None
        postgres.start()
        until(lambda: reader.read().runs == (), "the runs of the ledger that is back")


def test_wrong_calls_are_refused(tmp_path):
    for options, line in {
        ("--interval", "1"): "--interval needs --watch",
        ("--watch", "--ask"): "--watch takes neither --ask nor --refused",
    }.items():
        refused = run("status", *options, cwd=tmp_path)
        assert (refused.status, line in refused.err) == (2, True)
    nothing = run("status", "--watch", cwd=tmp_path)
    assert nothing.status == 2
    assert nothing.err.startswith("celeriac: broker: none is named")
