"""`celeriac run` where at most commands fail: order, limits, retries, output, events, streams."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from celeriac.secret_variables import VARIABLES
from tests.support.cli_runner import jobs, run, started, until

pytestmark = pytest.mark.celery


def events_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_tasks_start_by_priority_then_in_file_order(tmp_path):
    lines = [
        {"key": f"{priority}-{n}", "command": f"echo {priority}-{n} >> log", "priority": priority}
        for n, priority in enumerate([0, 5, -3, 5, 100, 0])
    ]
    assert run("run", jobs(tmp_path, *lines), "-j1", cwd=tmp_path).status == 0
    assert (tmp_path / "log").read_text().split() == ["100-4", "5-1", "5-3", "0-0", "0-5", "-3-2"]


def test_a_list_runs_as_it_is_and_a_string_runs_in_the_shell(tmp_path):
    file = jobs(
        tmp_path, {"key": "list", "command": ["echo", "$HOME", "a  b"]}, {"key": "shell", "command": "echo $((1+1))"}
    )
    assert run("run", file, "-o", "out", cwd=tmp_path).status == 0
    assert (tmp_path / "out/list.out").read_text() == "$HOME a  b\n"
    assert (tmp_path / "out/shell.out").read_text() == "2\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("jobs.csv", "key,command,priority\na,echo a > a,1\nb,echo b > b,\n"),
        ("jobs.tsv", "key\tcommand\na\techo a > a\nb\techo b > b\n"),
        ("jobs.txt", "# two commands\necho a > a\n\necho b > b\n"),
        ("jobs.jsonl", '{"command": "echo a > a"}\n{"command": "echo b > b"}\n'),
        ("jobs.json", '[\n  {"command": "echo a > a"},\n  {"command": "echo b > b"}\n]\n'),
        ("jobs", "Key;Command\na;echo a > a\nb;echo b > b\n"),
    ],
)
def test_every_format_runs(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert run("run", name, cwd=tmp_path).status == 0
    assert [(tmp_path / n).read_text() for n in "ab"] == ["a\n", "b\n"]


def test_each_task_has_its_own_environment_and_directory(tmp_path):
    (tmp_path / "inside").mkdir()
    file = jobs(
        tmp_path,
        {
            "key": "own",
            "command": "pwd; echo $COLOUR $CELERIAC_KEY $CELERIAC_ATTEMPT",
            "cwd": f"{tmp_path}/inside",
            "env": {"COLOUR": "blue"},
        },
        {"key": "other", "command": "pwd; echo $COLOUR $CELERIAC_KEY"},
    )
    assert run("run", file, "-o", "out", "-j1", cwd=tmp_path, env={"COLOUR": "red"}).status == 0
    assert (tmp_path / "out/own.out").read_text() == f"{tmp_path}/inside\nblue own 1\n"
    assert (tmp_path / "out/other.out").read_text() == f"{tmp_path}\nred other\n"


def test_a_secret_reaches_only_the_command(tmp_path):
    secret = "correct-horse-battery"
    file = jobs(
        tmp_path,
        {"key": "s", "command": "echo $TOKEN | wc -c; echo $TOKEN >&2; exit 1", "env": {"TOKEN": {"secret": secret}}},
    )
    ended = run("run", file, "--events", "events", cwd=tmp_path)
    assert events_of(tmp_path / "events")[-1]["stdout"]["tail"].strip() == str(len(secret) + 1)
    assert "    ******\n" in ended.err
    assert secret not in ended.err + (tmp_path / "events").read_text()
    listed = run("run", file, "--dry-run", "--json", cwd=tmp_path)
    assert json.loads(listed.out)["env"] == {"TOKEN": "******"}


def test_a_command_inherits_no_address_with_a_password(tmp_path):
    key, url = tmp_path / "key", tmp_path / "url"
    key.write_text("0123456789abcdef")
    url.write_text("redis://:hunter2@h/0")
    file = jobs(
        tmp_path,
        {"key": "inherits", "command": "env"},
        {"key": "own", "command": "env", "env": {"CELERIAC_BROKER": "redis://own"}},
    )
    env = {
        "CELERIAC_BROKER": "redis://:hunter2@h/0",
        "CELERIAC_BACKEND_FILE": str(url),
        "CELERIAC_LEDGER": f"sqlite:///{tmp_path}/ledger.db?password=hunter2",
        "CELERIAC_SIGNING_KEY_FILE": str(key),
        "CELERIAC_PARALLELISM": "1",
    }
    assert run("run", file, "--local", "--ledger", "none", "-o", "out", cwd=tmp_path, env=env).status == 0
    inherited = (tmp_path / "out/inherits.out").read_text()
    assert "hunter2" not in inherited
    assert not {f"{name}=" for name in VARIABLES} & {line[: line.find("=") + 1] for line in inherited.splitlines()}
    assert "CELERIAC_PARALLELISM=1\n" in inherited
    assert "CELERIAC_BROKER=redis://own\n" in (tmp_path / "out/own.out").read_text()


def test_failed_attempts_are_retried_until_success_or_the_last_retry(tmp_path):
    file = jobs(
        tmp_path,
        {"key": "third", "command": "echo x >> tries; [ $(wc -l < tries) -ge 3 ]", "retries": 5, "retry_delay": 0.01},
        {"key": "never", "command": "echo x >> more; exit 7", "retries": 2, "retry_delay": 0.01},
    )
    ended = run("run", file, "--json", "--events", "events", cwd=tmp_path)
    assert ended.status == 1
    assert (ended.summary["succeeded"], ended.summary["retried"]) == (1, 4)
    assert (tmp_path / "tries").read_text() == "x\n" * 3 == (tmp_path / "more").read_text()
    (failure,) = ended.summary["failures"]
    assert (failure["key"], failure["attempt"], failure["exit_code"]) == ("never", 3, 7)
    ids = {e["id"] for e in events_of(tmp_path / "events") if e["key"] == "never"}
    assert len(ids) == 3


def test_options_are_defaults_for_missing_fields(tmp_path):
    file = jobs(
        tmp_path,
        {"key": "own", "command": "echo x >> own; exit 1", "retries": 0},
        {"key": "given", "command": "echo x >> given; exit 1"},
    )
    run("run", file, "--retries=1", "--retry-delay=0.01", cwd=tmp_path)
    assert (tmp_path / "own").read_text() == "x\n"
    assert (tmp_path / "given").read_text() == "x\nx\n"


def test_fail_fast_starts_nothing_after_the_first_failure(tmp_path):
    file = jobs(tmp_path, {"command": "exit 1", "priority": 1}, {"command": "touch ran"}, {"command": "touch ran"})
    ended = run("run", file, "-j1", "--fail-fast", "--json", cwd=tmp_path)
    assert ended.status == 1
    assert (ended.summary["failed"], ended.summary["never_ran"], ended.summary["stopped_early"]) == (1, 2, True)
    assert not (tmp_path / "ran").exists()


def test_max_failures_stops_after_that_many_failures(tmp_path):
    file = jobs(tmp_path, *({"command": "exit 1"} for _ in range(5)))
    ended = run("run", file, "-j1", "--max-failures", "3", "--json", cwd=tmp_path)
    assert (ended.summary["failed"], ended.summary["never_ran"]) == (3, 2)


def running_at_once(log: str, number: int = 1) -> str:
    """Return a command that waits until `number` of them have begun, however slow the machine is."""
    return (
        f"echo + >> {log}; while [ $(grep -c + {log}) -lt {number} ]; do sleep 0.01; done; sleep 0.05; echo - >> {log}"
    )


def most_at_once(log: Path) -> int:
    level = most = 0
    for sign in log.read_text().split():
        level += 1 if sign == "+" else -1
        most = max(most, level)
    return most


def test_slots_limit_how_many_tasks_run_at_once(tmp_path):
    command = running_at_once("log", 3)
    assert run("run", jobs(tmp_path, *({"command": command} for _ in range(12))), "-j3", cwd=tmp_path).status == 0
    assert most_at_once(tmp_path / "log") == 3


def test_a_queue_limit_does_not_delay_other_queues(tmp_path):
    gpu = ({"command": running_at_once("gpu"), "queue": "gpu", "priority": 5} for _ in range(4))
    cpu = ({"command": running_at_once("cpu", 3), "queue": "cpu"} for _ in range(20))
    assert run("run", jobs(tmp_path, *gpu, *cpu), "-j3", "--queue-limit", "gpu=1", cwd=tmp_path).status == 0
    assert (most_at_once(tmp_path / "gpu"), most_at_once(tmp_path / "cpu")) == (1, 3)


def test_a_task_may_use_several_slots(tmp_path):
    command = running_at_once("log", 2)
    file = jobs(tmp_path, *({"command": command, "slots": 2} for _ in range(6)))
    assert run("run", file, "-j5", cwd=tmp_path).status == 0
    assert most_at_once(tmp_path / "log") == 2


def test_output_files_have_safe_names(tmp_path):
    keys = ["a/b", "..", "x" * 400, "ü", "a@2"]
    file = jobs(tmp_path, *({"key": key, "command": f"echo {n}"} for n, key in enumerate(keys)))
    ended = run("run", file, "-o", "out", "--events", "events", cwd=tmp_path)
    assert ended.status == 0
    paths = {e["key"]: e["stdout"]["path"] for e in events_of(tmp_path / "events") if e["state"] == "success"}
    assert [Path(paths[key]).read_text() for key in keys] == [f"{n}\n" for n in range(5)]
    assert {Path(path).parent for path in paths.values()} == {tmp_path / "out"}
    assert sorted(path.name for path in (tmp_path / "out").glob("a*")) == [
        "a%2Fb.err",
        "a%2Fb.out",
        "a%402.err",
        "a%402.out",
    ]


def test_each_attempt_has_its_own_output_files(tmp_path):
    file = jobs(tmp_path, {"key": "k", "command": "echo $CELERIAC_ATTEMPT; exit 1", "retries": 1, "retry_delay": 0.01})
    run("run", file, "-o", "out", cwd=tmp_path)
    assert (tmp_path / "out/k.out").read_text() == "1\n"
    assert (tmp_path / "out/k@2.out").read_text() == "2\n"


def test_output_files_of_later_attempts_of_an_earlier_run_are_removed(tmp_path):
    file = jobs(tmp_path, {"key": "k", "command": "test -e good", "retries": 3, "retry_delay": 0.01})
    run("run", file, "-o", "out", cwd=tmp_path)
    assert sorted(path.stem for path in (tmp_path / "out").glob("k*.out")) == ["k", "k@2", "k@3", "k@4"]
    (tmp_path / "good").touch()
    (tmp_path / "out/other@2.out").touch()
    assert run("run", file, "-o", "out", cwd=tmp_path).status == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["k.err", "k.out", "other@2.out"]


def test_events_are_written_to_standard_output(tmp_path):
    ended = run("run", jobs(tmp_path, {"key": "a", "command": "true"}), "--events", "-", cwd=tmp_path)
    assert ended.status == 0
    assert [json.loads(line)["state"] for line in ended.out.splitlines()] == ["queued", "running", "success"]
    assert not (tmp_path / "-").exists()


def test_without_output_option_only_failures_keep_output(tmp_path):
    file = jobs(tmp_path, {"key": "good", "command": "echo fine"}, {"key": "bad", "command": "echo no >&2; exit 1"})
    ended = run("run", file, "--json", cwd=tmp_path, env={"TMPDIR": str(tmp_path)})
    (failure,) = ended.summary["failures"]
    assert Path(failure["stderr"]).read_text() == "no\n"
    assert [path.name for path in Path(failure["stderr"]).parent.iterdir()] == ["bad.err"]


def test_a_run_without_failures_leaves_no_files(tmp_path):
    (tmp_path / "tmp").mkdir()
    run("run", jobs(tmp_path, {"command": "echo fine"}), cwd=tmp_path, env={"TMPDIR": str(tmp_path / "tmp")})
    assert list((tmp_path / "tmp").iterdir()) == []


def test_every_state_change_is_an_event_with_its_reason(tmp_path):
    file = jobs(tmp_path, {"key": "bad", "command": "echo oops >&2; exit 3", "retries": 1, "retry_delay": 0.01})
    run("run", file, "--events", "events", cwd=tmp_path)
    events = events_of(tmp_path / "events")
    assert [e["state"] for e in events] == ["queued", "running", "waiting", "queued", "running", "failed"]
    assert [e["attempt"] for e in events] == [1, 1, 1, 2, 2, 2]
    assert [e["when"] for e in events] == sorted(e["when"] for e in events)
    last = events[-1]
    assert (last["reason"], last["detail"], last["exit_code"]) == ("exit_code", "exit code 3", 3)
    assert last["host"] == os.uname().nodename
    assert last["duration"] > 0
    assert last["stderr"]["tail"] == "oops\n"


def test_peak_memory_is_that_of_the_largest_process(tmp_path):
    size = 200_000_000
    file = jobs(tmp_path, {"command": [sys.executable, "-c", f"b'x' * {size}"]})
    run("run", file, "--events", "events", cwd=tmp_path)
    assert events_of(tmp_path / "events")[-1]["peak_memory"] > size


def test_a_stream_runs_its_first_line_before_the_second_arrives(tmp_path):
    with started("run", "-", "--json", cwd=tmp_path, stdin=subprocess.PIPE) as celeriac:
        assert celeriac.process.stdin is not None
        celeriac.process.stdin.write(b"touch first\n")
        celeriac.process.stdin.flush()
        until((tmp_path / "first").exists, "the first command")
        celeriac.process.stdin.write(b"touch second\n")
        celeriac.process.stdin.close()
        celeriac.process.stdin = None
        ended = celeriac.wait()
    assert ended.status == 0
    assert ended.summary["succeeded"] == 2
    assert (tmp_path / "second").exists()


def test_an_interrupt_ends_an_open_stream(tmp_path):
    with started("run", "-", "--json", cwd=tmp_path, stdin=subprocess.PIPE) as celeriac:
        assert celeriac.process.stdin is not None
        celeriac.process.stdin.write(b"touch first\n")
        celeriac.process.stdin.flush()
        until((tmp_path / "first").exists, "the first command")
        celeriac.signal(2)
        assert celeriac.process.wait(30) == 130


def test_one_command_shows_its_output(tmp_path):
    ended = run("run", "--", "sh", "-c", "echo out; echo err >&2", cwd=tmp_path)
    assert (ended.status, ended.out, ended.err) == (0, "out\n", "err\n")


def test_dry_run_lists_tasks_in_start_order_and_runs_none(tmp_path):
    file = jobs(
        tmp_path, {"key": "low", "command": "touch ran"}, {"key": "high", "command": ["touch", "a b"], "priority": 9}
    )
    ended = run("run", file, "--dry-run", cwd=tmp_path)
    assert (ended.status, ended.out) == (0, "   9  default  high  touch 'a b'\n   0  default  low  touch ran\n")
    assert not (tmp_path / "ran").exists()


def test_dry_run_lists_a_task_after_its_dependencies(tmp_path):
    file = jobs(
        tmp_path,
        {"key": "d", "command": "touch ran", "needs": ["b", "c", "a", "e"], "priority": 9, "on_need_failed": "run"},
        {"key": "b", "command": "true", "needs": "a"},
        {"key": "c", "command": "true", "needs": ["a"], "priority": 5},
        {"key": "a", "command": "true", "priority": -1},
        {"key": "e", "command": "true"},
    )
    ended = run("run", file, "--dry-run", cwd=tmp_path)
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.splitlines() == [
        "   0  default  e  true",
        "  -1  default  a  true",
        "   5  default  c  true  (needs a)",
        "   0  default  b  true  (needs a)",
        "   9  default  d  touch ran  (needs b, c, a and 1 more)",
    ]
    listed = [json.loads(line) for line in run("run", file, "--dry-run", "--json", cwd=tmp_path).out.splitlines()]
    assert [task["needs"] for task in listed] == [[], [], ["a"], ["a"], ["b", "c", "a", "e"]]
    assert [task["on_need_failed"] for task in listed] == ["skip"] * 4 + ["run"]
    assert not (tmp_path / "ran").exists()


# — needs —


def starts_and_ends(log: Path) -> list[str]:
    return log.read_text().split()


def noting(status: int = 0) -> str:
    return f"echo $CELERIAC_KEY+ >> log; echo $CELERIAC_KEY- >> log; exit {status}"


def test_dependencies_run_in_order_wherever_their_lines_are(tmp_path):
    file = jobs(
        tmp_path,
        {"key": "end", "command": noting(), "needs": ["left", "right"], "priority": 9},
        {"key": "left", "command": noting(), "needs": "start", "retries": 1},
        {"key": "right", "command": noting(), "needs": ["start"]},
        {"key": "start", "command": noting()},
    )
    ended = run("run", file, "-j4", "--json", cwd=tmp_path)
    assert (ended.status, ended.summary["succeeded"], ended.summary["skipped"]) == (0, 4, 0)
    log = starts_and_ends(tmp_path / "log")
    assert (log[:2], log[-2:]) == (["start+", "start-"], ["end+", "end-"])
    assert sorted(log[2:-2]) == ["left+", "left-", "right+", "right-"]


def test_a_failure_skips_its_dependents_except_those_that_run_anyway(tmp_path):
    file = jobs(
        tmp_path,
        {"key": "fetch", "command": noting()},
        {"key": "bad", "command": noting(3), "needs": "fetch", "retries": 1, "retry_delay": 0.01},
        {"key": "good", "command": noting(), "needs": "fetch"},
        {"key": "skipped", "command": noting(), "needs": ["bad", "good"]},
        {"key": "in turn", "command": noting(), "needs": ["skipped"]},
        {"key": "tidy", "command": noting(), "needs": ["in turn", "good"], "on_need_failed": "run"},
    )
    ended = run("run", file, "-j4", "--json", "--events", "events", cwd=tmp_path)
    summary = ended.summary
    assert (ended.status, summary["exit_status"]) == (1, 1)
    assert [summary[name] for name in ("tasks", "succeeded", "failed", "skipped", "never_ran")] == [6, 3, 1, 2, 0]
    log = starts_and_ends(tmp_path / "log")
    assert (log[0], log[-1]) == ("fetch+", "tidy-")
    assert (log.count("bad+"), [word for word in log if word[0] in "is"]) == (2, [])
    last = {event["key"]: event for event in events_of(tmp_path / "events")}
    assert [last[key]["state"] for key in ("bad", "skipped", "in turn", "tidy")] == [
        "failed",
        "skipped",
        "skipped",
        "success",
    ]
    assert (last["skipped"]["reason"], last["skipped"]["detail"]) == ("need_failed", "needs 'bad', which failed")
    assert last["in turn"]["detail"] == "needs 'skipped', which was skipped"
    explained = run("explain", "skipped", "--events", "events", cwd=tmp_path)
    assert "now: ended: skipped: needs 'bad', which failed\n" in explained.out


def test_the_summary_counts_skipped_tasks(tmp_path):
    ended = run(
        "run", jobs(tmp_path, {"key": "a", "command": "exit 1"}, {"command": "true", "needs": "a"}), cwd=tmp_path
    )
    assert ended.status == 1
    assert "2 tasks: 0 succeeded, 1 failed, 1 skipped\n" in ended.err


def test_fail_fast_never_runs_blocked_tasks(tmp_path):
    file = jobs(
        tmp_path,
        {"key": "bad", "command": "exit 1"},
        {"key": "other", "command": "true", "priority": -1},
        {"key": "a", "command": "true", "needs": ["other"]},
        {"key": "b", "command": "true", "needs": ["bad"]},
    )
    summary = run("run", file, "-j1", "--fail-fast", "--json", cwd=tmp_path).summary
    assert [summary[name] for name in ("failed", "skipped", "never_ran", "succeeded")] == [1, 1, 2, 0]


def test_a_stream_line_may_need_only_an_earlier_line(tmp_path):
    lines = [
        {"key": "early", "command": "touch early", "needs": ["late"]},
        {"key": "late", "command": "true"},
        {"key": "c", "command": "touch c", "needs": "late"},
        {"key": "wide", "command": "true", "slots": 9},
        {"key": "d", "command": "touch d", "needs": "wide"},
    ]
    ended = run(
        "run", "-", "-j2", "--json", cwd=tmp_path, stdin="".join(json.dumps(line) + "\n" for line in lines).encode()
    )
    assert (ended.status, ended.summary["refused_lines"], ended.summary["succeeded"]) == (2, 3, 2)
    errors = ended.err.splitlines()
    remedy = "move the job with that key before this one"
    assert f'<stdin>:1: needs: "late" is not the key of an earlier line; {remedy}' in errors
    problem = "task 'd' needs 'wide', which is unknown or ended long ago"
    assert f"<stdin>: needs: {problem}; queue 'wide' first, or both together with queue_tasks" in errors
    assert [(tmp_path / name).exists() for name in ("early", "c", "d")] == [False, True, False]


def test_quiet_prints_only_failures(tmp_path):
    ended = run("run", jobs(tmp_path, {"command": "echo x"}), "--quiet", cwd=tmp_path)
    assert (ended.status, ended.out, ended.err) == (0, "", "")
    ended = run("run", jobs(tmp_path, {"key": "k", "command": "exit 1"}), "--quiet", cwd=tmp_path)
    assert ended.err.startswith("failed: k: exit code 1, after ")


def test_the_summary_lists_failures_with_reason_and_output(tmp_path):
    file = jobs(tmp_path, {"key": "bad", "command": "echo why >&2; exit 9"}, {"key": "good", "command": "true"})
    ended = run("run", file, "-o", "out", cwd=tmp_path)
    assert ended.out == ""
    assert "2 tasks: 1 succeeded, 1 failed\n" in ended.err
    assert "failed:\n  bad: exit code 9, after " in ended.err
    assert f"      {tmp_path}/out/bad.err\n" in ended.err


@pytest.mark.parametrize("name", ["jobs.txt", "-"])
def test_a_failed_line_is_named_with_its_command(tmp_path, name):
    (tmp_path / "jobs.txt").write_text("# two commands\ntrue\ntest -e nothing\n")
    ended = run("run", name, cwd=tmp_path, stdin=(tmp_path / "jobs.txt").read_bytes())
    lines = [line.partition(", after")[0] for line in ended.err.splitlines()]
    assert lines.count("failed: 3 (test -e nothing): exit code 1") == 1
    assert lines.count("  3 (test -e nothing): exit code 1") == 1


def test_a_terminal_shows_a_bar_with_failures_above(tmp_path):
    file = jobs(tmp_path, {"key": "bad", "command": "echo why >&2; exit 9", "priority": 1}, {"command": "sleep 0.5"})
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "celeriac", "run", file, "-j1"],
        stderr=theirs,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    ) as process:
        os.close(theirs)
        shown = b""
        while data := read_or_end(ours):
            shown += data
    os.close(ours)
    text = shown.decode()
    assert process.returncode == 1
    assert "1/2 done, 1 running, 0 waiting, 1 failed" in text
    assert "failed: bad: exit code 9" in text
    assert "    why" in text
    assert "2 tasks: 1 succeeded, 1 failed" in text


def read_or_end(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # Linux reports this when the other side of a terminal is closed
        return b""


def test_celery_environment_variables_have_no_effect(tmp_path):
    env = {
        "CELERY_BROKER_URL": "redis://127.0.0.1:1/0",
        "CELERY_RESULT_BACKEND": "redis://127.0.0.1:1/0",
        "CELERY_BROKER_READ_URL": "redis://127.0.0.1:1/0",
        "CELERY_BROKER_WRITE_URL": "redis://127.0.0.1:1/0",
    }
    assert run("run", jobs(tmp_path, {"command": "true"}), cwd=tmp_path, env=env).status == 0


def test_commands_inherit_only_three_descriptors(tmp_path):
    command = [sys.executable, "-c", "import os; print(sorted(os.listdir('/proc/self/fd')))"]
    run("run", jobs(tmp_path, {"key": "fds", "command": command}), "-o", "out", cwd=tmp_path)
    assert (tmp_path / "out/fds.out").read_text() == "['0', '1', '2', '3']\n"  # 3 is the open directory itself


def test_a_parallelism_beyond_the_limit_of_open_files_runs_fewer_at_a_time_and_says_so(tmp_path):
    file = jobs(tmp_path, *[{"command": "sleep 0.05"} for _ in range(60)])
    before = ("/bin/sh", "-c", 'ulimit -n 64; exec "$@"', "sh")
    ended = run("run", file, "-j", "50", "-o", "out", "--json", cwd=tmp_path, before=before)
    assert (ended.status, ended.summary["succeeded"], ended.summary["output_lost"]) == (0, 60, 0)
    assert ended.err.count("\n") == 1
    assert (
        "a parallelism of 50 does not fit the hard limit of 64 open files: at most 8 commands run at once" in ended.err
    )
