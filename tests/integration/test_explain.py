"""`celeriac explain`: the history of a task from a run on this machine, over a broker, and from a file of events."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.integration.test_cancel import job, running, runtime, url
from tests.integration.test_cluster_run import read_transitions
from tests.support.cli_runner import Ended, jobs, run, started, until
from tests.support.workers import GATED, read_log, worker

pytestmark = pytest.mark.celery

__all__ = ["runtime", "url"]  # fixtures

ATTEMPTS = ["queued", "waiting", "queued", "failed"]
"""The states of a short command that fails twice. Whether it is also seen running depends on the moment of the poll."""


def history_of(ended: Ended) -> dict[str, Any]:
    (one,) = json.loads(ended.out)["lives"]
    return dict(one)


def states(history: dict[str, Any]) -> list[str]:
    return [move["state"] for move in history["moves"]]


def now(history: dict[str, Any]) -> tuple[str, str]:
    return history["now"]["waits_for"], history["now"]["words"]


def test_explain_shows_running_waiting_and_ended_tasks(tmp_path, runtime):
    secret = {"TOKEN": {"secret": "hunter2"}}
    file = jobs(
        tmp_path,
        job("bad", "echo x >> tries; exit 3", priority=9, retries=1, retry_delay=0, queue="first"),
        job("runs", f"{GATED}; exit 4", priority=8, env=secret),
        *(job(f"w{n}", GATED, queue="gpu", priority=5) for n in range(3)),
    )
    with running(file, "-j1", env=runtime) as celeriac:
        until(lambda: ("runs", "running") in read_transitions(tmp_path), "the start of the second one")

        def explain(key: str, *options: str) -> Ended:
            return run("explain", key, *options, cwd=tmp_path, env=runtime)

        bad, runs, waits = (history_of(explain(key, "--json")) for key in ("bad", "runs", "w1"))
        in_words, unknown = explain("bad"), explain("unknown")
        (tmp_path / "go").touch()
        celeriac.wait()
    assert [state for state in states(bad) if state != "running"] == ATTEMPTS
    assert (bad["state"], bad["attempt"], bad["queue"], bad["priority"]) == ("failed", 2, "first", 9)
    assert now(bad) == ("nothing", "ended: failed: exit code 3")
    assert bad["arrived"] <= bad["moves"][0]["when"] <= bad["moves"][-1]["when"]
    assert (bad["moves"][-1]["exit_code"], bad["moves"][-1]["reason"]) == (3, "exit_code")
    assert [move["retry_in"] for move in bad["moves"] if move["state"] == "waiting"] == [0]
    host = bad["moves"][-1]["host"]
    assert states(runs) == ["queued", "running"]
    assert runs["now"]["waits_for"] == "end"
    assert runs["now"]["words"].startswith(f"running on {host} for ")
    assert states(waits) == []
    words = "waiting: place 2 of queue 'gpu' (priority 5); all 1 slots are in use"
    assert now(waits) == ("slots", words)
    lines = in_words.out.splitlines()
    assert lines[0].startswith("bad  id ")
    assert lines[2].split()[2:] == ["arrived"]
    assert f"failed   {host}, pid {bad['moves'][-1]['pid']}" in lines[-2]
    assert "exit code 3, after 0." in lines[-2]
    assert lines[-1] == "now: ended: failed: exit code 3"
    assert (unknown.status, unknown.out, unknown.err) == (1, "", "celeriac: no task 'unknown' is known\n")
    assert "hunter2" not in json.dumps(runs)
    assert "while" not in json.dumps(runs)


def test_explain_over_a_broker_from_no_worker_to_the_end(url, tmp_path):
    file = jobs(tmp_path, job("k", cwd=str(tmp_path), queue="gpu"), job("last", cwd=str(tmp_path), queue="gpu"))

    def explain(key: str = "k") -> dict[str, Any]:
        return history_of(run("explain", key, "--broker", url, "--json", cwd=tmp_path))

    with running(file, "--broker", url) as celeriac:
        celeriac.wait_for_stderr("no live worker serves queue 'gpu'")
        unserved, waiting = explain(), explain("last")
        with worker(tmp_path, (url, url), "--concurrency", "1", "--queues", "gpu"):
            until(
                lambda: {("k", "running"), ("last", "queued")} <= {*read_transitions(tmp_path)},
                "one to run and one to wait",
            )
            runs, queued = explain(), explain("last")
            (tmp_path / "go-k").touch()
            until(lambda: ("k", "success") in read_transitions(tmp_path), "its end")
            ended = explain()
            (tmp_path / "go").touch()
            assert celeriac.wait().status == 0
    assert now(waiting) == (
        "workers",
        "waiting: place 1 of queue 'gpu' (priority 0); no live worker serves queue 'gpu'",
    )
    assert unserved["now"]["waits_for"] == "workers"
    assert unserved["now"]["words"].endswith("; no live worker serves queue 'gpu'")
    assert runs["now"]["words"].startswith(f"running on {runs['moves'][-1]['host']} for ")
    assert queued["now"]["waits_for"] == "start"
    assert queued["now"]["words"].startswith("queued: at the broker for ")
    assert queued["now"]["words"].endswith(" s, 0 of this executor's tasks before it")
    assert (states(ended), now(ended)) == (["queued", "running", "success"], ("nothing", "ended: success"))
    assert ended["executor"] == f"{celeriac.process.pid}@{runs['moves'][-1]['host']}"


def test_explain_reads_a_file_of_events(tmp_path, runtime):
    file = jobs(tmp_path, job("bad", "exit 3", retries=1, retry_delay=0.01), job("fine", "true"))
    run("run", file, "--events", "events", cwd=tmp_path, env=runtime)
    ended = run("explain", "bad", "--events", "events", "--json", cwd=tmp_path, env=runtime)
    history = history_of(ended)
    assert [state for state in states(history) if state != "running"] == ATTEMPTS
    assert now(history) == ("nothing", "ended: failed: exit code 3")
    assert history["attempt"] == 2
    unknown = run("explain", "unknown", "--events", "events", cwd=tmp_path)
    assert (unknown.status, unknown.err) == (1, "celeriac: no task 'unknown' is known\n")


def test_explain_reads_an_unfinished_file_and_numeric_keys(tmp_path):
    lines = [
        {"key": 7, "state": state, "when": n, "id": "i", "attempt": 1} for n, state in enumerate(["queued", "running"])
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "events").write_text(text + '{"key": 7, "sta')
    explained = run("explain", "7", "--events", "events", cwd=tmp_path)
    assert explained.status == 0
    assert explained.out.splitlines()[-1].startswith("now: running since 1970-01-01 ")
    assert explained.out.endswith(", according to the file\n")


def test_a_file_without_events_is_bad_input(tmp_path):
    (tmp_path / "events").write_text("hello\n")
    ended = run("explain", "k", "--events", "events", cwd=tmp_path)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.startswith("celeriac: --events: events:1: JSON is malformed")
    assert ended.err.endswith("; name a file that celeriac run --events wrote\n")
    assert run("explain", "k", "--events", ".", cwd=tmp_path).status == 2


def test_control_characters_of_a_key_are_escaped(tmp_path, runtime):
    key = "a\x1b[2Jb\nc"
    with started("run", jobs(tmp_path, job(key, "echo up >> log; sleep 60")), cwd=tmp_path, env=runtime) as celeriac:
        until(lambda: read_log(tmp_path / "log"), "its start")
        explained = run("explain", key, cwd=tmp_path, env=runtime)
        ended = run("cancel", key, "--wait", "30", cwd=tmp_path, env=runtime)
        celeriac.wait()
    assert ended.out == "a\\x1b[2Jb\\nc: revoked: revoked while it ran\n"
    assert explained.out.startswith("a\\x1b[2Jb\\nc  id ")
