"""`celeriac cancel`, for runs on this machine and on brokers."""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from celeriac import Config, State
from celeriac.backend.claims import claims_for
from celeriac.backend.claims.claim import ClaimCancelled
from celeriac.broker.app import make_app
from celeriac.cluster.cluster import Cluster
from tests.integration.test_cluster_run import read_transitions
from tests.support.cli_runner import Celeriac, Ended, jobs, run, started, until, without_password_warning
from tests.support.long import slow
from tests.support.servers import RedisServer
from tests.support.workers import GATED, read_log, worker

pytestmark = pytest.mark.celery

STUBBORN = """
trap '' TERM; echo $CELERIAC_KEY >> log
sh -c 'trap "" TERM; echo up > grandchild; while :; do echo x >> marks; sleep 0.05; done' &
wait; while :; do sleep 0.05; done
"""
"""Reports that it runs, ignores TERM, and has a grandchild that ignores TERM, too."""


@pytest.fixture
def runtime() -> Iterator[dict[str, str]]:
    """Yield the environment of a user without other runs. The path is short, because the path of a socket must be."""
    folder = tempfile.mkdtemp(prefix="celeriac-")
    yield {"XDG_RUNTIME_DIR": folder}
    shutil.rmtree(folder)


@pytest.fixture
def url(shared_redis: RedisServer) -> str:
    with Redis(port=shared_redis.port) as client:
        client.flushall()
    return shared_redis.url


@contextmanager
def running(file: Path, *options: str, env: dict[str, str] | None = None) -> Iterator[Celeriac]:
    with started("run", file, "--json", "--events", "events", *options, cwd=file.parent, env=env) as celeriac:
        yield celeriac


def job(key: str, command: str = GATED, **fields: Any) -> dict[str, Any]:
    return {"key": key, "command": command, **fields}


def outcomes(ended: Ended) -> dict[str, tuple[str, str | None]]:
    return {task["name"]: (task["outcome"], task["state"]) for task in json.loads(ended.out)["tasks"]}


def sockets(runtime: dict[str, str]) -> list[Path]:
    return sorted(Path(runtime["XDG_RUNTIME_DIR"]).glob("celeriac/*"))


# — this machine —


def test_cancel_on_this_machine_ends_running_and_waiting_tasks(tmp_path, runtime):
    file = jobs(tmp_path, job("stubborn", STUBBORN, grace=0.3), job("waits"), job("stays", GATED))
    with running(file, "-j1", env=runtime) as celeriac:
        until((tmp_path / "grandchild").exists, "the grandchild")
        ended = run("cancel", "stubborn", "waits", "--wait", "30", "--json", cwd=tmp_path, env=runtime)
        marks = (tmp_path / "marks").read_text()
        until(lambda: "stays" in read_log(tmp_path / "log"), "the next one")
        assert [word for word in celeriac.alive() if "trap" in word] == []
        assert (tmp_path / "marks").read_text() == marks
        (tmp_path / "go").touch()
        summary = celeriac.wait().summary
    assert outcomes(ended) == {"stubborn": ("called_back", "revoked"), "waits": ("revoked", "revoked")}
    assert ended.status == 0
    assert (summary["revoked"], summary["never_ran"], summary["succeeded"]) == (1, 1, 1)
    assert read_log(tmp_path / "log") == ["stubborn", "stays"]
    assert sockets(runtime) == []


def test_cancel_of_a_queue_leaves_other_queues_and_prints_one_line_each(tmp_path, runtime):
    gpu = (job(f"g{n}", GATED, queue="gpu") for n in range(3))
    file = jobs(tmp_path, *gpu, job("other"))
    with running(file, "-j2", "--queue-limit", "gpu=1", env=runtime) as celeriac:
        running_both = {("g0", "running"), ("other", "running")}
        until(lambda: running_both <= {*read_transitions(tmp_path)}, "two that run")
        first = run("cancel", "--queue", "gpu", "--queue", "none", "unknown", cwd=tmp_path, env=runtime)
        until(lambda: ("g0", "revoked") in read_transitions(tmp_path), "its end")
        again = run("cancel", "g0", "--queue", "gpu", cwd=tmp_path, env=runtime)
        (tmp_path / "go").touch()
        assert celeriac.wait().summary["succeeded"] == 1
    assert first.out.splitlines() == [
        "queue 'gpu': 2 tasks revoked while waiting",
        "g0: cancelling: its processes are being ended",
    ]
    assert first.err.splitlines() == [
        "celeriac: no task of queue 'none' is waiting or in flight",
        "celeriac: no task 'unknown' is waiting or in flight",
    ]
    assert first.status == again.status == 1
    assert again.out == ""
    assert again.err.splitlines() == [
        "celeriac: no task of queue 'gpu' is waiting or in flight",
        "celeriac: task 'g0' had already ended: revoked: revoked while it ran",
    ]


