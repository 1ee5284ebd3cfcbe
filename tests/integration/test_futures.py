"""`FutureExecutor` with real commands: on this machine, and on Redis with a worker."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from celeriac import Cluster, FutureExecutor, LocalCluster, Reason, Result, SqlLedger, State
from tests.support.cli_runner import WAIT_TIMEOUT, until
from tests.support.workers import worker


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def gated(folder: Path) -> str:
    return f"while [ ! -e {folder / 'go'} ]; do sleep 0.02; done"


def output(result: Result) -> str:
    assert result.execution is not None
    return result.execution.stdout.tail


def test_submit_gives_output_and_exit_code():
    with FutureExecutor(parallelism=2) as executor:
        result = executor.submit("echo out; echo err >&2; exit 3").result(WAIT_TIMEOUT)
    assert (result.state, result.reason, result.detail) == (State.FAILED, Reason.EXIT_CODE, "exit code 3")
    assert result.execution is not None
    assert (output(result), result.execution.stderr.tail) == ("out\n", "err\n")


def test_map_yields_results_in_order():
    with FutureExecutor(parallelism=4) as executor:
        tails = [output(r) for r in executor.map(["echo"], "abc", ("1", "2", "3"), priority=5)]
    assert tails == ["a 1\n", "b 2\n", "c 3\n"]


def test_map_with_a_timeout_cancels_what_was_not_sent(folder):
    with FutureExecutor(parallelism=1) as executor:
        results = executor.map(["/bin/sh", "-c", gated(folder)], ["x", "y"], timeout=0.2)
        with pytest.raises(TimeoutError):
            next(results)
        del results
        (folder / "go").touch()
        assert executor.submit("true").result(WAIT_TIMEOUT).state is State.SUCCESS


def test_as_completed_yields_each_future_at_its_end(folder):
    with FutureExecutor(parallelism=2) as executor:
        slow, fast = executor.submit(gated(folder)), executor.submit("true")
        completed = concurrent.futures.as_completed([slow, fast], WAIT_TIMEOUT)
        assert next(completed) is fast
        (folder / "go").touch()
        assert next(completed) is slow


def test_wait_returns_at_the_timeout(folder):
    with FutureExecutor(parallelism=2) as executor:
        slow, fast = executor.submit(gated(folder)), executor.submit("true")
        fast.result(WAIT_TIMEOUT)
        assert concurrent.futures.wait([slow, fast], 0.1) == ({fast}, {slow})
        (folder / "go").touch()
        assert concurrent.futures.wait([slow, fast], WAIT_TIMEOUT).done == {slow, fast}


def test_result_with_a_timeout_leaves_the_task_alone(folder):
    with FutureExecutor(parallelism=1) as executor:
        future = executor.submit(gated(folder))
        with pytest.raises(TimeoutError):
            future.result(0.05)
        (folder / "go").touch()
        assert future.result(WAIT_TIMEOUT).state is State.SUCCESS


def test_revoke_ends_a_running_command():
    with FutureExecutor(parallelism=1) as executor:
        future = executor.submit("sleep 600")
        until(future.running, "the start")
        future.revoke()
        assert future.result(WAIT_TIMEOUT).state is State.REVOKED


def test_a_given_cluster_stays_open():
    with LocalCluster(parallelism=1) as cluster:
        with FutureExecutor(cluster=cluster) as executor:
            assert executor.submit("true").result(WAIT_TIMEOUT).state is State.SUCCESS
        assert psutil.Process().children()


def test_the_processes_of_an_executor_end_with_it():
    before = set(psutil.Process().children())
    with FutureExecutor(parallelism=1) as executor:
        executor.submit("true").result(WAIT_TIMEOUT)
        assert set(psutil.Process().children()) - before
    assert not set(psutil.Process().children()) - before


def test_wrap_future_awaits_a_command():
    async def main() -> object:
        with FutureExecutor(parallelism=1) as executor:
            return output(await asyncio.wrap_future(executor.submit(["echo", "hi"])))

    assert asyncio.run(main()) == "hi\n"


def test_a_cancelled_wrapper_cancels_a_waiting_task_alone(folder):
    async def main() -> tuple[bool, bool]:
        running, waiting = executor.submit(gated(folder)), executor.submit("true")
        until(running.running, "the start")
        for future in (running, waiting):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.wrap_future(future), 0.05)
        return running.cancelled(), waiting.cancelled()

    with FutureExecutor(parallelism=1) as executor:
        assert asyncio.run(main()) == (False, True)
        (folder / "go").touch()


def test_run_in_executor_takes_a_command():
    async def main() -> object:
        with FutureExecutor(parallelism=1) as executor:
            command: Any = ["echo"]  # in place of a function
            return output(await asyncio.get_running_loop().run_in_executor(executor, command, "hi"))

    assert asyncio.run(main()) == "hi\n"


# — on a broker —


@pytest.fixture
def urls(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Return the URLs of a broker and of its backend."""
    if request.param == "redis":
        redis = request.getfixturevalue("shared_redis")
        return redis.url, redis.url
    return request.getfixturevalue("rabbit").url, request.getfixturevalue("postgres").url


