"""Servers that refuse the executor and the commands: one line and status 2 if waiting cannot help, else a wait."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, closing
from pathlib import Path

import pytest
from redis import Redis

from celeriac import Config, State
from celeriac.cluster.cluster import Cluster
from tests.support.cli_runner import Ended, jobs, run, run_in_process, started, until, without_password_warning
from tests.support.long import LONG
from tests.support.servers import RedisCluster
from tests.support.workers import worker

pytestmark = [pytest.mark.celery, pytest.mark.usefixtures("collect_cut_sockets")]

TASKS = 12
EVERYTHING = ("+@all", "~*", "&*")


# — errors that waiting cannot end —


WRONG_URLS = {
    "closed port": (lambda _: "redis://:hush@127.0.0.1:1/0", "is unavailable: ", "Connection refused"),
    "unknown host": (lambda _: "redis://:hush@nohost.invalid/0", "is unavailable: ", "correct the host name"),
    "wrong password": (
        lambda s: f"redis://stranger:hush@127.0.0.1:{s.port}/0",
        "refuses requests: ",
        "or the password",
    ),
    "wrong database": (lambda s: f"redis://127.0.0.1:{s.port}/99", "refuses requests: ", "number of the database"),
    "no scripts": (lambda s: s.user(*EVERYTHING, "-@scripting"), "refuses requests: ", "'evalsha' command"),
    "no channels": (lambda s: s.user("+@all", "~*", "resetchannels"), "refuses requests: ", "the channels"),
    "no keys of claims": (lambda s: s.user("+@all", "~default*", "~_kombu*", "&*"), "refuses requests: ", "the keys"),
    "no key of the queue": (lambda s: s.user("+@all", "~cel*", "~_kombu*", "&*"), "refuses requests: ", "the keys"),
    "no publishing": (lambda s: s.user(*EVERYTHING, "-lpush"), "refuses requests: ", "'lpush' command"),
}


@pytest.mark.parametrize("case", WRONG_URLS if LONG else ["closed port", "wrong database", "no scripts", "no channels"])
def test_run_ends_before_anything_is_queued_if_waiting_cannot_help(case, shared_redis, tmp_path):
    url_of, problem, remedy = WRONG_URLS[case]
    ended = run("run", "--broker", url_of(shared_redis), jobs(tmp_path, {"command": "true"}), cwd=tmp_path)
    check_one_line(ended, 2)
    assert problem in ended.err
    assert remedy in ended.err
    with Redis(port=shared_redis.port) as client:
        assert client.keys("default*") == []


@pytest.mark.parametrize("command", [("status",), ("explain", "x"), ("cancel", "x"), ("drain", "w")])
@pytest.mark.parametrize(("case", "status"), [("closed port", 1), ("unknown host", 2), ("wrong password", 2)])
def test_a_command_says_in_one_line_why_the_broker_cannot_be_used(command, case, status, shared_redis, tmp_path):
    url_of, problem, remedy = WRONG_URLS[case]
    ended = run_in_process(*command, "--broker", url_of(shared_redis), cwd=tmp_path)
    check_one_line(ended, status)
    assert problem in ended.err
    assert remedy in ended.err


def test_a_redis_cluster_is_refused(tmp_path):
    with closing(RedisCluster()) as cluster:
        ended = run("run", "--broker", cluster.url, jobs(tmp_path, {"command": "true"}), cwd=tmp_path)
    check_one_line(ended, 2)
    assert "name a server that is not a Redis Cluster" in ended.err


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("amqp://guest:hush@127.0.0.1:{port}/{vhost}", "or the password"),
        ("amqp://guest:guest@127.0.0.1:{port}/nowhere", "virtual host"),
    ],
)
def test_rabbitmq_refuses_a_wrong_password_and_an_unknown_vhost(url, problem, rabbit, shared_redis, tmp_path):
    urls = "--broker", url.format(port=rabbit.port, vhost=rabbit.vhost), "--backend", shared_redis.url
    for ended in (
        run("run", *urls, jobs(tmp_path, {"command": "true"}), cwd=tmp_path),
        run_in_process("status", *urls, cwd=tmp_path),
    ):
        check_one_line(ended, 2)
        assert problem in ended.err


def test_rabbitmq_refuses_a_user_without_rights(rabbit, shared_redis, tmp_path):
    urls = "--broker", rabbit.url, "--backend", shared_redis.url
    with rabbit.no_rights():
        ended = run("run", *urls, jobs(tmp_path, {"command": "true"}), cwd=tmp_path)
    check_one_line(ended, 2)
    assert "ACCESS_REFUSED" in ended.err


def test_a_database_refuses_a_user_without_rights_as_backend_and_as_ledger(postgres, shared_redis, tmp_path):
    file = jobs(tmp_path, {"command": "true"})
    role, url = postgres.role()
    urls = "--broker", shared_redis.url, "--backend", f"db+{url}"
    with worker(tmp_path, (shared_redis.url, f"db+{url}")):
        assert run("run", *urls, file, cwd=tmp_path).status == 0
    with postgres.no_rights(role):
        as_backend = run("run", *urls, file, cwd=tmp_path)
    with postgres.no_login(role):
        as_ledger = run("run", "--ledger", url, file, cwd=tmp_path)
    for ended in (as_backend, as_ledger):
        check_one_line(ended, 2)
        assert "secret" not in ended.err
    assert "refuses requests: InsufficientPrivilege" in as_backend.err
    assert "is not permitted to log in; correct the user name" in as_ledger.err


def test_serve_ends_if_waiting_cannot_help(shared_redis, tmp_path):
    (tmp_path / "broker.url").write_text(f"redis://stranger:hush@127.0.0.1:{shared_redis.port}/0")
    ended = run("serve", "--broker-file", "broker.url", "--ledger", str(tmp_path / "ledger.db"), cwd=tmp_path)
    assert ended.status == 2
    assert ended.err.startswith("celeriac: redis://stranger:")
    assert ended.err.count("\n") == 1


# — refusals that end —


@pytest.mark.parametrize("refusal", ["full", "read_only", "busy", "loading"] if LONG else ["full"])
def test_run_waits_for_a_redis_that_refuses_at_the_start(refusal, redis, tmp_path):
    refuse: Callable[[], AbstractContextManager[None]] = getattr(redis, refusal)
    said = wait_and_run(tmp_path, refuse(), "nothing is queued until then", "--broker", redis.url)
    assert said.startswith("celeriac: redis://")
    assert " refuses requests: " in said


@pytest.mark.parametrize("refusal", ["read_only", "too_many_clients"] if LONG else ["read_only"])
def test_run_waits_for_a_ledger_that_refuses_at_the_start(refusal, postgres, redis, tmp_path):
    once = jobs(tmp_path, {"command": "true"}, name="once.jsonl")
    assert run("run", "--ledger", postgres.ledger_url, once, cwd=tmp_path).status == 0
    refuse: Callable[[], AbstractContextManager[None]] = getattr(postgres, refusal)
    options = "--ledger", postgres.ledger_url, "--broker", redis.url
    said = wait_and_run(tmp_path, refuse(), "nothing is queued until then", *options)
    assert said.startswith("celeriac: the ledger postgresql")


def test_run_waits_for_a_database_that_refuses_at_the_start(postgres, redis, tmp_path):
    options = "--broker", redis.url, "--backend", postgres.url
    said = wait_and_run(tmp_path, postgres.read_only(), "nothing is queued until then", *options)
    assert said.startswith("celeriac: the result backend db+postgresql")
    assert " refuses requests: " in said


def test_run_waits_for_a_rabbitmq_with_an_alarm_and_says_so_once(rabbit, redis, tmp_path):
    said = wait_and_run(tmp_path, rabbit.memory_alarm(), "tasks wait: ", "--broker", rabbit.url, "--backend", redis.url)
    assert said.startswith("celeriac: amqp://")
    assert " refuses requests, tasks wait: BrokerBlocked: " in said


@pytest.mark.parametrize("refusal", ["full", "read_only"] if LONG else ["read_only"])
def test_run_goes_on_when_a_redis_refuses_for_a_while(refusal, redis, tmp_path):
    refuse: Callable[[], AbstractContextManager[None]] = getattr(redis, refusal)
    file = counted_jobs(tmp_path, "sleep 0.3; echo >> ended")
    command = ("run", "--broker", redis.url, "--json", file)
    with worker(tmp_path, (redis.url, redis.url), "-c", "2"), started(*command, cwd=tmp_path) as celeriac:
        until((tmp_path / "begun").exists, "the first command")
        with refuse():
            until((tmp_path / "ended").exists, "the end of a command")
        ended = celeriac.wait()
    check_all_ran_once(tmp_path, ended)
    assert ended.err.count(" refuses requests, tasks wait: ") == ended.err.count("/0 is available again ") <= 1


@pytest.mark.parametrize("refusal", ["full", "read_only"] if LONG else ["full"])
def test_status_shows_what_it_can_read_of_a_redis_that_refuses(refusal, redis, tmp_path):
    refuse: Callable[[], AbstractContextManager[None]] = getattr(redis, refusal)
    urls = redis.url, redis.url
    command = ("status", "--broker", urls[0], "--json")
    with worker(tmp_path, urls, "--name", "w1", "-c", "3"):
        until(lambda: json.loads(run_in_process(*command, cwd=tmp_path).out)["workers"], "the lease of the worker")
        with refuse():
            read = run_in_process(*command, cwd=tmp_path)
            asked = run_in_process(*command, "--ask", cwd=tmp_path)
            explained = run_in_process("explain", "x", "--broker", urls[0], cwd=tmp_path)
    for ended in (read, asked):
        found = json.loads(ended.out)
        assert [(queue["name"], queue["slots"]) for queue in found["queues"]] == [("default", 3)]
        assert [worker["name"].partition("@")[0] for worker in found["workers"]] == ["w1"]
    assert (read.status, read.err) == (0, "")
    assert " refuses requests: " in found["problem"]
    assert (asked.status, asked.err.count("\n")) == (1, 1)
    assert asked.err.endswith("; workers are shown by their leases\n")
    check_one_line(explained, 1)


def test_results_are_found_without_the_right_to_subscribe(redis, tmp_path, caplog):
    url = redis.user(*EVERYTHING)
    name = url.removeprefix("redis://").partition(":")[0]
    with (
        worker(tmp_path, (redis.url, redis.url)),
        Cluster(url, config=Config(reconcile_interval=0.5)) as cluster,
        cluster.executor() as executor,
    ):
        redis.command("ACL", "SETUSER", name, "-psubscribe")
        redis.command("CLIENT", "KILL", "TYPE", "pubsub")
        executor.queue_command("one", "true")
        assert [event.state for event in executor.run_until_idle()][-1] is State.SUCCESS
        until(lambda: "the change feed refuses requests" in caplog.text, "the line about the change feed")
    assert caplog.text.count("the change feed refuses requests, changes are found by polling: ") == 1


# — parts —


def counted_jobs(folder: Path, then: str = "true") -> Path:
    return jobs(folder, *({"command": f"echo {n} >> begun; {then}"} for n in range(TASKS)))


def check_all_ran_once(folder: Path, ended: Ended) -> None:
    assert "Traceback" not in ended.err
    assert (ended.status, ended.summary["succeeded"]) == (0, TASKS), ended.err
    assert Counter((folder / "begun").read_text().split()) == Counter(map(str, range(TASKS)))


def check_one_line(ended: Ended, status: int) -> None:
    assert (ended.status, ended.out) == (status, "")
    assert without_password_warning(ended.err).count("\n") == 1, ended.err
    assert ended.err.startswith("celeriac: ")
    assert "hush" not in ended.err


def wait_and_run(folder: Path, refusal: AbstractContextManager[None], text: str, *options: str) -> str:
    """Start a run while a server refuses. When it has said this text, let the server serve, and start a worker.

    Return what the run said until then. Fail unless it said it once, and ran each command once.
    """
    broker = options[options.index("--broker") + 1]
    backend = options[options.index("--backend") + 1] if "--backend" in options else broker
    command: list[str | Path] = ["run", *options, "--json", counted_jobs(folder)]
    refusing = ExitStack()
    with refusing:
        refusing.enter_context(refusal)
        with started(*command, cwd=folder) as celeriac:
            said = celeriac.wait_for_stderr(text)
            refusing.close()
            with worker(folder, (broker, backend)):
                ended = celeriac.wait()
    check_all_ran_once(folder, ended)
    assert (said + ended.err).count(text) == 1
    return said
