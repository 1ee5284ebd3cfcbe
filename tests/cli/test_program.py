"""The program around the commands: help, start-up, and the report of a bug."""

from __future__ import annotations

import importlib
import re
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from celeriac.cli import COMMAND_SECTIONS, COMMANDS, bug_report
from celeriac.cli.run import RunCommand
from tests.support.cli_runner import run_in_process

COMMAND_FILES = (Path(bug_report.__file__).parent).glob("*.py")
HEAVY = ("celery", "kombu", "sqlalchemy", "msgspec", "rich")


def test_help_lists_every_command_in_sections_and_explains_our_words(tmp_path):
    sections = sections_of(run_in_process("--help", cwd=tmp_path).out)
    for section, commands in COMMAND_SECTIONS.items():
        assert [line.split() for line in sections[section]] == [[n, *text.split()] for n, text in commands.items()]
    assert {name.stem for name in COMMAND_FILES} >= set(COMMANDS)
    words = [line.split()[0] for line in sections["Words"] if line[2] != " "]
    assert words == ["slot", "ledger", "lease", "claim"]


def test_options_are_listed_in_sections_once_each(tmp_path):
    help_text = run_in_process("run", "--help", cwd=tmp_path).out
    sections = sections_of(help_text)
    assert [*sections][1:] == [
        "Examples",
        "Where commands run",
        "Jobs from a template",
        "Defaults of jobs",
        "Course of the run",
        "Limits",
        "At the end",
        "Output",
        "Other options",
    ]
    assert help_text.count("--parallelism N") == help_text.count("--config FILE") == 1
    assert "Other options" not in run_in_process("config", "--help", cwd=tmp_path).out


def test_the_first_twenty_lines_of_help_have_what_a_newcomer_needs(tmp_path):
    lines = run_in_process("run", "--help", cwd=tmp_path, env={"COLUMNS": "80"}).out.splitlines()[:20]
    (start,) = (number for number, line in enumerate(lines) if line == "Examples:")
    examples = [re.split(" {2,}", line.strip()) for line in lines[start + 1 : lines.index("", start)]]
    assert [tuple(example) for example in examples] == [*RunCommand.EXAMPLES]
    for word in ("FILE", "priority", "-j 8", "-o out", "--dry-run", "--resume", "-t ", ":::", "--broker", "Ctrl-C"):
        assert word in "\n".join(lines)


def sections_of(help_text: str) -> dict[str, list[str]]:
    sections: dict[str, list[str]] = {"": []}
    for line in filter(None, help_text.splitlines()):
        if line.endswith(":") and not line.startswith(" "):
            sections[line[:-1]] = []
        else:
            sections[[*sections][-1]].append(line)
    return sections


def test_help_imports_no_large_library():
    program = f"""
import sys
from celeriac.cli import main
main(["--help"], standalone_mode=False)
loaded = [name for name in {HEAVY!r} if name in sys.modules]
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)


@pytest.mark.parametrize("ledger", ["none", "sqlite:///ledger.db"])
def test_a_local_run_imports_no_large_library(tmp_path, ledger):
    (tmp_path / "jobs.txt").write_text("true\n")
    program = f"""
import atexit, sys
atexit.register(lambda: print(*(name for name in ("celery", "kombu", "sqlalchemy") if name in sys.modules)))
from celeriac.cli import main
main(["run", "--quiet", "--ledger", {ledger!r}, "jobs.txt"], standalone_mode=False)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout == "\n"


@pytest.mark.parametrize("width", [40, 80])
@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help_that_fits_the_terminal(tmp_path, command, width):
    ended = run_in_process(command, "--help", cwd=tmp_path, env={"COLUMNS": str(width)})
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.startswith(f"Usage: celeriac {command} ")
    assert max(map(len, ended.out.splitlines())) <= width


def test_the_list_of_commands_fits_40_columns(tmp_path):
    lines = run_in_process("--help", cwd=tmp_path, env={"COLUMNS": "40"}).out.splitlines()
    assert max(map(len, lines)) <= 40
    assert [line for line in lines if line.startswith("  status     Show queues,")]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_an_empty_value_is_refused_by_name_and_never_ignored(tmp_path, name):
    command = getattr(importlib.import_module(f"celeriac.cli.{name}"), name)
    required = [argument for argument in command.params if isinstance(argument, click.Argument) and argument.required]
    for parameter in command.params:
        if not isinstance(parameter.type, click.types.StringParamType):
            continue
        arguments = ["" if argument is parameter else "x" for argument in required]
        if isinstance(parameter, click.Option):
            arguments += [parameter.opts[-1], ""]
        elif parameter not in required:
            arguments.append("")
        ended = run_in_process(name, *arguments, cwd=tmp_path)
        assert (ended.status, ended.out) == (2, ""), parameter.name
        [line] = ended.err.splitlines()
        assert re.fullmatch(
            r"celeriac: (--[a-z-]+|[A-Z]+|worker): it is empty; give a value(, or leave the option out)?", line
        )


def test_an_unknown_command_is_a_usage_error(tmp_path):
    ended = run_in_process("rnu", cwd=tmp_path)
    assert (ended.status, ended.out) == (2, "")
    assert "No such command 'rnu'" in ended.err


def report_of(error: Exception, capsys: pytest.CaptureFixture[str]) -> list[str]:
    bug_report.report_bug(type(error), error, error.__traceback__)
    return capsys.readouterr().err.splitlines()


def test_a_bug_is_reported_with_its_traceback_and_a_request(capsys):
    try:
        raise RuntimeError("too many cooks")
    except RuntimeError as error:
        lines = report_of(error, capsys)
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-2:] == [
        "RuntimeError: too many cooks",
        "celeriac: this is a bug in Celeriac; please report it to its maintainers, with the lines above",
    ]


def test_a_bug_report_names_the_issue_tracker_of_the_package(capsys, monkeypatch):
    class Metadata:
        def get_all(self, name: str) -> list[str]:
            return ["Homepage, https://example.org", "Issues, https://example.org/issues"]

    monkeypatch.setattr("importlib.metadata.metadata", lambda name: Metadata())
    assert report_of(RuntimeError("x"), capsys)[-1].endswith("please report it: https://example.org/issues")


def test_an_interrupt_during_an_import_gives_the_exit_status_of_an_interrupt(tmp_path):
    (tmp_path / "program.py").write_text("""
from celeriac.cli.options import exit_on_signal
text = "import os, signal, time; os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)"  # as a dataclass is made
exit_on_signal(lambda: exec(text))()
""")
    done = subprocess.run([sys.executable, "-m", "program"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_an_interrupt_before_a_command_begins_ends_the_program_without_a_traceback(tmp_path):
    script = """
import celeriac.__main__ as main
def program(**_):
    raise KeyboardInterrupt
main.program = program
main.main()
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")