@pytest.mark.parametrize("urls", ["redis", "rabbit"], indirect=True)
def test_commands_run_on_a_worker_elsewhere(folder, urls):
    with (
        worker(folder, urls, "--concurrency", "2"),
        Cluster(*urls) as cluster,
        FutureExecutor(cluster=cluster) as executor,
    ):
        futures = [executor.submit(f"echo {n}; exit {n % 2}") for n in range(10)]
        results = [future.result(WAIT_TIMEOUT) for future in futures]
    assert [output(result) for result in results] == [f"{n}\n" for n in range(10)]
    assert [result.state for result in results] == [State.SUCCESS, State.FAILED] * 5


@pytest.mark.parametrize("urls", ["redis", "rabbit"], indirect=True)
def test_a_task_of_a_killed_worker_runs_elsewhere(folder, urls):
    with (
        worker(folder, urls, "--name", "w1") as first,
        Cluster(*urls) as cluster,
        FutureExecutor(cluster=cluster) as executor,
    ):
        future = executor.submit(f"echo $CELERIAC_ATTEMPT >> attempts; {gated(folder)}")
        until((folder / "attempts").exists, "the start")
        first.kill()
        with worker(folder, urls, "--name", "w2"):
            until(lambda: len((folder / "attempts").read_text().split()) == 2, "the second start", 90)
            (folder / "go").touch()
            assert future.result(WAIT_TIMEOUT).state is State.SUCCESS


def test_a_revoked_command_ends_on_its_worker(folder, shared_redis):
    urls = (shared_redis.url, shared_redis.url)
    with worker(folder, urls), Cluster(shared_redis.url) as cluster, FutureExecutor(cluster=cluster) as executor:
        future = executor.submit(f"touch begun; {gated(folder)}")
        until((folder / "begun").exists, "the start")
        assert not future.cancel()
        future.revoke()
        assert future.result(WAIT_TIMEOUT).state is State.REVOKED


def test_tasks_wait_while_the_broker_is_away(folder, redis):
    with Cluster(redis.url) as cluster, FutureExecutor(cluster=cluster) as executor:
        redis.kill()
        future, unwanted = executor.submit("true"), executor.submit("true")
        unwanted.revoke()
        redis.start()
        with worker(folder, (redis.url, redis.url)):
            assert future.result(90).state is State.SUCCESS
        assert concurrent.futures.wait([unwanted], WAIT_TIMEOUT).done


