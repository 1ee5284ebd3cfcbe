"""A ledger for the tests of the page: tasks that ended in each way, and texts that try to run in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.cli_runner import jobs, run

SCRIPT = "<script>window.hacked = 1</script>"
IMAGE = '"><img src=x onerror="window.hacked = 1">'
EVIL_KEYS = (
    SCRIPT,
    IMAGE,
    "javascript:window.hacked=1",
    "'onfocus=window.hacked=1 autofocus='",
    "{{7*7}}${7*7}",
    "</pre></textarea></title><svg onload=window.hacked=1>",
    "../..",
    "..",
    "a/b?c=d#e&f%2F",
    "line\nbreak\ttab\x1b[2J\u202e",
)
EVIL_QUEUE = f"q{IMAGE}"
ABSENT = "absent"
"""The key of a task whose command, a hostile text, cannot be found: so the reason holds it."""


def write_mixed(folder: Path) -> None:
    """Record a run whose tasks ended in different ways, in two queues."""
    tasks: list[dict[str, Any]] = [
        {"key": f"good-{n:03}", "command": "true", "queue": "network" if n % 2 else "default"} for n in range(120)
    ]
    tasks += [
        {"key": "bad", "command": "echo said; echo complained >&2; exit 3", "priority": 5},
        {"key": "killed", "command": "kill -KILL $$"},
        {"key": "again", "command": "exit 4", "retries": 1, "retry_delay": 0.01},
        {"key": "after", "command": "true", "needs": ["bad"]},
    ]
    file = jobs(folder, *tasks, name="mixed.jsonl")
    assert run("run", file, "--ledger", "ledger.db", "--output", "out", "-q", cwd=folder).status == 1


def write_evil(folder: Path) -> None:
    """Record a run whose keys, commands, output, queue and file are hostile."""
    says = f"printf '%s' '{SCRIPT}{IMAGE}'; printf '\\033[31m\\a' >&2; exit 1 # {SCRIPT}"
    tasks: list[dict[str, Any]] = [
        {"key": key, "command": says, "queue": EVIL_QUEUE, "env": {"X": SCRIPT}} for key in EVIL_KEYS
    ]
    tasks.append({"key": ABSENT, "command": [IMAGE]})
    file = jobs(folder, *tasks, name=f"evil{SCRIPT.replace('/', '')}.jsonl")
    options = ("--ledger", "ledger.db", "--output", "evil-out", "-q")
    assert run("run", file, "--name", SCRIPT, *options, cwd=folder).status == 1