def test_a_task_that_does_not_end_in_time_sets_the_exit_status(tmp_path, runtime):
    file = jobs(tmp_path, job("stubborn", STUBBORN, grace=3))
    with running(file, env=runtime) as celeriac:
        until((tmp_path / "grandchild").exists, "the grandchild")
        ended = run("cancel", "stubborn", "--wait", "0.2", cwd=tmp_path, env=runtime)
        explained = run("explain", "stubborn", cwd=tmp_path, env=runtime)
        celeriac.kill()
    assert (ended.status, ended.out) == (
        1,
        "stubborn: cancelling: its processes are being ended; not ended after 0.20 s\n",
    )
    assert explained.out.splitlines()[-1] == "now: cancelling: its processes are being ended"


def test_cancel_asks_every_run_of_the_user_and_removes_dead_sockets(tmp_path, runtime):
    folders = [tmp_path / name for name in ("one", "other")]
    for folder in folders:
        folder.mkdir()
        jobs(folder, job("same"), job(folder.name))
    with running(folders[0] / "jobs.jsonl", env=runtime) as one, running(folders[1] / "jobs.jsonl", env=runtime) as two:
        until(lambda: all("same" in read_log(folder / "log") for folder in folders), "both")
        ended = run("cancel", "same", "other", "--wait", "30", "--json", cwd=tmp_path, env=runtime)
        one.signal(signal.SIGKILL)
        one.process.wait()
        assert two.wait().summary["revoked"] == 2
        assert len(sockets(runtime)) == 1
        unknown = run("cancel", "one", cwd=tmp_path, env=runtime)
    names = [task["name"] for task in json.loads(ended.out)["tasks"]]
    assert sorted(names) == ["other", "same", "same"]
    assert unknown.status == 1
    assert unknown.err.splitlines() == [
        "celeriac: no task 'one' is waiting or in flight",
        "celeriac: only the runs on this machine were asked; for those on a broker, give --broker-file",
    ]
    assert sockets(runtime) == []


def test_a_run_goes_on_without_a_socket_in_an_unsafe_folder(tmp_path, runtime):
    folder = Path(runtime["XDG_RUNTIME_DIR"], "celeriac")
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    ended = run("run", "--", "echo", "fine", cwd=tmp_path, env=runtime)
    assert (ended.status, ended.out) == (0, "fine\n")
    assert f"{folder} must be a folder of this user that no other user may enter" in ended.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["cancel"], "name a KEY, a --queue or an --id"),
        (["cancel", "--id", "x"], "celeriac: --id: needs a broker; give --broker, or the KEY instead\n"),
        (["cancel", "k", "--wait", "-1"], "-1"),
        (["cancel", "k", "--local", "--broker", "redis://h/0"], "--local takes neither"),
        (["cancel", "\udcff"], "celeriac: KEY, --queue, --id: '\\udcff' is not Unicode; write it in UTF-8\n"),
        (["explain"], "Missing argument 'KEY'"),
        (["explain", "k", "--events", "none"], "celeriac: --events: none: No such file or directory; name a file"),
        (["drain", "w1"], "celeriac: broker: none is named; give --broker-file or --broker"),
    ],
)
def test_bad_input_is_status_2(tmp_path, runtime, options, message):
    ended = run(*options, cwd=tmp_path, env=runtime)
    assert (ended.status, ended.out) == (2, "")
    assert message in ended.err


# — on a broker —


@pytest.mark.parametrize("kind", ["redis", slow("rabbitmq")])
def test_cancel_over_a_broker_ends_waiting_queued_and_running_tasks(request, tmp_path, kind):
    if kind == "redis":
        urls = (request.getfixturevalue("url"),) * 2
    else:
        urls = (request.getfixturevalue("rabbit").url, request.getfixturevalue("postgres").url)
    known = ("--broker", urls[0], "--backend", urls[1])
    here = {"cwd": str(tmp_path)}
    names = ["sent1", "sent2", "waits1", "waits2", "waits3"]
    file = jobs(tmp_path, job("stubborn", STUBBORN, grace=0.3, **here), *(job(name, **here) for name in names))
    with running(file, *known) as celeriac, worker(tmp_path, urls, "--concurrency", "1"):
        until(
            lambda: ("sent1", "queued") in read_transitions(tmp_path) and (tmp_path / "grandchild").exists(),
            "one of each",
        )
        ended = run("cancel", "stubborn", "sent1", "waits1", *known, "--wait", "60", "--json", cwd=tmp_path)
        marks = (tmp_path / "marks").read_text()
        until(lambda: {("sent2", "running"), ("waits2", "queued")} <= {*read_transitions(tmp_path)}, "the next ones")
        assert (tmp_path / "marks").read_text() == marks
        rest = run("cancel", "--queue", "default", "unknown", *known, cwd=tmp_path)
        summary = celeriac.wait().summary
    results = outcomes(ended)
    assert results["stubborn"] == ("called_back", "revoked")
    assert results["sent1"] == ("called_back", "revoked")
    assert results["waits1"] == ("revoked", "revoked")
    assert ended.status == 0
    assert rest.out.splitlines() == [
        "queue 'default': 1 task revoked while waiting",
        "sent2: cancelling: its processes are being ended",
        "waits2: cancelling: it will not start",
    ]
    assert (rest.status, rest.err) == (1, "celeriac: no task 'unknown' is waiting or in flight\n")
    assert (summary["revoked"], summary["never_ran"], summary["succeeded"]) == (2, 4, 0)
    assert read_log(tmp_path / "log") == ["stubborn", "sent2"]


