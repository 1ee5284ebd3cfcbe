"""`celeriac pause`, `resume` and `set` on a live run of this machine."""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.support.cli_runner import Celeriac, Ended, jobs, run, started, until

pytestmark = pytest.mark.celery

WAITS = "touch $CELERIAC_KEY.begun; while [ ! -e go ]; do sleep 0.02; done"
LEDGER = "--ledger=ledger.db"


@pytest.fixture
def runtime() -> Iterator[dict[str, str]]:
    """Yield the environment of a user without other runs. The path is short, because the path of a socket must be."""
    folder = tempfile.mkdtemp(prefix="celeriac-")
    yield {"XDG_RUNTIME_DIR": folder}
    shutil.rmtree(folder)


def job(key: str, **fields: Any) -> dict[str, Any]:
    return {"key": key, "command": WAITS, **fields}


def begun(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.begun")}


def wait_for(folder: Path, *keys: str) -> None:
    until(lambda: begun(folder) >= set(keys), f"the start of {', '.join(keys)}")


def let_all_end(folder: Path, celeriac: Celeriac, number: int) -> None:
    (folder / "go").touch()
    ended = celeriac.wait()
    assert (ended.status, ended.summary["succeeded"]) == (0, number)


def ask(folder: Path, runtime: dict[str, str], *words: str, status: int = 0) -> Ended:
    ended = run(*words, cwd=folder, env=runtime)
    assert ended.status == status, ended
    return ended


def test_a_paused_run_starts_nothing_until_it_is_resumed(tmp_path, runtime):
    file = jobs(tmp_path, job("a"), job("b"), job("c"))
    with started("run", file, "-j2", "--json", LEDGER, cwd=tmp_path, env=runtime) as celeriac:
        wait_for(tmp_path, "a", "b")
        paused = json.loads(ask(tmp_path, runtime, "pause", "jobs", LEDGER, "--json").out)
        assert [(each["run"], each["paused"], each["in_flight"]) for each in paused["executors"]] == [("jobs", True, 2)]
        again = ask(tmp_path, runtime, "pause", "jobs", LEDGER, status=1)
        assert again.err == "celeriac: run 'jobs': already paused\n"
        (tmp_path / "go").touch()
        ask(tmp_path, runtime, "resume", "jobs", LEDGER)
        ended = celeriac.wait()
        assert (ended.status, ended.summary["succeeded"], begun(tmp_path)) == (0, 3, {"a", "b", "c"})


def test_what_runs_ends_during_a_pause_and_explain_says_who_paused(tmp_path, runtime):
    file = jobs(tmp_path, job("a"), job("b"))
    with started("run", file, "-j1", "--json", LEDGER, cwd=tmp_path, env=runtime) as celeriac:
        wait_for(tmp_path, "a")
        ask(tmp_path, runtime, "pause", "jobs", LEDGER)
        (tmp_path / "go").touch()
        until(lambda: "ended: success" in ask(tmp_path, runtime, "explain", "a", "--local").out, "the end of a")
        explained = ask(tmp_path, runtime, "explain", "b", "--local").out
        assert "the run is paused by celeriac pause (" in explained
        assert begun(tmp_path) == {"a"}
        assert celeriac.process.poll() is None
        ask(tmp_path, runtime, "resume", "jobs", LEDGER)
        let_all_end(tmp_path, celeriac, 2)


def test_a_paused_queue_holds_back_only_its_own_tasks(tmp_path, runtime):
    gpu = f"gpu-{uuid4().hex}"  # other runs of this user, on the same machine, are asked as well
    file = jobs(tmp_path, job("first", priority=1), job("gpu", queue=gpu), job("cpu", queue="cpu"))
    with started("run", file, "-j1", "--json", LEDGER, cwd=tmp_path, env=runtime) as celeriac:
        wait_for(tmp_path, "first")
        paused = run("pause", "--queue", gpu, "--local", cwd=tmp_path, env=runtime)
        assert f"queue '{gpu}' of executor {celeriac.process.pid}@" in paused.out
        ask(tmp_path, runtime, "set", "jobs", "parallelism=3", LEDGER)
        wait_for(tmp_path, "cpu")
        assert f"queue '{gpu}' is paused by celeriac pause (" in ask(tmp_path, runtime, "explain", "gpu", "--local").out
        not_paused = ask(tmp_path, runtime, "resume", "jobs", LEDGER, status=1)
        assert not_paused.err == "celeriac: run 'jobs': not paused\n"
        assert begun(tmp_path) == {"first", "cpu"}
        resumed = ask(tmp_path, runtime, "resume", "jobs", "--queue", gpu, LEDGER).out
        assert resumed.startswith(f"queue '{gpu}' of run 'jobs': resumed, ")
        wait_for(tmp_path, "gpu")
        let_all_end(tmp_path, celeriac, 3)


def test_limits_and_priorities_change_while_the_run_goes_on(tmp_path, runtime):
    file = jobs(tmp_path, job("a", priority=9), *(job(key, queue="net") for key in "bcd"), job("wide", slots=2))
    with started("run", file, "-j2", "--queue-limit", "net=1", "--json", LEDGER, cwd=tmp_path, env=runtime) as celeriac:
        wait_for(tmp_path, "a", "b")
        assert (
            ask(tmp_path, runtime, "set", "jobs", "d", "priority=5", LEDGER).out
            == "task 'd' of run 'jobs': priority 5\n"
        )
        refused = ask(tmp_path, runtime, "set", "jobs", "parallelism=1", LEDGER, status=2)
        assert refused.err.startswith("celeriac: run 'jobs': limits: a task asks for 2 of 1; ")
        changed = ask(tmp_path, runtime, "set", "jobs", "parallelism=3", "queue_limits=net=2", LEDGER, "--json").out
        assert json.loads(changed) == {"run": "jobs", "parallelism": 3, "queue_limits": {"net": 2}}
        wait_for(tmp_path, "d")
        assert begun(tmp_path) == {"a", "b", "d"}
        ask(tmp_path, runtime, "set", "jobs", "parallelism=6", "queue_limits=net=none", LEDGER)
        wait_for(tmp_path, "c", "wide")
        let_all_end(tmp_path, celeriac, 5)


def test_limits_of_keys_change_while_the_run_goes_on(tmp_path, runtime):
    file = jobs(tmp_path, *(job(key, concurrency_key="db") for key in "abc"))
    limits = ("-j3", "--concurrency-limit", "db=1")
    with started("run", file, *limits, "--json", LEDGER, cwd=tmp_path, env=runtime) as celeriac:
        wait_for(tmp_path, "a")
        changed = ask(tmp_path, runtime, "set", "jobs", "concurrency_limits=db=2", LEDGER).out
        assert changed.endswith(", concurrency_limits db=2\n")
        wait_for(tmp_path, "b")
        assert begun(tmp_path) == {"a", "b"}
        let_all_end(tmp_path, celeriac, 3)


def test_limits_of_rates_come_and_go_while_the_run_goes_on(tmp_path, runtime):
    file = jobs(tmp_path, *(job(key) for key in "abc"))
    with started("run", file, "-j1", "--json", LEDGER, cwd=tmp_path, env=runtime) as celeriac:
        wait_for(tmp_path, "a")
        given = ask(tmp_path, runtime, "set", "jobs", "queue_rates=default=1/h", LEDGER).out
        assert given.endswith(", queue_rates default=1/h\n")
        (tmp_path / "go").touch()
        wait_for(tmp_path, "b")
        waits = ask(tmp_path, runtime, "explain", "c").out
        assert "waits for the rate of queue 'default', 1/h" in waits
        removed = ask(tmp_path, runtime, "set", "jobs", "queue_rates=default=none", LEDGER).out
        assert removed.endswith(", queue_rates none\n")
        let_all_end(tmp_path, celeriac, 3)


def test_an_interrupt_ends_a_paused_run(tmp_path, runtime):
    file = jobs(tmp_path, job("a"), job("b"))
    with started("run", file, "-j1", "--json", LEDGER, cwd=tmp_path, env=runtime) as celeriac:
        wait_for(tmp_path, "a")
        ask(tmp_path, runtime, "pause", "jobs", LEDGER)
        celeriac.signal(signal.SIGINT)
        (tmp_path / "go").touch()
        ended = celeriac.wait()
        assert (ended.status, ended.summary["never_ran"]) == (130, 1)


def test_a_run_that_was_killed_while_it_was_paused_goes_on_with_resume(tmp_path, runtime):
    file = jobs(tmp_path, job("a"), job("b"))
    with started("run", file, "-j1", LEDGER, cwd=tmp_path, env=runtime) as celeriac:
        wait_for(tmp_path, "a")
        ask(tmp_path, runtime, "pause", "jobs", LEDGER)
        celeriac.kill()
    gone = ask(tmp_path, runtime, "resume", "jobs", LEDGER, status=2)
    assert gone.err == "celeriac: run 'jobs': is not running; celeriac run FILE --resume goes on with it\n"
    (tmp_path / "go").touch()
    resumed = run("run", file, "-j1", "--resume", "--json", LEDGER, cwd=tmp_path, env=runtime)
    assert (resumed.status, begun(tmp_path)) == (0, {"a", "b"})


NUMBERS = "give 1 to 2,147,483,647"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["pause"], "Error: name a RUN, a --queue or a --worker"),
        (["pause", "--ledger", "x.db", "--queue", "q"], "Error: --ledger needs a RUN"),
        (["pause", ""], "celeriac: RUN: it is empty; give a value"),
        (["resume", "ended", LEDGER], "celeriac: run 'ended': has ended; celeriac runs lists those that run"),
        (["pause", "endd", LEDGER], "celeriac: run 'endd': there is none in "),
        (["set", "ended", LEDGER], "Error: Missing argument '[KEY] CHANGE...'."),
        (["set", "ended", "slots=1", LEDGER], "celeriac: KEY 'slots=1': nothing is to be changed; give priority=N"),
        (["set", "ended", "k", "slots=1", LEDGER], "celeriac: NAME=VALUE: 'slots=1' is none; the names are "),
        (["set", "ended", "parallelism=0", LEDGER], f"celeriac: parallelism: 0 is out of range; {NUMBERS}"),
        (["set", "ended", "parallelism=x", LEDGER], "celeriac: parallelism: 'x' is not a whole number; give 1 or more"),
        (["set", "ended", "queue_limits=3", LEDGER], "celeriac: queue_limits: '3' is not a limit; write QUEUE=N"),
        (["set", "ended", "concurrency_limits=db=0", LEDGER], "celeriac: concurrency_limits of db: 0 is out of range"),
        (["set", "ended", "concurrency_limits=3", LEDGER], "celeriac: concurrency_limits: '3' is not a limit; write"),
        (
            ["set", "ended", "concurrency_limits=none", LEDGER],
            "celeriac: concurrency_limits: 'none' is not a limit; write",
        ),
        (["set", "ended", "queue_rates=net=3", LEDGER], "celeriac: queue_rates['net']: '3' is not a rate"),
        (["set", "ended", "queue_limits=q=0", LEDGER], f"celeriac: queue_limits of q: 0 is out of range; {NUMBERS}"),
        (["set", "ended", "priority=3", LEDGER], "celeriac: priority: is that of one task; give its KEY"),
        (["set", "ended", "k", "parallelism=3", LEDGER], "celeriac: KEY 'k': a limit is that of a run; leave"),
        (["set", "ended", "k", "priority=3", LEDGER], "celeriac: priority: task 'k' of run 'ended' does not wait; "),
        (["set", "ended", "parallelism=3", LEDGER], "celeriac: run 'ended': has ended; celeriac runs lists"),
    ],
)
def test_wrong_input_is_one_line(ended_run, words, line):
    ended = run(*words, cwd=ended_run)
    assert ended.status == 2
    assert ended.err.splitlines()[-1].startswith(line)


@pytest.fixture(scope="module")
def ended_run(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("ended")
    run("run", jobs(folder, {"command": "true"}, name="ended.jsonl"), LEDGER, cwd=folder)
    return folder
