"""Runs and submissions whose jobs a template makes: from tables, lines, arguments and grids."""

from __future__ import annotations

import json
import os
import signal
import subprocess

import pytest

from celeriac.runs.job_file.template import JobTemplate, ValueList
from celeriac.runs.record import MAX_SOURCE_LENGTH, source_of_arguments
from tests.support.cli_runner import run, run_in_process, started, until
from tests.support.servers import program

APPEND = "echo {} >> log; "


def ran(folder):
    """Return the lines of the log, in order."""
    path = folder / "log"
    return sorted(path.read_text().splitlines()) if path.exists() else []


def ledger(folder):
    return ("--ledger", str(folder / "ledger.db"))


def test_each_row_of_a_table_is_a_job(tmp_path):
    (tmp_path / "samples.csv").write_text("sample,lr,priority\na b,0.1,1\n$(id),0.2,2\n")
    arguments = ("run", "-t", "echo {sample} {lr} >> log", "--key", "{sample}", "samples.csv", "-j1", "--json")
    ended = run(*arguments, cwd=tmp_path)
    assert (ended.status, ended.summary["succeeded"]) == (0, 2)
    assert (tmp_path / "log").read_text() == "$(id) 0.2\na b 0.1\n"


def test_lines_of_standard_input_are_values(tmp_path):
    ended = run("run", "-t", APPEND, "-", "-q", cwd=tmp_path, stdin=b"a b\n#c\n")
    assert (ended.status, ran(tmp_path)) == (0, ["#c", "a b"])


def test_arguments_are_values_also_two_dashes(tmp_path):
    ended = run("run", "-q", "-t", "printf '%s\\n' {1} {2} >> log", ":::", "--", "-x", ":::", "y", cwd=tmp_path)
    assert (ended.status, ran(tmp_path)) == (0, ["--", "-x", "y", "y"])


def test_a_dry_run_lists_the_jobs_of_a_grid_and_says_how_many(tmp_path):
    arguments = ("run", "--dry-run", "-t", "train {lr} {seed}", "--grid", "lr=0.1,0.2", "seed=1..2")
    ended = run_in_process(*arguments, cwd=tmp_path)
    assert [line.split()[2:] for line in ended.out.splitlines()] == [
        ["1", "train", "0.1", "1"],
        ["2", "train", "0.1", "2"],
        ["3", "train", "0.2", "1"],
        ["4", "train", "0.2", "2"],
    ]
    assert ended.err == "4 jobs; the first command is train 0.1 1\n"
    as_json = run_in_process(*arguments[:2], "--json", *arguments[2:], cwd=tmp_path)
    assert [json.loads(line)["command"] for line in as_json.out.splitlines()][-1] == "train 0.2 2"


@pytest.mark.parametrize("values", [("values.txt",), (":::", "a", "b", "c")])
def test_a_killed_run_is_resumed_with_its_template(tmp_path, values):
    (tmp_path / "values.txt").write_text("a\nb\nc\n")
    template = "echo {} >> log; test {} = a || test -e go || exec sleep 60"
    arguments = ("-t", template, *ledger(tmp_path), "-j", "2")
    with started("run", *arguments, *values, cwd=tmp_path) as celeriac:
        until(lambda: ran(tmp_path)[:2] == ["a", "b"], "the start of the second job")
        celeriac.kill()
    before = ran(tmp_path)
    (tmp_path / "go").touch()
    again = ("--resume", *(arguments[2:] if values == ("values.txt",) else arguments))
    ended = run("run", *again, "--json", *values, cwd=tmp_path)
    assert (ended.status, ended.summary["succeeded"] + ended.summary["had_succeeded"]) == (0, 3)
    assert ran(tmp_path).count("a") == 1 + (before.count("a") == 0)
    assert set(ran(tmp_path)) == {"a", "b", "c"}


def test_another_template_changes_the_jobs_and_the_rest_is_as_before(tmp_path):
    (tmp_path / "values.txt").write_text("a\nb\n")
    options = (*ledger(tmp_path), "--key", "{}", "values.txt")
    template = APPEND + "test {} = a || test -e go"
    assert run("run", "-t", template, *options, cwd=tmp_path).status == 1
    (tmp_path / "go").touch()
    assert run("run", "--resume-failed", "-t", template, *options, cwd=tmp_path).status == 0
    assert ran(tmp_path) == ["a", "b", "b"]
    assert run("run", "--resume", "-t", "echo second {} >> log", *options, cwd=tmp_path).status == 0
    assert ran(tmp_path) == ["a", "b", "b", "second a", "second b"]


def test_failed_jobs_of_arguments_are_retried(tmp_path):
    template = APPEND + "test -e go"
    assert run("run", *ledger(tmp_path), "-t", template, ":::", "a", "b", cwd=tmp_path).status == 1
    (tmp_path / "go").touch()
    ended = run("retry", "echo", *ledger(tmp_path), "--json", cwd=tmp_path)
    assert (ended.status, ended.summary["succeeded"], ran(tmp_path)) == (0, 2, ["a", "a", "b", "b"])


def test_the_ledger_names_a_run_of_arguments_by_what_was_typed(tmp_path):
    assert run("run", "-q", *ledger(tmp_path), "-t", "true {}", ":::", "a b", "c", cwd=tmp_path).status == 0
    (shown,) = json.loads(run("runs", "--json", *ledger(tmp_path), cwd=tmp_path).out)
    assert (shown["run"], shown["file"]) == ("true", "-t 'true {}' ::: 'a b' c")