RECOVERED = """
import sys, time
from celeriac import Cluster, FutureExecutor, SqlLedger

*urls, gate = sys.argv[1:]
with SqlLedger("sqlite:///ledger.db") as ledger, Cluster(*urls) as cluster:
    executor = FutureExecutor(cluster=cluster, ledger=ledger.open_run("nightly"))
    futures = [executor.submit(f"echo {key} >> log; {gate}", key=key) for key in "abc"]
    print("submitted", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("urls", ["redis", "rabbit"], indirect=True)
def test_the_next_executor_takes_over_after_a_kill(folder, urls):
    with worker(folder, urls, "--concurrency", "1"):
        with subprocess.Popen([sys.executable, "-c", RECOVERED, *urls, gated(folder)], cwd=folder) as killed:
            until((folder / "log").exists, "the first start")
            killed.send_signal(signal.SIGKILL)
        with (
            SqlLedger(f"sqlite:///{folder / 'ledger.db'}") as ledger,
            Cluster(*urls) as cluster,
            FutureExecutor(cluster=cluster, ledger=ledger.open_run("nightly")) as executor,
        ):
            assert set(executor.recovered) == set("abc")
            (folder / "go").touch()
            ends = {key: future.result(WAIT_TIMEOUT).state for key, future in executor.recovered.items()}
    assert ends == dict.fromkeys("abc", State.SUCCESS)
    assert sorted((folder / "log").read_text().split()) == ["a", "b", "c"]


# — the process —

PROLOGUE = "import os, signal, subprocess, sys, threading, time\nfrom celeriac import FutureExecutor, State\n"
NO_FORK_WARNING = ("-W", "ignore::DeprecationWarning")
"""Python 3.12 and later warn when a process with threads forks."""


def start(code: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *NO_FORK_WARNING, "-c", PROLOGUE + code],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "FUTURES_TEST": str(folder)},
    )


def end(process: subprocess.Popen[str], folder: Path) -> tuple[int, str, str]:
    """Wait for the end of a program, and of all that it has started."""
    out, err = process.communicate(timeout=WAIT_TIMEOUT)
    until(lambda: not processes_of(folder), "the end of all its processes")
    return process.returncode, out, err


def processes_of(folder: Path) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("FUTURES_TEST") == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def test_the_interpreter_exits_when_all_tasks_have_ended(folder):
    code = "executor = FutureExecutor(parallelism=1)\nfor n in range(3): executor.submit(f'sleep 0.2; echo {n} >> log')"
    assert end(start(code, folder), folder) == (0, "", "")
    assert (folder / "log").read_text().split() == ["0", "1", "2"]


def test_an_executor_without_tasks_does_not_keep_the_interpreter(folder):
    assert end(start("executor = FutureExecutor()", folder), folder) == (0, "", "")


def test_another_thread_may_submit_while_the_interpreter_exits(folder):
    code = (
        "executor = FutureExecutor(parallelism=1)\n"
        "def later():\n"
        "    threading.main_thread().join()\n"
        "    print(executor.submit(['true']).result(20).state, flush=True)\n"
        "threading.Thread(target=later).start()"
    )
    assert end(start(code, folder), folder) == (0, "success\n", "")


@pytest.mark.parametrize(
    "code",
    [
        "with FutureExecutor(1) as executor: executor.submit('touch begun; sleep 600').result()",
        "with FutureExecutor(1) as executor: executor.submit('touch begun; sleep 600'); executor.submit('touch never')",
        "FutureExecutor(1).submit('touch begun; sleep 600').result()",
        "executor = FutureExecutor(1); executor.submit('touch begun; sleep 600'); executor.submit('touch never')",
    ],
    ids=["in result", "at the end of the block", "in result, without a block", "at the exit"],
)
def test_interrupt_ends_the_commands(folder, code):
    process = start(code, folder)
    until((folder / "begun").exists, "the start")
    process.send_signal(signal.SIGINT)
    status, _, err = end(process, folder)
    assert "KeyboardInterrupt" in err
    assert status in (-signal.SIGINT, 0)  # an exit that was under way keeps its status
    assert not (folder / "never").exists()


def test_a_killed_process_leaves_no_command(folder):
    process = start("FutureExecutor(1).submit('touch begun; sleep 600').result()", folder)
    until((folder / "begun").exists, "the start")
    process.kill()
    assert end(process, folder)[0] == -signal.SIGKILL


def test_a_forked_child_exits_and_leaves_the_tasks_to_its_parent(folder):
    code = (
        "with FutureExecutor(parallelism=1) as executor:\n"
        "    futures = [executor.submit('sleep 0.3; echo >> log') for _ in range(3)]\n"
        "    if not (child := os.fork()):\n"
        "        try:\n"
        "            executor.submit('true')\n"
        "        except RuntimeError as error:\n"
        "            print(error, flush=True)\n"
        "        executor.terminate()\n"
        "        executor.shutdown()\n"
        "        sys.exit(7)\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), [f.result().state.value for f in futures])\n"
    )
    status, out, err = end(start(code, folder), folder)
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "this executor belongs to the process that made it; create a new one in each process",
        "7 ['success', 'success', 'success']",
    ]
    assert len((folder / "log").read_text().splitlines()) == 3


def test_a_forked_child_may_have_an_executor_of_its_own(folder):
    code = (
        "executor = FutureExecutor(parallelism=1)\n"
        "executor.submit('true').result()\n"
        "if not (child := os.fork()):\n"
        "    print(FutureExecutor(1).submit('true').result(20).state, flush=True)\n"
        "    sys.exit(0)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), executor.submit('true').result(20).state)\n"
    )
    assert end(start(code, folder), folder) == (0, "success\n0 success\n", "")


def test_commands_end_with_a_killed_parent_though_a_forked_child_lives(folder):
    code = (
        "executor = FutureExecutor(parallelism=1)\n"
        "executor.submit('touch begun; echo $$ > pid; sleep 600')\n"
        "while not os.path.exists('begun'): time.sleep(0.01)\n"
        "child = os.fork()\n"
        "if child: print(child, flush=True)\n"
        "time.sleep(600)\n"
    )
    process = start(code, folder)
    assert process.stdout is not None
    child = psutil.Process(int(process.stdout.readline()))
    process.kill()
    until(lambda: set(processes_of(folder)) <= {child.pid}, "the end of the command")
    assert child.is_running()
    child.kill()
    assert end(process, folder)[0] == -signal.SIGKILL


def test_the_executor_is_imported_at_its_first_use():
    code = "import sys, celeriac; print({'concurrent.futures', 'asyncio'} & sys.modules.keys())"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"