def test_a_cancelled_task_never_starts_on_a_later_worker(url, tmp_path):
    with (
        Cluster(url, config=Config(parallelism=8), late_binding=False) as cluster,
        cluster.executor() as executor,
    ):

        def drive(is_done: Callable[[], object]) -> None:
            def beat() -> object:
                executor.heartbeat()
                executor.wait(0.05)
                return is_done()

            until(beat, "what the executor waits for")

        executor.queue_command("k", GATED, cwd=str(tmp_path))
        drive(lambda: executor.explain("k").state is State.QUEUED)
        with started("cancel", "k", "--broker", url, "--wait", "30", "--json", cwd=tmp_path) as cancel:
            drive(lambda: cancel.process.poll() is not None)
            assert outcomes(cancel.wait()) == {"k": ("called_back", "revoked")}
        executor.queue_command("after", "echo after >> log", cwd=str(tmp_path))
        with worker(tmp_path, (url, url), "--concurrency", "1"):
            drive(lambda: executor.explain("after").state is State.SUCCESS)
    assert read_log(tmp_path / "log") == ["after"]


def test_without_an_executor_a_task_is_found_at_its_worker(url, tmp_path):
    here = {"cwd": str(tmp_path)}
    file = jobs(tmp_path, job("it's", STUBBORN, grace=0.3, env={"TOKEN": "hunter2"}, **here))
    with worker(tmp_path, (url, url), "--concurrency", "1"):
        with running(file, "--broker", url) as celeriac:
            until((tmp_path / "grandchild").exists, "the grandchild")
            celeriac.signal(signal.SIGKILL)
            celeriac.process.wait()
        explained = run("explain", "it's", "--broker", url, cwd=tmp_path)
        ended = run("cancel", "it's", "unknown", "--broker", url, "--wait", "30", cwd=tmp_path)
        marks = (tmp_path / "marks").read_text()
    assert explained.status == 0
    assert explained.out.startswith("it's: no executor knows it; worker celeriac-")
    assert "hunter2" not in explained.out + ended.out
    assert (ended.status, ended.out) == (1, "it's: revoked: revoked while it ran\n")
    assert ended.err == "celeriac: no task 'unknown' is waiting or in flight\n"
    assert (tmp_path / "marks").read_text() == marks


def test_an_id_is_cancelled_for_good_without_worker_and_executor(url, tmp_path):
    ended = run("cancel", "--id", "some-id", "--broker", url, cwd=tmp_path)
    assert (ended.status, ended.out) == (0, "some-id: revoked: no worker starts it\n")
    app = make_app(broker_url=url, result_backend=url)
    claims = claims_for(app, timeout=5)
    assert claims is not None
    assert claims.claim("some-id", holder="w", delivery="d") == ClaimCancelled()
    claims.close()
    nowhere = "redis://127.0.0.1:1/0"
    away = run("cancel", "--id", "some-id", "--broker", url, "--backend", nowhere, cwd=tmp_path)
    assert (away.status, away.out, away.err.count("\n")) == (1, "", 1)
    assert away.err.startswith("celeriac: the result backend is unavailable: ")
    again = run("cancel", "--id", "some-id", "--broker", url, "--json", cwd=tmp_path)
    assert (again.status, outcomes(again)) == (1, {"some-id": ("had_ended", "revoked")})


def test_an_unavailable_broker_is_reported_in_one_line(redis, tmp_path):
    away = redis.url.replace("//", "//:hunter2@")
    redis.kill()
    for command in (["cancel", "k"], ["explain", "k"], ["drain", "w"]):
        ended = run(*command, "--broker", away, cwd=tmp_path)
        assert (ended.status, ended.out, without_password_warning(ended.err).count("\n")) == (1, "", 1)
        assert " is unavailable: " in ended.err
        assert "hunter2" not in ended.err


def test_an_executor_is_reachable_again_after_a_broker_outage(redis, tmp_path):
    file = jobs(tmp_path, job("k"))
    with running(file, "--broker", redis.url) as celeriac:
        celeriac.wait_for_stderr("no live worker serves queue 'default'")
        redis.kill()
        redis.start()
        redis.freeze()
        redis.thaw()

        def is_known() -> bool:
            return run("explain", "k", "--broker", redis.url, cwd=tmp_path).status == 0

        until(is_known, "its answer")
        ended = run("cancel", "k", "--broker", redis.url, cwd=tmp_path)
        assert celeriac.wait().summary["never_ran"] == 1
    assert ended.status == 0