def test_many_arguments_are_named_by_their_digest():
    def source(last: str) -> str:
        values = ValueList(values=(*map(str, range(1000)), last))
        return source_of_arguments(JobTemplate(command="{}", lists=(values,)))

    assert len(source("a")) < MAX_SOURCE_LENGTH + 50
    assert source("a") != source("b")
    assert source("a") == source("a")


BAD = [
    (["-t", "x {c}", "s.csv"], "s.csv:1: template: {c} names no value; there are {a}, {b}, "),
    (["-t", "x", "s.csv"], "celeriac: --template: 'x' has no placeholder; write {} for"),
    (["-t", "x {}", ":::"], "celeriac: :::: no value follows it; write for example ::: a b c"),
    (["-t", "x {}", "--grid", "y"], "celeriac: --grid: 'y' is not NAME=VALUES; write for example"),
    (["-t", "{}", ":::", "a", ":::+", "b", "c"], "celeriac: :::+: lists of 1 and 2 values are linked"),
    (["-t", "{a}", "--key", "{a}", "twice.csv"], 'twice.csv:3: key: "1" is already the key of line 2'),
    (["-t", "{}", "s.csv", ":::", "a"], "give either a FILE, or values after ::: and --grid"),
    (["-t", "{}"], "a FILE, with - for standard input"),
    (["--key", "{}", "s.csv"], "--key needs a template"),
    (["--grid", "a=1", "s.csv"], "--grid needs a template"),
    (["s.csv", ":::", "a"], "::: needs a template"),
]
BAD_FOR_RUN = [
    (["-t", "{a}", "--resume", "-"], "--resume needs a FILE that can be read again"),
    (["-t", "{}", "--", "ls"], "give either a FILE"),
]


@pytest.mark.parametrize(
    ("command", "arguments", "line"),
    [*((command, *bad) for command in ("run", "submit") for bad in BAD), *(("run", *bad) for bad in BAD_FOR_RUN)],
)
def test_bad_templates_are_refused_before_anything_runs(tmp_path, command, arguments, line):
    (tmp_path / "s.csv").write_text("a,b\n1,2\n")
    (tmp_path / "twice.csv").write_text("a\n1\n1\n")
    words = [command, *ledger(tmp_path), *arguments]
    ended = run_in_process(*words, cwd=tmp_path)
    assert ended.status == 2
    assert line in ended.err
    assert "Traceback" not in ended.err
    assert not (tmp_path / "ledger.db").exists()


def test_arguments_and_tables_are_submitted(tmp_path):
    (tmp_path / "s.tsv").write_text("a\tslots\nx y\t2\n")
    assert run("submit", *ledger(tmp_path), "-t", "echo {a}", "s.tsv", cwd=tmp_path).out == "s\n"
    assert run("submit", *ledger(tmp_path), "-t", "echo {n}", "--grid", "n=1..3", cwd=tmp_path).out == "echo\n"
    assert run("submit", *ledger(tmp_path), "-t", "ls {}", "--name", "own", ":::", "a", cwd=tmp_path).out == "own\n"
    shown = json.loads(run("show", "s", "--json", *ledger(tmp_path), cwd=tmp_path).out)
    assert (shown["command"], shown["slots"]) == ("echo 'x y'", 2)
    runs = json.loads(run("runs", "--json", *ledger(tmp_path), cwd=tmp_path).out)
    assert {each["run"]: each["tasks"] for each in runs} == {"s": 1, "echo": 3, "own": 1}


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("echo {} {.} {/} {//} {/.} {#}", [":::", "a/b.tar.gz", "c d/e", "f"]),
        ("echo {1}-{2}-{}", [":::", "a", "b c", ":::", "1", "2"]),
        ("echo {1}{2}", [":::", "a", "b", ":::+", "1", "2"]),
        ("echo {1/.} {2//}", [":::", "x/y.z", ":::", "p/q"]),
    ],
)
def test_jobs_are_the_same_as_those_of_gnu_parallel(tmp_path, template, words):
    expected = run_parallel(tmp_path, template, words)
    ended = run_in_process("run", "--dry-run", "--json", "-t", template, *words, cwd=tmp_path)
    found = [json.loads(line)["command"] for line in ended.out.splitlines()]
    assert [run_shell(tmp_path, command) for command in found] == [run_shell(tmp_path, line) for line in expected]


def run_parallel(folder, template, words):
    done = subprocess.run(
        [program("parallel"), "--dry-run", "-k", "-j1", template, *words], cwd=folder, capture_output=True
    )
    return done.stdout.decode().splitlines()


def run_shell(folder, command):
    return subprocess.run(["sh", "-c", command], cwd=folder, capture_output=True, check=True).stdout


def test_ctrl_c_while_values_come_from_standard_input(tmp_path):
    with started("run", "-t", APPEND, "-", cwd=tmp_path, stdin=-1) as celeriac:
        assert celeriac.process.stdin is not None
        os.write(celeriac.process.stdin.fileno(), b"a\n")
        until(lambda: ran(tmp_path) == ["a"], "the first job")
        celeriac.signal(signal.SIGINT)
        assert celeriac.process.wait(30) == 130
