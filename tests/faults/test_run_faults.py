"""Failures around `celeriac run`: no process stays alive, and the summary is right."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.support.cli_runner import jobs, run, small_files, started, until

pytestmark = pytest.mark.celery

IGNORES_TERM = (
    "import os, signal, sys, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "open(sys.argv[1], 'w').close()\n"
    "while True: time.sleep(60)\n"
)
DAEMONISES = (
    "import os, signal, sys, time\n"
    "if os.fork(): os._exit(0)\n"
    "os.setsid()\n"
    "if os.fork(): os._exit(0)\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "open(sys.argv[1], 'w').close()\n"
    "while True: time.sleep(60)\n"
)
PYTHON = sys.executable


def waits_for(path: Path, ready: Path) -> str:
    """Return a shell command that creates `ready` when it starts, and ends when `path` exists."""
    return f"touch {ready}; while [ ! -e {path} ]; do sleep 0.02; done"


def test_kill_9_of_a_run_leaves_no_process_alive(tmp_path):
    ready = [tmp_path / f"ready-{n}" for n in range(3)]
    file = jobs(
        tmp_path,
        {"command": [PYTHON, "-c", IGNORES_TERM, str(ready[0])]},
        {"command": f"sleep 600 & touch {ready[1]}; wait"},
        {"command": f'{PYTHON} -c "{DAEMONISES}" {ready[2]}; sleep 600'},
    )
    with started("run", file, "-j3", cwd=tmp_path) as celeriac:
        until(lambda: all(path.exists() for path in ready), "the start of three commands")
        celeriac.signal(signal.SIGKILL)
        celeriac.wait_until_nothing_is_alive()


def test_kill_9_of_the_supervisor_loses_only_its_commands(tmp_path):
    ready, daemon = tmp_path / "ready", tmp_path / "daemon"
    file = jobs(
        tmp_path,
        {"key": "lost", "command": f'{PYTHON} -c "{DAEMONISES}" {daemon}; touch {ready}; sleep 600', "priority": 1}
        | {"on_worker_lost": "fail"},
        {"key": "next", "command": "echo done"},
    )
    with started("run", file, "-j1", "--json", cwd=tmp_path) as celeriac:
        until(lambda: ready.exists() and daemon.exists(), "the start of the command")
        celeriac.supervisors()[0].kill()
        ended = celeriac.wait()
        assert celeriac.alive() == []
    assert ended.status == 1
    assert ended.summary["succeeded"] == 1
    (failure,) = ended.summary["failures"]
    assert (failure["key"], failure["reason"]) == ("lost", "lost")


def test_kill_9_of_one_supervisor_keeps_the_commands_of_the_other(tmp_path):
    waits = f"touch {tmp_path}/up-$CELERIAC_KEY; while [ ! -e {tmp_path}/go ]; do sleep 0.02; done"
    file = jobs(tmp_path, *({"key": str(n), "command": waits, "on_worker_lost": "fail"} for n in range(4)))
    with started("run", file, "-j4", "--json", cwd=tmp_path) as celeriac:
        until(lambda: len(list(tmp_path.glob("up-*"))) == 4, "the start of the commands")
        assert len(celeriac.supervisors()) == 2
        celeriac.supervisors()[0].kill()
        (tmp_path / "go").touch()
        ended = celeriac.wait()
        assert celeriac.alive() == []
    assert (ended.summary["succeeded"], [f["reason"] for f in ended.summary["failures"]]) == (2, ["lost", "lost"])


def test_a_command_of_a_killed_supervisor_runs_again_and_uses_no_retry(tmp_path):
    command = "echo $CELERIAC_ATTEMPT >> tries; [ $CELERIAC_ATTEMPT = 2 ] || sleep 600"
    file = jobs(tmp_path, {"key": "k", "command": command, "retries": 0})
    with started("run", file, "-j1", "--json", "--events", "events", cwd=tmp_path) as celeriac:
        until((tmp_path / "tries").exists, "the start of the command")
        celeriac.supervisors()[0].kill()
        ended = celeriac.wait()
    assert (ended.status, ended.summary["succeeded"], ended.summary["retried"]) == (0, 1, 1)
    assert (tmp_path / "tries").read_text().split() == ["1", "2"]
    events = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    assert [(e["state"], e.get("reason")) for e in events if e["attempt"] == 1][-1] == ("waiting", "lost")


def test_a_task_that_kills_its_worker_ends_as_poison(tmp_path):
    file = jobs(tmp_path, {"key": "k", "command": "echo x >> tries; kill -9 $PPID; sleep 600", "max_lost": 2})
    ended = run("run", file, "-j1", "--json", cwd=tmp_path)
    (failure,) = ended.summary["failures"]
    assert (ended.status, failure["reason"], failure["attempt"]) == (1, "poison", 2)
    assert failure["detail"].startswith("gave up after 2 lost workers; the task may be crashing them")
    assert (tmp_path / "tries").read_text() == "x\nx\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_interrupt_starts_no_more_tasks_and_lets_running_ones_finish(tmp_path, number):
    ready, go = tmp_path / "ready", tmp_path / "go"
    file = jobs(
        tmp_path,
        {"key": "runs", "command": waits_for(go, ready), "priority": 1},
        {"key": "later", "command": f"touch {tmp_path}/later"},
        {"key": "last", "command": f"touch {tmp_path}/last"},
    )
    with started("run", file, "-j1", "--json", cwd=tmp_path) as celeriac:
        until(ready.exists, "the start of the first command")
        celeriac.signal(number)
        notice = celeriac.wait_for_stderr("to end them\n")
        go.touch()
        ended = celeriac.wait()
        assert celeriac.alive() == []
    assert notice == "interrupted: starting nothing more, 1 still running; interrupt again to end them\n"
    assert ended.status == 130
    summary = ended.summary
    assert (summary["succeeded"], summary["never_ran"], summary["failed"]) == (1, 2, 0)
    assert summary["interrupted"] is True
    assert not (tmp_path / "later").exists()


def test_the_second_interrupt_ends_running_commands_with_term_grace_and_kill(tmp_path):
    gentle, stubborn = tmp_path / "gentle", tmp_path / "stubborn"
    file = jobs(
        tmp_path,
        {"command": f"trap 'echo bye > {tmp_path}/bye; exit 0' TERM; touch {gentle}; while :; do sleep 0.02; done"},
        {"command": [PYTHON, "-c", IGNORES_TERM, str(stubborn)], "grace": 0.2},
        {"command": f"touch {tmp_path}/later"},
    )
    with started("run", file, "-j2", "--json", cwd=tmp_path) as celeriac:
        until(lambda: gentle.exists() and stubborn.exists(), "the start of two commands")
        celeriac.signal(signal.SIGINT)
        celeriac.wait_for_stderr("to end them\n")
        celeriac.signal(signal.SIGINT)
        ended = celeriac.wait()
        assert celeriac.alive() == []
    assert ended.status == 130
    summary = ended.summary
    assert (summary["revoked"], summary["never_ran"], summary["succeeded"], summary["failed"]) == (2, 1, 0, 0)
    assert (tmp_path / "bye").read_text() == "bye\n"
    assert not (tmp_path / "later").exists()


def test_the_summary_counts_the_tasks_that_never_ran(tmp_path):
    ready, go = tmp_path / "ready", tmp_path / "go"
    file = jobs(tmp_path, {"command": waits_for(go, ready)}, {"command": "true"})
    with started("run", file, "-j1", cwd=tmp_path) as celeriac:
        until(ready.exists, "the start of the first command")
        celeriac.signal(signal.SIGINT)
        celeriac.wait_for_stderr("to end them\n")
        go.touch()
        ended = celeriac.wait()
    assert "2 tasks: 1 succeeded, 0 failed, 1 never ran\n" in ended.err


def test_a_full_disk_fails_the_tasks_whose_output_is_lost(tmp_path):
    folder = tmp_path / "out"
    file = jobs(
        tmp_path,
        {"key": "lost", "command": "head -c 200000 /dev/zero; exit 0"},
        {"key": "kept", "command": "echo this can"},
    )
    args = ("run", file, "--json", "--output", folder, "--ledger", "none")
    ended = run(*args, cwd=tmp_path, before=small_files(100_000))
    assert ended.status == 1
    (failure,) = ended.summary["failures"]
    assert (failure["key"], failure["reason"]) == ("lost", "output")
    assert failure["detail"] == f"its output was not kept: {folder}/lost.out: File too large"
    assert (folder / "kept.out").read_text() == "this can\n"


def test_a_full_file_system_fails_only_tasks_whose_output_does_not_fit(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("a small file system cannot be mounted here")
    try:
        file = jobs(
            tmp_path,
            {"key": "big", "command": "head -c 200000 /dev/zero", "priority": 1},
            {"key": "silent", "command": ["true"]},
        )
        ended = run("run", file, "-j1", "--json", "--output", folder, cwd=tmp_path)
    finally:
        subprocess.run(["umount", folder], check=True)
    assert ended.status == 1
    assert [(f["key"], f["reason"]) for f in ended.summary["failures"]] == [("big", "output")]
    assert ended.summary["succeeded"] == 1


def test_a_full_disk_ends_the_events_file_and_not_the_run(tmp_path):
    ended = run("run", jobs(tmp_path, {"command": "true"}), "--json", "--events", "/dev/full", cwd=tmp_path)
    assert ended.err == "celeriac: --events: /dev/full: No space left on device; later events are not recorded\n"
    assert ended.status == 1
    assert ended.summary["succeeded"] == 1


def test_a_daemonised_child_does_not_outlive_the_run(tmp_path):
    ready = tmp_path / "ready"
    command = f'{PYTHON} -c "{DAEMONISES}" {ready}; while [ ! -e {ready} ]; do sleep 0.02; done'
    ended = run("run", jobs(tmp_path, {"command": command}), "--json", cwd=tmp_path)
    assert ended.status == 0
    assert ready.exists()


def test_leftover_processes_are_ended_before_the_task_ends(tmp_path):
    file = jobs(tmp_path, {"command": f"sleep 600 & echo $! > {tmp_path}/pid"})
    ended = run("run", file, "--json", "--events", tmp_path / "events", cwd=tmp_path)
    assert ended.status == 0
    last = json.loads((tmp_path / "events").read_text().splitlines()[-1])
    assert last["leftovers_ended"] is True
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


def test_a_command_that_ignores_term_is_killed_after_its_grace(tmp_path):
    file = jobs(
        tmp_path,
        {"command": [PYTHON, "-c", IGNORES_TERM, str(tmp_path / "ready")], "timeout": 1.5, "grace": 0.2},
    )
    ended = run("run", file, "--json", cwd=tmp_path)
    (failure,) = ended.summary["failures"]
    assert (failure["reason"], failure["signal"], failure["detail"]) == (
        "timeout",
        "SIGKILL",
        "it ran longer than 1.5 s",
    )
    assert (tmp_path / "ready").exists()


def test_a_timeout_reaches_the_children_of_children(tmp_path):
    file = jobs(tmp_path, {"command": "sh -c 'sh -c \"sleep 600; true\"; true'; true", "timeout": 0.3, "grace": 0.2})
    ended = run("run", file, "--json", cwd=tmp_path)
    assert ended.summary["failures"][0]["reason"] == "timeout"


def test_a_gigabyte_of_output_is_kept_up_to_the_limit_from_both_ends(tmp_path):
    gigabyte = 2**30
    command = f"echo first; head -c {gigabyte} /dev/zero; echo; echo last"
    file = jobs(tmp_path, {"key": "loud", "command": command})
    ended = run(
        "run", file, "--json", "--output", "out", "--output-limit", "100000", "--events", "events", cwd=tmp_path
    )
    assert ended.status == 0
    last = json.loads((tmp_path / "events").read_text().splitlines()[-1])
    written = gigabyte + len("first\n\nlast\n")
    kept = (tmp_path / "out" / "loud.out").read_bytes()
    marker = b"\n[%d bytes left out]\n" % last["stdout"]["left_out"]
    assert last["stdout"]["size"] == written
    assert kept.startswith(b"first\n")
    assert kept.endswith(b"\nlast\n")
    assert marker in kept
    assert len(kept) - len(marker) == 100_000 == written - last["stdout"]["left_out"]
    assert last["stdout"]["tail"].endswith("last\n")


def test_the_standard_input_of_a_command_is_empty(tmp_path):
    file = jobs(tmp_path, {"key": "reads", "command": "wc -c"})
    ended = run("run", file, "--output", "out", "--json", cwd=tmp_path)
    assert ended.status == 0
    assert (tmp_path / "out" / "reads.out").read_text().strip() == "0"


def test_output_that_is_not_utf_8_is_kept_as_it_is_and_shown_escaped(tmp_path):
    file = jobs(tmp_path, {"key": "bytes", "command": "printf 'caf\\351\\n\\033[31m' >&2; exit 1"})
    ended = run("run", file, "--output", "out", cwd=tmp_path)
    assert (tmp_path / "out" / "bytes.err").read_bytes() == b"caf\xe9\n\x1b[31m"
    assert "    caf\N{REPLACEMENT CHARACTER}\n    \\x1b[31m\n" in ended.err


def test_five_thousand_commands_at_parallelism_200_each_run_once(tmp_path):
    log = tmp_path / "log"
    lines = ({"key": str(n), "command": f"echo {n} >> {log}"} for n in range(5000))
    ended = run("run", jobs(tmp_path, *lines), "-j200", "--json", cwd=tmp_path)
    assert ended.status == 0
    assert ended.summary["succeeded"] == 5000
    assert Counter(log.read_text().split()) == Counter(str(n) for n in range(5000))


def test_a_command_that_a_signal_ends_fails_with_reason_signal(tmp_path):
    file = jobs(tmp_path, {"key": "dies", "command": "kill -9 $$"})
    ended = run("run", file, "--json", cwd=tmp_path)
    (failure,) = ended.summary["failures"]
    assert (failure["reason"], failure["signal"], failure["detail"]) == ("signal", "SIGKILL", "ended by SIGKILL")
