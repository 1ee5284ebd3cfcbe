"""The modules that a command imports. Each one makes every start slower, so `imports.txt` lists those that may be.

If a new module is needed there, add its name. What is needed seldom, import in the function that needs it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

LISTED = Path(__file__).with_name("imports.txt")
COMMANDS = {
    "--version": ["--version"],
    "--help": ["--help"],
    "run": ["run", "-q", "--", "true"],
    "run FILE": ["run", "-q", "--ledger=ledger.db", "jobs.jsonl"],
}
LIBRARIES = {
    "--version": {"click"},
    "--help": {"click"},
    "run": {"click", "msgspec", "typing_extensions"},
    "run FILE": {"click", "msgspec", "typing_extensions"},
}
"""The libraries that each command may import. msgspec imports typing_extensions where it is installed."""

SLOW = {"asyncio", "csv", "ctypes", "dataclasses", "email", "hashlib", "http", "multiprocessing", "ssl", "tomllib"}
"""Modules of the standard library that take milliseconds, and that no short run needs."""

SLOW_AND_NEEDED = {"run FILE": {"hashlib"}}

SLOW_FOR_SUPERVISORS = {*SLOW - {"ctypes"}, "inspect", "logging", "pathlib", "traceback", "typing"}
SUPERVISOR = "import sys; sys.path.insert(0, {root!r}); import celeriac.worker.supervisor.loop"


def imported(arguments: Sequence[str | Path], folder: Path) -> set[str]:
    """Return the names of the modules that a Python program imports, in a folder with a file of one job."""
    folder.joinpath("jobs.jsonl").write_text('{"command": "true"}\n')
    command = [sys.executable, "-X", "importtime", *arguments]
    done = subprocess.run(
        command, cwd=folder, check=True, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}
    )
    lines = (line for line in done.stderr.splitlines() if line.startswith("import time:"))
    return {line.rpartition("|")[2].strip() for line in lines}


def listed(command: str) -> set[str]:
    """Return the modules of this package that a command may import."""
    sections = LISTED.read_text(encoding="utf-8").split("\n\n")
    names = {title.removeprefix("# "): set(names) for title, *names in map(str.splitlines, sections)}
    return names[command] | (names["run"] if command == "run FILE" else set())


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_imports_no_module_that_is_not_listed(tmp_path, command):
    names = imported(["-m", "celeriac", *COMMANDS[command]], tmp_path)
    assert {name for name in names if name.startswith("celeriac")} - listed(command) == set()
    tops = {name.partition(".")[0] for name in names} - {"celeriac"}
    assert tops - set(sys.stdlib_module_names) - at_every_start(tmp_path) - LIBRARIES[command] == set()
    assert tops & SLOW - SLOW_AND_NEEDED.get(command, set()) == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_the_list_names_no_module_that_is_not_imported(tmp_path, command):
    assert listed(command) - imported(["-m", "celeriac", *COMMANDS[command]], tmp_path) == set()


def test_a_supervisor_imports_no_slow_module(tmp_path):
    root = str(Path(__file__).parents[2] / "src")
    names = imported(["-I", "-S", "-c", SUPERVISOR.format(root=root)], tmp_path)
    assert names & SLOW_FOR_SUPERVISORS == set()


def at_every_start(folder: Path) -> set[str]:
    """Return what the interpreter of the tests imports for an empty program: hooks of other packages."""
    return {name.partition(".")[0] for name in imported(["-c", "pass"], folder)}
