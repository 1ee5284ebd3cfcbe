"""Names and errors in the output of commands: no control characters, no line breaks, and no markup of rich."""

from __future__ import annotations

import ast
import logging
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import ClassVar

import pytest

from celeriac.log_lines import logger_for
from tests.support.cli_runner import jobs, run, run_in_process

EVIL = "a\x1b[2Jb\r\x9b1mc\u2028d"
SHOWN = r"a\x1b[2Jb\r\x9b1mc\u2028d"
MARKUP = "[red]:bug:"
NAME = f"{EVIL}\n{MARKUP}"
PACKAGE = Path(__file__).parents[2] / "src" / "celeriac"


@pytest.mark.parametrize(
    "args",
    [
        *(
            (EVIL,),
            ("schema", EVIL),
            ("run", "a", EVIL),
            ("runs", EVIL),
            ("runs", "--limit", EVIL),
            ("show", f"--{EVIL}"),
        ),
        *(("run", f"--{EVIL}"), ("run", "--format", EVIL, "a"), (f"--{EVIL}",), ("broker", "--port", EVIL)),
    ],
)
def test_a_usage_error_is_one_line(tmp_path, args):
    ended = run_in_process(*args, cwd=tmp_path)
    assert ended.status == 2
    usage, error = ended.err.split("\n\n")
    assert usage.startswith("Usage: celeriac")
    assert error.startswith("Error: ")
    assert error.endswith("\n")
    assert error[:-1].isprintable()
    assert SHOWN in error


@pytest.fixture(scope="module")
def evil_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an ended run and a submitted run, all names of which have control characters and markup."""
    folder = tmp_path_factory.mktemp("evil")
    file = jobs(
        folder,
        {"key": NAME, "command": f"printf '{NAME}'; exit 3", "queue": NAME, "env": {"A": NAME}},
        {"key": f"{NAME}2", "command": ["true", NAME], "needs": [NAME]},
        name=f"{NAME}.jsonl",
    )
    ended = run("run", file, "--ledger", "ledger.db", "--name", NAME, "--output", NAME, cwd=folder)
    assert ended.status == 1
    check_lines(ended.err)
    for args in (("submit", file.name), ("run", file.name, "--dry-run")):
        check_lines(run_in_process(*args, "--ledger", "ledger.db", cwd=folder).out)
    return folder


def check_lines(text: str) -> None:
    assert MARKUP in text
    assert SHOWN in text
    assert [line for line in text.splitlines() if not line.isprintable()] == []
    assert len(text.splitlines()) == text.count("\n")


@pytest.mark.parametrize(
    "args",
    [
        ("runs",),
        *(("show", name) for name in (NAME, "missing" + EVIL + MARKUP)),
        ("explain", "--run", NAME, NAME),
        ("logs", NAME, f"{EVIL}{MARKUP}missing"),
        ("status",),
        ("prune", "--keep", "0", "--dry-run"),
        ("cancel", "--run", NAME, NAME),
        ("cancel", "--local", f"{EVIL}{MARKUP}"),
        ("cancel", "--local", "--queue", f"{EVIL}{MARKUP}"),
        ("retry", NAME, "--key", f"{EVIL}{MARKUP}"),
    ],
    ids=lambda args: args[0],
)
def test_what_a_command_prints_has_no_control_characters_and_its_markup_is_text(evil_folder, args):
    ledger = () if "--local" in args else ("--ledger", "ledger.db")
    ended = run_in_process(*args, *ledger, cwd=evil_folder)
    check_lines(ended.out + ended.err)


def test_a_warning_without_a_log_is_one_line_of_the_program(evil_folder, tmp_path):
    with (
        closing(sqlite3.connect(evil_folder / "ledger.db")) as source,
        closing(sqlite3.connect(tmp_path / "l")) as copy,
    ):
        source.backup(copy)
        copy.execute("UPDATE celeriac_task SET payload = x'ff'")
        copy.commit()
    ended = run("show", NAME, "--ledger", "l", cwd=tmp_path)
    check_lines(ended.err)
    assert all(line.startswith("celeriac: run ") and "it is left out" in line for line in ended.err.splitlines())


def test_a_program_that_sets_up_no_log_prints_each_warning_as_one_line(tmp_path):
    code = "import sys; from celeriac.log_lines import logger_for\n"
    code += "logger_for('celeriac.x').warning('%s: %d', sys.argv[1], 3)"
    ended = subprocess.run([sys.executable, "-c", code, f"{EVIL}\n"], capture_output=True, text=True, check=True)
    assert ended.stderr == f"{SHOWN}\\n: 3\n"


def test_a_message_that_cannot_be_formatted_is_left_to_the_handler():
    class Reporting(logging.Handler):
        failed: ClassVar[list[logging.LogRecord]] = []

        def emit(self, record: logging.LogRecord) -> None:
            try:
                self.format(record)
            except TypeError:
                self.failed.append(record)

    logger, handler = logger_for("celeriac.x"), Reporting()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logger, "handlers", [handler])
        patch.setattr(logger, "propagate", False)
        logger.warning("%d", "text")
    [record] = handler.failed
    assert (record.msg, record.args) == ("%d", ("text",))


def test_each_module_takes_its_logger_and_prints_its_messages_where_they_are_escaped():
    prints = {"messages.py", "warning_printer.py", "status_line.py"}
    for path in PACKAGE.rglob("*.py"):
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            text = ast.unparse(call)
            assert not text.startswith("logging.getLogger(__name__") or path.name == "log_lines.py", path
            assert not (text.startswith("click.echo(") and "err=True" in text) or path.name in prints, path
