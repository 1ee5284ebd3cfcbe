"""The output of commands on workers elsewhere: whole, live, on the machine of the executor."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from celeriac.cli.logs import POLL_INTERVAL
from tests.support.cli_runner import jobs, run_in_process, started, until
from tests.support.servers import PostgresServer, RabbitServer, RedisServer, Server
from tests.support.workers import worker

pytestmark = pytest.mark.celery

LINES = 100_000
HALVES = (
    f"echo attempt $CELERIAC_ATTEMPT; seq {LINES}; printf 'half\\377\\000' >&2; touch ready-${{CELERIAC_KEY#*/}}\n"
    f"while [ ! -e go ]; do sleep 0.02; done; seq {LINES}; echo end >&2"
)
NUMBERS = b"".join(b"%d\n" % number for number in range(1, LINES + 1))
"""More than the store holds of one attempt."""

FIRST_HALF = b"attempt 1\n" + NUMBERS


class Site:
    """The servers of a test: `store` has the results."""

    def __init__(self, broker: str, backend: str, store: Server) -> None:
        self.urls, self.store = (broker, backend), store
        self.options = ("--broker", broker, "--backend", backend)


@pytest.fixture
def redis_site(shared_redis: RedisServer) -> Iterator[Site]:
    with Redis(port=shared_redis.port) as client:
        client.flushall()
        yield Site(shared_redis.url, shared_redis.url, shared_redis)
        assert client.keys("celeriac-output*") == []


@pytest.fixture
def rabbit_site(rabbit: RabbitServer, postgres: PostgresServer) -> Iterator[Site]:
    yield Site(rabbit.url, postgres.url, postgres)
    for table in ("celeriac_output", "celeriac_output_state"):
        assert postgres.sql(f"SELECT task_id FROM {table}") == []


@pytest.fixture(params=["redis", "rabbit"])
def site(request: pytest.FixtureRequest) -> Site:
    site: Site = request.getfixturevalue(f"{request.param}_site")
    return site


def is_half(files: Path) -> bool:
    """Return whether the first half of both streams has come."""
    out, err = files.with_suffix(".out"), files.with_suffix(".err")
    return err.exists() and out.read_bytes() == FIRST_HALF and err.read_bytes() == b"half\xff\0"


def whole(attempt: int) -> bytes:
    return b"attempt %d\n" % attempt + 2 * NUMBERS


def test_output_is_kept_as_it_is_written_and_logs_follow_it(redis_site, tmp_path):
    file = jobs(
        tmp_path,
        {"key": "live", "command": HALVES, "cwd": str(tmp_path)},
        {"key": "bad", "command": "echo oops >&2; exit 3", "retries": 1, "retry_delay": 0},
        {"key": "mute", "command": "true"},
    )
    out, ledger = tmp_path / "out", ("--ledger", "l.db")
    with (
        worker(tmp_path, redis_site.urls, "--concurrency", "2"),
        started("run", file, *redis_site.options, *ledger, "--output", "out", cwd=tmp_path) as runner,
    ):
        until(lambda: is_half(out / "live"), "the first half")
        with started("logs", "jobs", "live", "--out", "-f", *ledger, cwd=tmp_path) as logs:
            time.sleep(POLL_INTERVAL)
            (tmp_path / "go").touch()
            assert logs.process.communicate()[0] == whole(1)
        assert runner.wait().status == 1
    assert {path.name for path in out.iterdir() if path.stat().st_size == 0} == {
        "bad.out",
        "bad@2.out",
        "mute.out",
        "mute.err",
    }
    assert ((out / "live.out").read_bytes(), (out / "bad@2.err").read_bytes()) == (whole(1), b"oops\n")
    for task in map(json.loads, run_in_process("show", "jobs", "--json", *ledger, cwd=tmp_path).out.splitlines()):
        suffix = "@2.out" if task["key"] == "bad" else ".out"
        assert task["stdout"]["path"] == f"{out / task['key']}{suffix}"
    assert "oops" in run_in_process("logs", "jobs", "--failed", *ledger, cwd=tmp_path).out


def test_output_is_shown_tagged_in_order_and_cut_at_its_limit(redis_site, tmp_path):
    file = jobs(
        tmp_path,
        {"key": "slow", "command": "sleep 0.5; printf 'a\\377\\nb'"},
        {"key": "long", "command": f"seq {LINES}"},
    )
    with worker(tmp_path, redis_site.urls, "--concurrency", "2"):
        shown = ("run", file, *redis_site.options, "--tag", "--keep-order", "--ledger", "none", "--quiet")
        with started(*shown, cwd=tmp_path) as runner:
            tagged = b"".join(b"long\t%d\n" % number for number in range(1, LINES + 1))
            assert runner.process.communicate()[0] == b"slow\ta\xff\nslow\tb\n" + tagged
        with started(*shown, "--output-limit", "20000", cwd=tmp_path) as runner:
            text = runner.process.communicate()[0].replace(b"long\t", b"").partition(b"slow\tb\n")[2]
    head, tail = 20_000 - 16_384, 16_384
    note = b"\n[%d bytes left out]\n" % (len(NUMBERS) - 20_000)
    assert text == NUMBERS[:head] + note + NUMBERS[-tail:]


def test_a_resumed_run_shows_the_output_whose_begin_came_to_its_predecessor(redis_site, tmp_path):
    file = jobs(tmp_path, {"key": "k", "command": HALVES, "cwd": str(tmp_path)})
    arguments = ("run", file, *redis_site.options, "--ledger", "l.db", "--quiet", "--keep-order")
    with worker(tmp_path, redis_site.urls, "--concurrency", "1"):
        with started(*arguments, cwd=tmp_path) as runner:
            until((tmp_path / "ready-k").exists, "the first half")
            runner.signal(signal.SIGKILL)
        (tmp_path / "go").touch()
        with started(*arguments, "--resume", cwd=tmp_path) as runner:
            assert runner.process.communicate()[0] == whole(1)


def test_a_service_keeps_output_and_logs_show_it_while_it_is_written(redis_site, tmp_path):
    file, ledger = jobs(tmp_path, {"key": "k", "command": HALVES, "cwd": str(tmp_path)}), ("--ledger", "l.db")
    with (
        worker(tmp_path, redis_site.urls, "--concurrency", "1"),
        started("serve", *redis_site.options, *ledger, "--output", "out", "--log-level", "error", cwd=tmp_path),
    ):
        run_in_process("submit", file, *ledger, cwd=tmp_path)
        until(lambda: is_half(tmp_path / "out" / "jobs%2Fk"), "the first half")
        shown = ("logs", "jobs", "k", "--out", *ledger)
        until(lambda: run_in_process(*shown, cwd=tmp_path).out.encode() == FIRST_HALF, "the start in the ledger")
        (tmp_path / "go").touch()
        with started("logs", "jobs", "k", "--out", "-f", *ledger, cwd=tmp_path) as logs:
            assert logs.process.communicate()[0] == whole(1)


def test_output_survives_a_killed_worker_a_killed_executor_and_a_server_that_is_away(site, tmp_path):
    file = jobs(tmp_path, *({"key": key, "command": HALVES, "cwd": str(tmp_path)} for key in "pq"))
    out, arguments = tmp_path / "out", ("run", file, *site.options, "--ledger", "l.db", "--output", "out", "--json")
    one = ("--concurrency", "1")
    with worker(tmp_path, site.urls, *one) as killed, worker(tmp_path, site.urls, *one, "--name", "other"):
        with started(*arguments, cwd=tmp_path) as runner:
            until(lambda: all((out / f"{key}.out").exists() for key in "pq"), "the first output of both")
            runner.signal(signal.SIGKILL)
        killed.signal(signal.SIGKILL)
        site.store.freeze()
        time.sleep(2.0)
        site.store.thaw()
        (tmp_path / "go").touch()
        with started(*arguments, "--resume", cwd=tmp_path) as runner:
            ended = runner.wait()
    assert (ended.status, ended.summary["succeeded"], ended.summary["retried"]) == (0, 2, 1)
    (lost,) = [key for key in "pq" if (out / f"{key}@2.out").exists()]
    (kept,) = {"p", "q"} - {lost}
    assert (out / f"{kept}.out").read_bytes() == whole(1)
    assert (out / f"{lost}@2.out").read_bytes() == whole(2)
    assert (out / f"{lost}@2.err").read_bytes() == (out / f"{kept}.err").read_bytes() == b"half\xff\0end\n"
    assert whole(1).startswith((out / f"{lost}.out").read_bytes())
