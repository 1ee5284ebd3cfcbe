"""`cpus`, `memory` and `gpus` of jobs, as a user sees them: on one machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from celeriac import FutureExecutor
from celeriac.cluster.local import LocalCluster
from celeriac.config.executor_config import Config
from celeriac.errors import InvalidTask
from celeriac.task.state import State
from tests.support.cli_runner import jobs, run, run_in_process, started, until

LEDGER = ("--ledger", "ledger.db")
NOTE = "echo begin $CELERIAC_KEY $CUDA_VISIBLE_DEVICES >> log; sleep 0.05; echo end $CELERIAC_KEY >> log"


def lines(folder: Path) -> list[list[str]]:
    log = folder / "log"
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def most_at_once(folder: Path) -> int:
    """Return how many commands ran at once."""
    number = most = 0
    for kind, *_ in lines(folder):
        number += 1 if kind == "begin" else -1
        most = max(most, number)
    return most


def shares(folder: Path, **fields: Any) -> dict[str, str]:
    """Return the variables that say what a command has."""
    names = "OMP_NUM_THREADS CELERIAC_CPUS CELERIAC_MEMORY CELERIAC_GPUS CUDA_VISIBLE_DEVICES"
    file = jobs(folder, {"command": f"for name in {names}; do eval echo $name=\\$$name; done > seen", **fields})
    env = {"CUDA_VISIBLE_DEVICES": "5,7", "OMP_NUM_THREADS": "64"}
    assert run("run", "-q", file, "--cpus", "16", cwd=folder, env=env).status == 0
    return dict(line.split("=") for line in (folder / "seen").read_text().splitlines())


def test_commands_that_need_much_do_not_run_together(tmp_path):
    wait = "; until test $(grep -c begin log) -ge 2; do sleep 0.02; done; echo end $CELERIAC_KEY >> log"
    begin = "echo begin $CELERIAC_KEY >> log"
    file = jobs(tmp_path, *({"command": begin + wait, "memory": "3G"} for _ in range(6)))
    assert run("run", "-q", file, "-j6", "--memory", "7G", cwd=tmp_path).status == 0
    assert (len(lines(tmp_path)), most_at_once(tmp_path)) == (12, 2)


def test_each_gpu_belongs_to_one_command_also_after_a_retry(tmp_path):
    fail_once = "test $CELERIAC_ATTEMPT = 2"
    retried = {"command": f"{NOTE}; {fail_once}", "gpus": 1, "retries": 1, "retry_delay": 0}
    file = jobs(tmp_path, *(retried for _ in range(4)), {"command": NOTE, "gpus": 2})
    ended = run("run", file, "-j8", "--gpus", "2", "--json", cwd=tmp_path, env={"CUDA_VISIBLE_DEVICES": "5,6,7"})
    assert (ended.summary["succeeded"], ended.summary["retried"]) == (5, 4)
    owner: dict[str, str] = {}
    for kind, key, *names in lines(tmp_path):
        if kind == "end":
            owner = {name: other for name, other in owner.items() if other != key}
            continue
        given = names[0].split(",")
        assert set(given) <= {"5", "6"}
        assert not owner.keys() & set(given)
        owner |= dict.fromkeys(given, key)
    assert most_at_once(tmp_path) <= 2


def test_a_command_sees_its_share(tmp_path):
    assert shares(tmp_path, cpus=2.5, memory="64M", gpus=1) == {
        "OMP_NUM_THREADS": "2",
        "CELERIAC_CPUS": "2.5",
        "CELERIAC_MEMORY": str(64 * 2**20),
        "CELERIAC_GPUS": "1",
        "CUDA_VISIBLE_DEVICES": "5",
    }
    own = shares(tmp_path, cpus=2.5, env={"OMP_NUM_THREADS": "9"})
    assert (own["OMP_NUM_THREADS"], own["CUDA_VISIBLE_DEVICES"]) == ("9", "5,7")
    assert shares(tmp_path)["OMP_NUM_THREADS"] == "64"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("jobs.jsonl", '{"command": "true"}\n{"key": "big", "command": "touch ran", "memory": "3G", "slots": 1}\n'),
        ("jobs.json", '[{"command": "true"},\n{"key": "big", "command": "touch ran", "memory": 3221225472}]'),
        ("jobs.csv", "key,command,memory\nbig,touch ran, 3G\n"),
    ],
)
def test_a_job_that_needs_more_than_there_is_runs_nothing(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    ended = run_in_process("run", name, "--memory", "2G", cwd=tmp_path)
    line = f"{name}:2: memory: task 'big' asks for 3 GiB of memory, and there are 2 GiB; ask for less, or set memory to"
    assert (ended.status, ended.err) == (2, f"{line} what there is\n")
    assert not (tmp_path / "ran").exists()


def test_a_line_of_standard_input_that_needs_more_than_there_is_is_refused(tmp_path):
    ended = run("run", "-", "--cpus", "1", cwd=tmp_path, stdin=b'{"command": "true", "cpus": 1.001}\n')
    assert ended.err.startswith("<stdin>: cpus: task '1' asks for 1.001 CPUs, and there are 1; ask for less")
    assert ended.status == 2


@pytest.mark.parametrize(("option", "value"), [("--cpus", "0"), ("--memory", "2 pages"), ("--gpus", "-1")])
def test_a_malformed_amount_of_what_there_is_is_refused(tmp_path, option, value):
    file = jobs(tmp_path, {"command": "touch ran"})
    ended = run_in_process("run", file, option, value, cwd=tmp_path)
    assert (ended.status, ended.err.count("\n"), (tmp_path / "ran").exists()) == (2, 1, False)
    assert ended.err.startswith(f"celeriac: {option}: ")


@pytest.mark.parametrize("command", [("run", "-q", "--", "true"), ("serve",)])
def test_more_gpus_than_there_are_is_refused_at_the_start(tmp_path, command):
    ended = run(*command[:1], "--gpus", "3", *command[1:], cwd=tmp_path, env={"CUDA_VISIBLE_DEVICES": "0,1"})
    line = "celeriac: gpus: 3 are more than the 2 of CUDA_VISIBLE_DEVICES; give fewer, or name more there\n"
    assert (ended.status, ended.err) == (2, line)


def test_a_dry_run_and_the_ledger_show_resources(tmp_path):
    (tmp_path / "jobs.csv").write_text("command,cpus,memory\necho {cpus} > seen,0.5,1M\n")
    place = ("run", "jobs.csv", "-t", "echo {cpus} {memory} > seen", *LEDGER)
    listed = run("run", "jobs.csv", "--dry-run", cwd=tmp_path).out
    assert listed.endswith("  (0.5 CPUs)  (1 MiB of memory)\n")
    assert run(*place, "-q", cwd=tmp_path).status == 0
    assert (tmp_path / "seen").read_text() == "0.5 1M\n"
    shown = json.loads(run("show", "--json", *LEDGER, cwd=tmp_path).out)
    assert (shown["cpus"], shown["memory"], "gpus" in shown) == (0.5, 2**20, False)


def test_a_killed_run_resumes_with_the_same_resources(tmp_path):
    wait = f"{NOTE}; until test -e go; do sleep 0.05; done"
    file = jobs(tmp_path, {"command": wait, "gpus": 1}, *({"command": NOTE, "gpus": 1} for _ in range(4)))
    with started("run", file, "--gpus", "1", *LEDGER, cwd=tmp_path) as celeriac:
        until(lambda: lines(tmp_path), "the start of the first command")
        celeriac.kill()
        celeriac.wait_until_nothing_is_alive()
    (tmp_path / "go").touch()
    (tmp_path / "log").unlink()
    ended = run("run", file, "--resume", "--json", *LEDGER, cwd=tmp_path)
    assert (ended.summary["succeeded"], most_at_once(tmp_path)) == (5, 1)
    assert "goes on as it began, with --gpus 1" in ended.err


def test_the_gpu_of_a_killed_supervisor_is_given_to_the_next_attempt(tmp_path):
    hang_once = f"{NOTE}; test -e go || exec sleep 60"
    file = jobs(tmp_path, {"command": hang_once, "gpus": 1}, {"command": NOTE, "gpus": 1})
    with started("run", file, "--gpus", "1", "--json", *LEDGER, cwd=tmp_path) as celeriac:
        until(lambda: len(lines(tmp_path)) == 2, "the start of the first command")
        (tmp_path / "go").touch()
        for process in celeriac.supervisors():
            process.kill()
        assert celeriac.wait().summary["succeeded"] == 2
    assert [line[2] for line in lines(tmp_path) if line[0] == "begin"] == ["0", "0", "0"]


def test_futures_share_gpus():
    with FutureExecutor(config=Config(parallelism=3, gpus=1)) as executor:
        futures = [executor.submit("echo $CUDA_VISIBLE_DEVICES", gpus=1, memory="1M") for _ in range(3)]
        executions = [future.result().execution for future in futures]
        assert {execution.stdout.tail for execution in executions if execution and execution.stdout} == {"0\n"}
        with pytest.raises(InvalidTask, match="gpus: asks for 2 GPUs, and there are 1"):
            executor.submit("true", gpus=2)


def test_gpus_of_a_command_that_its_caller_has_given_up_are_still_its_own(tmp_path):
    config = Config(parallelism=4, gpus=1)
    with LocalCluster(config=config, folder=tmp_path) as cluster, cluster.executor() as executor:
        executor.queue_command("first", f"{NOTE}; until test -e go; do sleep 0.02; done; echo end first >> log", gpus=1)
        executor.heartbeat()
        until(lambda: lines(tmp_path), "the start of the first command")
        executor.fail("first")
        executor.queue_command("second", NOTE, gpus=1)
        for _ in range(5):
            executor.heartbeat()
            executor.wait(0.02)
        assert [line[1] for line in lines(tmp_path) if line[0] == "begin"] == ["first"]
        (tmp_path / "go").touch()
        assert [event.state for event in executor.run_until_idle()][-1] is State.SUCCESS
    assert [line[1] for line in lines(tmp_path) if line[0] == "begin"] == ["first", "second"]
