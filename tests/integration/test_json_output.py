"""Each --json prints what its schema says: real output is checked against the types, which allow no unknown field."""

from __future__ import annotations

import ast
import importlib
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest

from celeriac.cli import COMMANDS
from celeriac.cli.schema import NAMES
from celeriac.json_types import OUTPUTS, VERSION
from tests.support.cli_runner import Ended, jobs, run, run_in_process, started, until
from tests.support.fake_scheduler import FakeScheduler
from tests.support.workers import worker

LEDGER = ("--ledger", "ledger.db")


def check(name: str, text: str | bytes) -> Any:
    """Return the output, decoded as its type."""
    return msgspec.json.decode(text, type=OUTPUTS[name], strict=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of tasks that end in each way, its events, and a submitted run."""
    folder = tmp_path_factory.mktemp("json")
    file = jobs(
        folder,
        {"key": "good", "command": "echo out; echo err >&2", "env": {"A": "b"}, "timeout": 60},
        {"key": "bad", "command": ["sh", "-c", "exit 3"], "retries": 1, "retry_delay": 0},
        {"key": "skipped", "command": "true", "needs": ["bad"], "cwd": "/"},
        {"key": "shot", "command": "kill -9 $$"},
    )
    ended = run("run", file, *LEDGER, "--events", "events", "--output", "out", "--json", cwd=folder)
    assert (ended.status, check("run", ended.out).failed) == (1, 2)
    submitted = run_in_process("submit", file, *LEDGER, "--name", "later", "--json", cwd=folder)
    assert check("submit", submitted.out).tasks == 4
    return folder


def ask(folder: Path, *args: str) -> Ended:
    ended = run_in_process(*args, cwd=folder)
    assert ended.status == 0, ended.err
    return ended


def test_runs_and_their_tasks(folder):
    later, ended = check("runs", ask(folder, "runs", "--json", *LEDGER).out)
    assert (later.state, ended.state, ended.failed) == ("submitted", "ended", 2)
    failed = [
        check("logs", line) for line in ask(folder, "logs", "jobs", "--failed", "--json", *LEDGER).out.splitlines()
    ]
    assert [(attempt.key, attempt.attempt) for attempt in failed] == [("bad", 1), ("bad", 2), ("shot", 1)]
    tasks = [check("show", line) for line in ask(folder, "show", "jobs", "--json", *LEDGER).out.splitlines()]
    assert [task.key for task in tasks] == ["good", "bad", "skipped", "shot"]
    assert tasks[0].stdout.tail == "out\n"


def test_the_end_of_a_submitted_run(tmp_path):
    file = jobs(tmp_path, {"key": "good", "command": "true"}, {"key": "bad", "command": "exit 3"})
    with started("serve", "--local", *LEDGER, cwd=tmp_path) as service:
        ended = run("submit", file, "--wait", "--json", *LEDGER, cwd=tmp_path)
        service.process.terminate()
        assert service.wait().status == 0
    output = check("submit", ended.out)
    assert (output.tasks, output.succeeded, output.failed, output.exit_status) == (2, 1, 1, 1)
    assert ended.status == 1


def test_events_and_the_list_of_jobs(folder):
    events = [check("event", line) for line in (folder / "events").read_text().splitlines()]
    assert {event.key for event in events} == {"good", "bad", "skipped", "shot"}
    dry = ask(folder, "run", "jobs.jsonl", "--dry-run", "--json").out.splitlines()
    assert len([check("job", line) for line in dry]) == 4


def test_the_notice_of_an_end(tmp_path):
    assert run("run", "--on-end", "cat > told", "--", "exit-1-is-no-program", cwd=tmp_path).status == 127
    notice = check("notice", (tmp_path / "told").read_text())
    assert (notice.event, notice.failed, notice.exit_status) == ("end", 1, 127)


@pytest.mark.parametrize("source", [("--events", "events"), ("--run", "jobs", *LEDGER)], ids=["events", "ledger"])
def test_the_history_of_a_task(folder, source):
    [history] = check("explain", ask(folder, "explain", "bad", *source, "--json").out).lives
    assert (history.attempt, history.now.waits_for) == (2, "nothing")


def test_what_commands_remove_change_and_cancel(folder):
    pruned = check("prune", ask(folder, "prune", "--keep", "0", "--dry-run", "--json", *LEDGER).out)
    assert ([each.run for each in pruned.removed], [each.run for each in pruned.kept]) == (["jobs"], ["later"])
    [active] = check("status", ask(folder, "status", "--json", *LEDGER).out).runs
    assert (active.name, active.waiting) == ("later", 4)
    [paused] = check("pause", ask(folder, "pause", "later", "--json", *LEDGER).out).executors
    assert (paused.executor, paused.run, paused.paused, paused.waiting) == (None, "later", True, 4)
    [active] = check("status", ask(folder, "status", "--json", *LEDGER).out).runs
    assert active.paused.startswith("paused by ")
    [resumed] = check("resume", ask(folder, "resume", "later", "--json", *LEDGER).out).executors
    assert (resumed.changed, resumed.paused) == (True, False)
    changed = check("set", ask(folder, "set", "later", "good", "priority=3", "--json", *LEDGER).out)
    assert (changed.key, changed.priority) == ("good", 3)
    one = run_in_process("cancel", "--run", "later", "good", "--json", *LEDGER, cwd=folder)
    assert check("cancel", one.out).tasks[0].outcome == "revoked"
    rest = run_in_process("cancel", "--run", "later", "--json", *LEDGER, cwd=folder)
    assert check("cancel-run", rest.out).revoked == 3
    unknown = run_in_process("cancel", "nothing", "--local", "--json", cwd=folder)
    assert (unknown.status, check("cancel", unknown.out).errors) == (1, [])


def test_a_retry_and_the_settings(folder):
    retried = run("retry", "jobs", "--key", "good", "--json", *LEDGER, cwd=folder)
    assert check("retry", retried.out).succeeded == 1
    assert check("config", ask(folder, "config", "--json").out)["log_level"].value == "info"
    assert check("doctor", ask(folder, "doctor", "--json", *LEDGER).out).errors == 0


def test_a_broker_and_its_workers(redis, tmp_path):
    at = ("--broker", redis.url)
    with worker(tmp_path, (redis.url, redis.url)):

        def workers() -> list[Any]:
            return list(check("status", ask(tmp_path, "status", *at, "--json").out).workers)

        until(workers, "the lease of the worker")
        [one] = workers()
        assert check("refused", ask(tmp_path, "status", "--refused", *at, "--json").out).refused == []
        with started("status", "--watch", *at, "--json", cwd=tmp_path) as watching:
            assert watching.process.stdout is not None
            assert check("watch", watching.process.stdout.readline()).workers[0].name == one.name
        lives = check("check", ask(tmp_path, "check", "worker", one.name, *at, "--json").out)
        assert (lives.name, lives.ok, lives.worker.name) == (one.name, True, one.name)
        wrong = run_in_process("drain", "w9", *at, "--json", cwd=tmp_path)
        assert (wrong.status, "no worker 'w9' answers" in check("error", wrong.out).error) == (1, True)
        drained = check("drain", ask(tmp_path, "drain", one.name, *at, "--json", "--wait", "60").out)
        assert [(each.worker, each.gone) for each in drained.workers] == [(one.name, True)]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("runs", "--limit", "x"), "--limit"),
        (("runs", "--no-such-option"), "--no-such-option"),
        (("runs", "--ledger", ""), "--ledger: it is empty"),
        (("show", "nothing", *LEDGER), "run 'nothing': there is none"),
        (("status", "--broker", "redis://127.0.0.1:1/0"), "is unavailable"),
        (("status", "--refused", "--broker", "redis://127.0.0.1:1/0"), "is unavailable"),
        (("cancel", "x", "--broker", "redis://127.0.0.1:1/0"), "is unavailable"),
        (("explain", "x", "--broker", "redis://127.0.0.1:1/0"), "is unavailable"),
        (("drain", "x", "--broker", "redis://127.0.0.1:1/0"), "is unavailable"),
        (("explain", "x", "--run", "nothing", *LEDGER), "nothing"),
        (("cancel", "--run", "nothing", *LEDGER), "there is no run 'nothing'"),
        (("submit", "missing.jsonl", *LEDGER), "missing.jsonl"),
        (("config", "--config", "missing.toml"), "missing.toml"),
        (("run", "missing.jsonl"), "missing.jsonl"),
        (("retry", "nothing", *LEDGER), "run 'nothing': there is none"),
        (("prune",), "say which runs"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_an_error_is_json_too(folder, args, words):
    ended = run_in_process(*args, "--json", cwd=folder)
    assert ended.status in (1, 2)
    assert words in check("error", ended.out).error
    assert words in ended.err


def test_the_problems_of_a_job_file_are_objects(tmp_path):
    file = jobs(tmp_path, {"key": "a", "comand": "x"}, name="bad.jsonl")
    problems = check("error", run_in_process("run", file, "--json", cwd=tmp_path).out).problems
    assert [(each.line, each.field) for each in problems] == [(1, "comand"), (1, "command")]


def test_the_schedules_of_a_service(tmp_path):
    (tmp_path / "celeriac.toml").write_text('[schedules.a]\nevery = "1h"\njobs = "x"\n')
    (schedule,) = check("schedules", ask(tmp_path, "schedules", "--json").out)
    assert (schedule.schedule, schedule.every, len(schedule.next)) == ("a", 3600, 3)


def commands_with_json() -> dict[str, click.Command]:
    commands = {name: getattr(importlib.import_module(f"celeriac.cli.{name}"), name) for name in COMMANDS}
    return {name: command for name, command in commands.items() if has(command, "as_json")}


def has(command: click.Command, option: str) -> bool:
    return any(param.name == option for param in command.params)


def wrong_calls() -> Iterator[tuple[str, ...]]:
    """Yield calls of each command with --json that fail: wrong arguments, settings, ledgers and brokers."""
    for name, command in commands_with_json().items():
        required = [param for param in command.params if isinstance(param, click.Argument) and param.required]
        call = (name, *("jobs.jsonl" for _ in required))
        yield (*call, "--no-such-option")
        yield (*call, "too", "many", "--json=yes")
        for option, value in (("config", "missing.toml"), ("ledger", "out"), ("broker", "http://host")):
            if has(command, option):
                if (name, option) != ("doctor", "ledger"):  # which says as its result what is wrong with it
                    yield (*call, f"--{option}", value)
                yield (*call, f"--{option}", "")


@pytest.mark.parametrize("args", [*wrong_calls()], ids=" ".join)
def test_each_wrong_call_of_each_command_is_json_too(folder, args):
    ended = run_in_process(*args, "--json", cwd=folder)
    assert ended.status == 2
    error = check("error", ended.out).error
    assert error
    assert error in ended.err


def test_a_working_folder_that_was_removed_is_json_too(tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    ended = run("runs", "--json", cwd=folder, before=("sh", "-c", 'rmdir "$PWD"; exec "$@"', "sh"))
    assert (ended.status, "working folder" in check("error", ended.out).error) == (2, True)


def test_the_events_and_the_plan_of_the_autoscaler(shared_redis, tmp_path):
    with closing(FakeScheduler(tmp_path / "scheduler", nodes=0)) as scheduler:
        options = ("--max", "2", "--min", "1", "--broker", shared_redis.url, "--json")
        here = {"cwd": tmp_path, "env": scheduler.environment}
        plan = check("autoscale", run("autoscale", "pbs", *options, "--dry-run", **here).out.splitlines()[-1])
        once = run("autoscale", "pbs", *options, "--once", **here)
    events = [check("autoscale", line) for line in once.out.splitlines()]
    assert (plan.event, plan.submit, plan.cancel) == ("planned", 1, 0)
    assert [event.event for event in events] == ["state", "submitted"]


def test_each_command_with_json_has_a_schema_and_a_check_of_its_output():
    """The check is a call in this file: each takes real output."""
    calls = [node for node in ast.walk(ast.parse(Path(__file__).read_text())) if isinstance(node, ast.Call)]
    checked = {ast.literal_eval(call.args[0]) for call in calls if ast.unparse(call.func) == "check" and is_text(call)}
    assert set(commands_with_json()) <= set(NAMES) == checked


def is_text(call: ast.Call) -> bool:
    return isinstance(call.args[0], ast.Constant)


@pytest.mark.parametrize("name", NAMES)
def test_the_schema_of_each_output_is_printed_with_its_version(tmp_path, name):
    schema = json.loads(ask(tmp_path, "schema", name).out)
    assert schema["$id"] == f"urn:celeriac:json:{name}:{VERSION}"
    assert '"additionalProperties": false' not in json.dumps(schema)


def test_the_names_of_the_schemas_are_listed(tmp_path):
    assert ask(tmp_path, "schema").out.split() == sorted(OUTPUTS) == sorted(NAMES)
