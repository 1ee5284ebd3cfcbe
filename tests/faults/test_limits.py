"""Limits of keys and rates over several executors, while workers, executors and stores fail.

Each command writes a line when it starts and one when it ends, so the lines show how many ran at once. A command that
is killed with its worker writes only the first.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.cli_runner import Celeriac, jobs, run, started, until
from tests.support.long import slow
from tests.support.workers import worker

pytestmark = pytest.mark.celery

COMMAND = "echo $CELERIAC_TASK_ID + $(date +%s%N) >> log; {}; echo $CELERIAC_TASK_ID - $(date +%s%N) >> log"
GATED = COMMAND.format("while [ ! -e go ]; do sleep 0.02; done")


@pytest.fixture(params=["redis", slow("rabbit and postgres")])
def urls(request: pytest.FixtureRequest) -> tuple[str, str]:
    if request.param == "redis":
        url = request.getfixturevalue("redis").url
        return url, url
    return request.getfixturevalue("rabbit").url, request.getfixturevalue("postgres").url


def options_of(urls: tuple[str, str], *options: str) -> tuple[str, ...]:
    return ("--broker", urls[0], "--backend", urls[1], *options)


def lines(folder: Path) -> list[tuple[str, str, int]]:
    log = folder / "log"
    words = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    return [(task_id, mark, int(when)) for task_id, mark, when in words]


def ran(folder: Path) -> list[str]:
    """Return the ids of the attempts that have started."""
    return [task_id for task_id, mark, _ in lines(folder) if mark == "+"]


def most_at_once(folder: Path, killed: dict[str, int] | None = None) -> int:
    """Return how many commands ran at once. `killed` has the times by which others were killed."""
    ends = [(when, -1) for _, mark, when in lines(folder) if mark == "-"]
    ends += [(when, -1) for when in (killed or {}).values()]
    starts = [(when, 1) for _, mark, when in lines(folder) if mark == "+"]
    running = most = 0
    for _, change in sorted(ends + starts):
        running += change
        most = max(most, running)
    return most


def keyed(folder: Path, name: str, number: int, command: str, **fields: object) -> Path:
    lines = ({"key": f"{name}{n}", "command": command, "concurrency_key": "db", **fields} for n in range(number))
    return jobs(folder, *lines, name=f"{name}.jsonl")


@contextmanager
def workers(folder: Path, urls: tuple[str, str], number: int) -> Iterator[list[Celeriac]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(worker(folder, urls, "--name", f"w{n}", "--concurrency", "4")) for n in range(number)
        ]


def test_executors_share_a_limit_and_none_starves(tmp_path, urls):
    command = COMMAND.format("sleep 0.1")
    files = [keyed(tmp_path, name, 6, command) for name in "ab"]
    with workers(tmp_path, urls, 1), ExitStack() as stack:
        how = options_of(urls, "--concurrency-limit", "db=2", "--json")
        runs = [stack.enter_context(started("run", file, *how, cwd=tmp_path)) for file in files]
        assert [each.wait().summary["succeeded"] for each in runs] == [6, 6]
    assert most_at_once(tmp_path) == 2


@pytest.mark.slow
def test_a_first_limit_comes_and_goes_while_a_run_goes_on(tmp_path, urls):
    file = jobs(tmp_path, *({"key": key, "command": GATED} for key in "abc"))
    how = options_of(urls, "--ledger", str(tmp_path / "ledger.db"))
    with workers(tmp_path, urls, 1), started("run", file, *how, "-j1", "--json", cwd=tmp_path) as celeriac:
        until(lambda: len(ran(tmp_path)) == 1, "the start of the first command")
        assert run("set", "jobs", "queue_rates=default=1/h", *how, cwd=tmp_path).status == 0
        (tmp_path / "go").touch()
        words = "waits for the rate of queue 'default', 1/h: next try in"
        until(
            lambda: words in run("explain", "c", *options_of(urls), cwd=tmp_path).out, "the end of the second command"
        )
        assert len(ran(tmp_path)) == 2
        assert run("set", "jobs", "queue_rates=default=none", *how, cwd=tmp_path).status == 0
        assert celeriac.wait().summary["succeeded"] == 3


@pytest.mark.slow
def test_no_window_of_a_second_has_more_starts_than_the_rate(tmp_path, urls):
    files = [keyed(tmp_path, name, 4, COMMAND.format("true")) for name in "ab"]
    with workers(tmp_path, urls, 1), ExitStack() as stack:
        how = options_of(urls, "--concurrency-rate", "db=3/s", "--json")
        runs = [stack.enter_context(started("run", file, *how, cwd=tmp_path)) for file in files]
        assert [each.wait().summary["succeeded"] for each in runs] == [4, 4]
    starts = sorted(when for _, mark, when in lines(tmp_path) if mark == "+")
    # A start counts when its worker gets the place. Its command begins a moment later: so the first may be late.
    assert starts[-1] - starts[0] >= 1.5e9


def test_the_place_of_a_killed_worker_is_free_once_it_is_dead(tmp_path, urls):
    file = keyed(tmp_path, "a", 3, GATED)
    how = options_of(urls, "--concurrency-limit", "db=1", "--json")
    with workers(tmp_path, urls, 1) as (first,), started("run", file, *how, cwd=tmp_path) as celeriac:
        until(lambda: len(ran(tmp_path)) == 1, "the start of the first command")
        (lost,) = ran(tmp_path)
        with worker(tmp_path, urls, "--name", "second", "--concurrency", "4"):
            first.kill()
            first.wait_until_nothing_is_alive()
            killed = {lost: time.time_ns()}
            (tmp_path / "go").touch()
            ended = celeriac.wait()
    assert ended.summary["succeeded"] == 3
    assert len(ran(tmp_path)) == 4
    assert most_at_once(tmp_path, killed) == 1


def test_the_places_of_a_killed_executor_are_free_when_its_tasks_have_ended(tmp_path, urls):
    first, second = keyed(tmp_path, "a", 3, GATED), keyed(tmp_path, "b", 2, COMMAND.format("true"))
    how = options_of(urls, "--concurrency-limit", "db=2", "--json")
    ledger = ("--ledger", str(tmp_path / "ledger.db"))
    with workers(tmp_path, urls, 1):
        with started("run", first, *how, *ledger, cwd=tmp_path) as celeriac:
            until(lambda: len(ran(tmp_path)) == 2, "the start of two commands")
            celeriac.signal(signal.SIGKILL)
        with started("run", second, *how, cwd=tmp_path) as other:
            time.sleep(1.0)
            assert len(ran(tmp_path)) == 2
            (tmp_path / "go").touch()
            assert other.wait().summary["succeeded"] == 2
        again = run("run", first, *how[:-3], "--json", "--resume", *ledger, cwd=tmp_path)
    assert again.summary["succeeded"] + again.summary["had_succeeded"] == 3
    assert len(set(ran(tmp_path))) == len(ran(tmp_path)) == 5
    assert most_at_once(tmp_path) == 2


def test_a_store_that_is_frozen_for_seconds_breaks_no_limit(tmp_path, redis):
    urls = redis.url, redis.url
    file = keyed(tmp_path, "a", 8, COMMAND.format("sleep 0.3"))
    how = options_of(urls, "--concurrency-limit", "db=2", "--json")
    with workers(tmp_path, urls, 2), started("run", file, *how, cwd=tmp_path) as celeriac:
        until(lambda: len(ran(tmp_path)) >= 2, "the start of two commands")
        redis.freeze()
        time.sleep(3.0)
        redis.thaw()
        ended = celeriac.wait()
    assert ended.summary["succeeded"] == 8
    assert most_at_once(tmp_path) <= 2
