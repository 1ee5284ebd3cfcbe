"""The completion of a shell, as bash asks for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.cli_runner import jobs, run, run_in_process


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs in its ledger; `other` is the latest."""
    folder = tmp_path_factory.mktemp("completion")
    ledger = ("--ledger", "ledger.db")
    for name, keys in (("jobs", ("fetch", "format", "index")), ("other", ("build",))):
        file = jobs(folder, *({"key": key, "command": "true"} for key in keys), name=f"{name}.jsonl")
        assert run("run", file, *ledger, cwd=folder).status == 0
    return folder


def complete(folder: Path, line: str, ledger: str = "ledger.db") -> list[str]:
    """Return the completions of the last word, each with its kind."""
    words = line.split(" ")
    env = {
        "_CELERIAC_COMPLETE": "bash_complete",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
        "CELERIAC_LEDGER": ledger,
    }
    ended = run_in_process(cwd=folder, env=env)
    assert (ended.status, ended.err) == (0, "")
    return ended.out.split()


@pytest.mark.parametrize(
    ("line", "completions"),
    [
        ("celeriac ru", ["plain,run", "plain,runs"]),
        ("celeriac run jo", ["file,jo"]),
        ("celeriac run --events ", ["file,"]),
        ("celeriac run --output o", ["dir,o"]),
        ("celeriac show ", ["plain,other", "plain,jobs"]),
        ("celeriac retry j", ["plain,jobs"]),
        ("celeriac retry jobs --key f", ["plain,fetch", "plain,format"]),
        ("celeriac logs ", ["plain,other", "plain,jobs", "plain,build"]),
        ("celeriac logs jobs fe", ["plain,fetch"]),
        ("celeriac explain --run jobs i", ["plain,index"]),
        ("celeriac explain b", ["plain,build"]),
        ("celeriac cancel --run o", ["plain,other"]),
        ("celeriac prune --run x", []),
        ("celeriac show --ledger-file missing ", []),
        ("celeriac show --ledger-file m", ["file,m"]),
        ("celeriac schema sub", ["plain,submit"]),
    ],
)
def test_the_last_word_is_completed(folder, line, completions):
    assert complete(folder, line) == completions


def test_nothing_is_completed_without_a_ledger_and_nothing_fails(folder):
    for ledger in ("missing.db", "none", "nonsense://x"):
        assert complete(folder, "celeriac show ", ledger) == []
    assert complete(folder, "celeriac logs nothing x") == []
