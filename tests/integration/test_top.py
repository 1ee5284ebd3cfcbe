"""`celeriac top` on a real terminal: keys are pressed, and the text of the screen is awaited."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from celeriac.task.task import Task
from tests.integration.test_watch import HOSTILE, claims, lease
from tests.support.cli_runner import jobs, run, started, until
from tests.support.terminal import Terminal, on_terminal
from tests.support.workers import worker

__all__ = ["claims"]

MARKUP = "[red]x[/] [@click=app.quit]y[/]"
PATH = ("--ledger", "ledger.db")


def submit(folder: Path, *tasks: dict[str, Any], name: str = "waiting") -> None:
    """Store a run that no service has taken."""
    file = jobs(folder, *tasks, name=f"{name}.jsonl")
    assert run("submit", file, *PATH, cwd=folder).status == 0


def states(folder: Path, name: str) -> dict[str, str]:
    shown = run("show", name, *PATH, "--json", cwd=folder).out
    tasks = map(json.loads, shown.splitlines())
    return {task["key"]: task["state"] for task in tasks}


def open_run(terminal: Terminal, name: str) -> None:
    terminal.wait_for(lambda text: name in text and "Quit" in text)
    terminal.press("\r")
    terminal.wait_for("state: all")


def test_from_the_overview_to_the_output_of_a_task_and_hostile_text_is_text(tmp_path):
    output = tmp_path / "output.txt"
    output.write_text(f"{MARKUP}\n{HOSTILE}\n\x1b]0;title\x07last\n")
    file = jobs(
        tmp_path,
        {"key": MARKUP + HOSTILE, "command": f"cat {output}; exit 3 # {HOSTILE}"},
        {"key": "other", "command": "true"},
        name="nightly.jsonl",
    )
    assert run("run", file, *PATH, "--output", "out", cwd=tmp_path).status == 1
    with on_terminal("top", *PATH, cwd=tmp_path, columns=160) as terminal:
        open_run(terminal, "nightly")
        terminal.wait_for(lambda text: MARKUP in text and "exit code 3" in text)
        terminal.press("\r")
        text = terminal.wait_for(lambda text: "last" in text and "now: ended: failed: exit code 3" in text)
        assert f"{MARKUP}\\x1b[2J[red]x[/]  failed" in text
        assert "\\x1b]0;title\\x07last" in text
        assert b"\x1b]0;title" not in terminal.output
        terminal.press("\x1b")
        terminal.wait_for("state: all")
        terminal.press("q")
        assert terminal.wait() == 0
        assert terminal.is_clean


def test_pages_and_filters_of_a_large_run(tmp_path):
    submit(tmp_path, *({"key": f"task-{number}", "command": "true"} for number in range(450)))
    with on_terminal("top", *PATH, cwd=tmp_path, columns=80, lines=24) as terminal:
        open_run(terminal, "waiting")
        terminal.wait_for("task-0 ")
        terminal.press("n")
        terminal.wait_for(lambda text: "page 2, more" in text and "task-200 " in text)
        terminal.press("n")
        terminal.wait_for(lambda text: "page 3\n" in text and "task-400 " in text)
        terminal.press("p")
        terminal.wait_for(lambda text: "page 2, more" in text and "task-200 " in text)
        terminal.press("s")
        terminal.wait_for("sorted by key: this page alone")
        terminal.press("/")
        terminal.wait_for("key has this text")
        terminal.press("K-44\r")
        found = ["task-44", *(f"task-44{digit}" for digit in range(10))]
        terminal.wait_for(lambda text: [word for word in text.split() if word.startswith("task-")] == found)
        text = terminal.text()
        assert ("key has: K-44" in text, "sorted by key" in text, "this page alone" in text) == (True, True, False)
        terminal.press("ff")
        terminal.wait_for(lambda text: "state: in flight" in text and "task-44 " not in text)
        terminal.press("q")
        assert terminal.wait() == 0


def test_a_task_and_a_run_are_cancelled_after_a_question(tmp_path):
    submit(tmp_path, *({"key": key, "command": "true"} for key in "abc"))
    with on_terminal("top", *PATH, cwd=tmp_path, columns=80) as terminal:
        open_run(terminal, "waiting")
        terminal.wait_for("a  ")
        terminal.press("c")
        terminal.wait_for("Cancel task a?")
        terminal.press("n")
        terminal.wait_for(lambda text: "Cancel task a?" not in text)
        assert states(tmp_path, "waiting") == dict.fromkeys("abc", "waiting")
        terminal.press("c")
        terminal.wait_for("Cancel task a?")
        terminal.press("y")
        until(lambda: states(tmp_path, "waiting")["a"] == "revoked", "the end of the task")
        terminal.wait_for("revoked")
        terminal.press("\x1b")
        terminal.wait_for("Drain")
        terminal.press("c")
        terminal.wait_for("Cancel all tasks of run waiting")
        terminal.press("y")
        until(lambda: set(states(tmp_path, "waiting").values()) == {"revoked"}, "the end of the run")
        terminal.wait_for("ended")


def test_a_priority_is_changed_after_a_question_and_wrong_ones_are_refused(tmp_path):
    submit(tmp_path, *({"key": key, "command": "true"} for key in "ab"))
    with on_terminal("top", *PATH, cwd=tmp_path, columns=80) as terminal:
        open_run(terminal, "waiting")
        terminal.wait_for("b  ")
        terminal.press("P")
        terminal.wait_for("New priority of task a")
        terminal.press("high\r")
        terminal.wait_for(lambda text: "'high'" in text and "New priority" not in text)
        terminal.press("P")
        terminal.wait_for("New priority of task a")
        terminal.press("7\r")
        terminal.wait_for("from 0 to 7?")
        terminal.press("y")
        terminal.wait_for("a has priority 7")
    explained = json.loads(run("explain", "a", "--run", "waiting", *PATH, "--json", cwd=tmp_path).out)
    (change,) = explained["lives"][0]["moves"]
    assert (change["priority"], "asked by celeriac top (" in change["detail"]) == (7, True)
    shown = run("show", "waiting", *PATH, "--json", cwd=tmp_path).out
    assert {task["key"]: task.get("priority") for task in map(json.loads, shown.splitlines())} == {"a": 7, "b": 0}


def test_a_task_of_a_run_on_this_machine_is_cancelled_through_its_executor(tmp_path):
    file = jobs(
        tmp_path, {"key": "first", "command": "sleep 300"}, {"key": "second", "command": "true"}, name="live.jsonl"
    )
    with started("run", file, *PATH, "-j", "1", cwd=tmp_path) as running:
        with on_terminal("top", *PATH, cwd=tmp_path, columns=80) as terminal:
            open_run(terminal, "live")
            terminal.wait_for(lambda text: "first" in text and "running" in text)
            terminal.press("\r")
            terminal.wait_for(lambda text: "now: running" in text)
            terminal.press("r")
            terminal.wait_for("retry it when it has ended")
            terminal.press("c")
            terminal.wait_for("Cancel task first?")
            terminal.press("y")
            terminal.wait_for("will cancel it")
        assert running.wait().status == 1
    assert states(tmp_path, "live") == {"first": "revoked", "second": "success"}


def test_a_task_runs_again_on_the_terminal_and_the_application_comes_back(tmp_path):
    marker = tmp_path / "marker"
    file = jobs(tmp_path, {"key": "a", "command": f"test -e {marker}"}, name="nightly.jsonl")
    assert run("run", file, *PATH, cwd=tmp_path).status == 1
    marker.touch()
    with on_terminal("top", *PATH, cwd=tmp_path, columns=80) as terminal:
        open_run(terminal, "nightly")
        terminal.wait_for("failed")
        terminal.press("r")
        terminal.wait_for("Run task a again?")
        terminal.press("y")
        terminal.wait_for("Enter goes back")
        assert "1 succeeded" in terminal.text()
        terminal.press("\r")
        terminal.wait_for(lambda text: "success" in text and "Enter goes back" not in text)
        terminal.press("q")
        assert terminal.wait() == 0
        assert terminal.is_clean


def test_a_worker_is_drained(redis, tmp_path):
    with (
        worker(tmp_path, (redis.url, redis.url)) as process,
        on_terminal("top", "--broker", redis.url, cwd=tmp_path, columns=40, lines=24) as terminal,
    ):
        terminal.wait_for("0/")
        terminal.press("d")
        terminal.wait_for(lambda text: "Drain worker" in text)
        terminal.press("y")
        assert process.wait().status == 0
        terminal.wait_for(lambda text: "0/" not in text)


def test_a_server_that_goes_away_is_one_line_until_it_is_back(redis, claims, tmp_path):
    claims.renew(lease("w1"))
    with on_terminal("top", "--broker", redis.url, "--interval", "0.5", cwd=tmp_path, columns=80) as terminal:
        terminal.wait_for("w1")
        redis.kill()
        terminal.wait_for("is unavailable")
        redis.start()
        claims.renew(lease("w2"))
        terminal.wait_for(lambda text: "w2" in text and "is unavailable" not in text)
        terminal.press("\x03")
        assert terminal.wait() == 0
        assert terminal.is_clean


def test_without_a_terminal_or_without_anything_to_show_it_says_so(tmp_path):
    ended = run("top", *PATH, cwd=tmp_path)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err == "celeriac: top: it needs a terminal; celeriac status --watch prints lines without one\n"
    with on_terminal("top", *PATH, cwd=tmp_path, columns=200) as terminal:
        terminal.wait_for("ledger: there is no ")
        assert terminal.wait() == 2


def test_tasks_are_listed_without_the_libraries_of_the_web_server(tmp_path):
    program = f"""
import sys
sys.modules.update(dict.fromkeys(("starlette", "uvicorn", "jinja2", "multipart")))
import celeriac.cli.top_view.app
assert {Task.__module__!r} in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)
