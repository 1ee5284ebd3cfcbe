"""A prefix of all keys and channels on Redis: scans find each message, and a user needs no right to other names."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from celeriac import Config, State
from celeriac.cluster.cluster import Cluster
from tests.integration.test_cancel import outcomes
from tests.integration.test_cluster import Side
from tests.integration.test_explain import history_of, states
from tests.support.cli_runner import Ended, jobs, run, started, until
from tests.support.servers import RedisServer
from tests.support.workers import GATED, read_log

pytestmark = pytest.mark.celery

PREFIX = "team1:"
ENVIRONMENT = {"CELERIAC_KEY_PREFIX": PREFIX}
CHANNELS = (
    f"{PREFIX}*",
    f"{PREFIX}celery-task-meta-*",
    f"{PREFIX}/0.celery.pidbox",
    f"{PREFIX}/0.celeriac-executors.pidbox",
)
"""A pattern that a client subscribes to must be among the patterns of its user, letter by letter."""

SCANS = 4
WAITING = 40


def reads_of_lists(redis: RedisServer) -> int:
    counted = redis.command("INFO", "commandstats")
    return int(counted["cmdstat_lrange"]["calls"]) if "cmdstat_lrange" in counted else 0


def other_keys(redis: RedisServer) -> list[str]:
    return [key.decode() for key in redis.command("KEYS", "*") if not key.startswith(PREFIX.encode())]


@pytest.mark.parametrize("restart", [False, True])
def test_scans_find_waiting_messages_and_send_none_again(redis, tmp_path, restart):
    """A scan that looked for the lists without their prefix would find nothing, and send every task again."""
    options = {"global_keyprefix": PREFIX}
    config = Config(parallelism=WAITING, reconcile_interval=0.2, search_interval=0.1, publish_backoff_max=0.5)
    with Cluster(
        redis.url,
        config=config,
        late_binding=False,
        broker_transport_options=options,
        result_backend_transport_options=options,
    ) as cluster:
        side = Side(cluster)
        for number in range(WAITING):
            side.executor.queue_command(number, f"echo {number} >> log", cwd=str(tmp_path), priority=0)
        side.drive(lambda: len(side.in_state(State.QUEUED)) == WAITING, "the sent tasks")
        if restart:  # a scan for all tasks follows
            redis.kill()
            redis.start()
        side.drive(lambda: reads_of_lists(redis) >= SCANS, "some scans")
        assert sum(int(redis.command("LLEN", key)) for key in lists(redis)) == WAITING
        with started("worker", "--broker", redis.url, "--concurrency", "2", cwd=tmp_path, env=ENVIRONMENT) as worker:
            side.drive(lambda: sum(side.ends.values()) == WAITING, "the end of all")
            worker.process.terminate()
            assert worker.wait().status == 0
    assert Counter(read_log(tmp_path / "log")) == Counter(map(str, range(WAITING)))
    assert not [event for event in side.events if event.state is State.PUBLISHING and "neither" in (event.detail or "")]
    assert other_keys(redis) == []


def lists(redis: RedisServer) -> list[bytes]:
    return [key for key in redis.command("KEYS", f"{PREFIX}*") if redis.command("TYPE", key) == b"list"]


def waiting_and_running(status: Ended) -> tuple[int, int]:
    view = json.loads(status.out)
    return view["queues"][0]["waiting"], view["workers"][0]["running"]


def test_a_user_with_rights_to_the_prefix_alone_runs_explains_and_cancels(redis, tmp_path):
    url = redis.user(
        "+@all", "-@admin", "-@dangerous", "+info", f"~{PREFIX}*", *(f"&{pattern}" for pattern in CHANNELS)
    )
    cli = ("--broker", url)

    def command(*words: str | Path) -> Ended:
        ended = run(*words, *cli, "--json", cwd=tmp_path, env=ENVIRONMENT)
        assert ended.status == 0, ended.err
        return ended

    keys = ("first", "second", "never")
    file = jobs(tmp_path, *({"key": key, "command": GATED, "cwd": str(tmp_path)} for key in keys))
    with (
        started("worker", *cli, "--concurrency", "1", cwd=tmp_path, env=ENVIRONMENT) as worker,
        started("run", file, *cli, "--json", "-j", "3", cwd=tmp_path, env=ENVIRONMENT) as running,
    ):
        until(lambda: read_log(tmp_path / "log") == ["first"], "a running task")
        until(lambda: waiting_and_running(command("status")) == (1, 1), "a waiting task and a lease that has the other")
        until(lambda: states(history_of(command("explain", "first"))) == ["queued", "running"], "its history")
        assert outcomes(command("cancel", "never", "--wait", "30")) == {"never": ("revoked", "revoked")}
        (tmp_path / "go").touch()
        ended = running.wait()
        worker.process.terminate()
        log = worker.wait()
    assert (ended.summary["succeeded"], ended.summary["never_ran"], ended.summary["failed"]) == (2, 1, 0)
    assert read_log(tmp_path / "log") == ["first", "second"]
    assert log.status == 0
    assert "NOPERM" not in log.err + ended.err
    assert other_keys(redis) == []
    assert redis.command("ACL", "LOG") == []
