"""The output of commands that `run` and `retry` show: grouped, by line, in order, with keys."""

from __future__ import annotations

import hashlib
import os
import re
from types import SimpleNamespace
from typing import cast

import pytest

from celeriac.cli import shown_output
from celeriac.cli.shown_output import CHUNK_SIZE, OutputStyle, ShownOutput
from celeriac.executor.executor import CeleryExecutor
from celeriac.runs.run import Totals
from celeriac.task.event import Event
from celeriac.task.result import Execution, Output
from celeriac.task.state import State
from celeriac.worker.output import OutputPolicy
from tests.support.cli_runner import jobs, run, run_in_process, started
from tests.support.terminal import on_terminal

LEDGER = ("--ledger", "none")


def job(key, command, **fields):
    return {"key": key, "command": command, **fields}


def shown(tmp_path, *options, lines):
    ended = run("run", jobs(tmp_path, *lines), "-q", *LEDGER, *options, cwd=tmp_path)
    return ended.out, ended.err


# — without a terminal —


def test_output_is_not_shown_unless_asked_for(tmp_path):
    assert shown(tmp_path, lines=[job("a", "echo x; echo y >&2")]) == ("", "")


def test_both_streams_of_a_task_go_to_those_of_the_run(tmp_path):
    assert shown(tmp_path, "--group", lines=[job("a", "echo x; echo y >&2")]) == ("x\n", "y\n")


def test_the_output_of_a_failed_task_is_shown_once(tmp_path):
    out, err = shown(tmp_path, "--group", lines=[job("a", "echo x; echo y >&2; exit 3")])
    assert out == "x\n"
    assert re.fullmatch(r"y\nfailed: a: exit code 3, after [\d.]+ s\n", err)


def test_each_output_is_in_one_piece(tmp_path):
    lines = [job(name, f"for i in 1 2 3; do echo {name}$i; sleep 0.1; done") for name in "abcd"]
    out, _ = shown(tmp_path, "--group", "-j4", lines=lines)
    groups = [out.split()[start : start + 3] for start in range(0, 12, 3)]
    assert sorted(groups) == [[f"{name}{n}" for n in (1, 2, 3)] for name in "abcd"]


def test_no_more_tasks_start_while_much_output_waits_for_its_turn(tmp_path, monkeypatch):
    monkeypatch.setattr(shown_output, "MAX_HELD", 10)
    held: list[str | None] = []
    executor = cast(CeleryExecutor, SimpleNamespace(adjustments=SimpleNamespace(hold_back=held.append)))
    watcher = ShownOutput(OutputStyle(in_order=True), OutputPolicy(), lambda: None)
    watcher.on_queued([(key, "true") for key in "abc"])

    def tell(key: str, state: State, size: int = 0) -> None:
        execution = Execution(host="h", stdout=Output(size=size)) if state.is_final else None
        watcher.on_event(Event(key=key, state=state, when=0.0, id=key, attempt=1, number=1, execution=execution), None)
        watcher.on_tick(Totals(), executor)

    tell("a", State.RUNNING)
    tell("b", State.SUCCESS, 6)
    tell("c", State.SUCCESS, 6)
    tell("a", State.WAITING)  # it must start again, or the others wait for ever
    tell("a", State.RUNNING)
    tell("a", State.SUCCESS)
    assert [why is not None for why in held] == [False, False, True, False, True, False]


@pytest.mark.parametrize("option", ["--keep-order", "-k"])
def test_output_is_shown_in_the_order_of_the_file(tmp_path, option):
    (tmp_path / "go").mkdir()
    waits = "until test -e go/{0}; do sleep 0.01; done; echo {0}; touch go/{1}"
    lines = [
        job("a", waits.format("a", "end")),
        job("b", waits.format("b", "a")),
        job("c", "echo c; touch go/b", priority=5),
    ]
    assert shown(tmp_path, option, "-j3", lines=lines) == ("a\nb\nc\n", "")


def test_the_order_goes_on_after_tasks_without_output(tmp_path):
    lines = [
        job("fails", "exit 1"),
        job("skipped", "echo no", needs=["fails"]),
        job("cannot start", ["no-such-program"]),
        job("last", "echo last"),
    ]
    out, _ = shown(tmp_path, "-k", lines=lines)
    assert out == "last\n"


def test_jobs_of_standard_input_are_shown_in_their_order(tmp_path):
    text = b"sleep 0.3; echo first\necho second\necho third\n"
    ended = run("run", "-", "-q", "-k", "-j3", *LEDGER, cwd=tmp_path, stdin=text)
    assert ended.out == "first\nsecond\nthird\n"


def test_what_ended_is_shown_also_if_an_earlier_job_never_ran(tmp_path):
    lines = [
        job("stops", "exit 1", priority=1),
        *(job(f"n{n}", "echo never") for n in range(3)),
        job("z", "echo z", priority=1),
    ]
    ended = run("run", jobs(tmp_path, *lines), "-q", "-k", "--fail-fast", "-j2", *LEDGER, cwd=tmp_path)
    assert ended.status == 1
    assert ended.out in ("z\n", "never\nz\n", "never\nnever\nz\n", "")


def test_each_line_has_the_key_of_its_task(tmp_path):
    lines = [job("a b", "echo x; printf 'no end'"), job("ü", "printf '\\n\\377\\n' >&2", priority=-1)]
    with started("run", jobs(tmp_path, *lines), "-q", "--tag", "-j1", *LEDGER, cwd=tmp_path) as celeriac:
        out, err = celeriac.process.communicate(timeout=60)
    assert out == b"a b\tx\na b\tno end\n"
    assert err == "ü\t\nü\t".encode() + b"\xff\n"


def test_all_attempts_are_shown(tmp_path):
    command = "echo attempt $CELERIAC_ATTEMPT; test $CELERIAC_ATTEMPT = 2"
    for option in ("--group", "--line-buffer", "-k"):
        out, _ = shown(tmp_path, option, lines=[job("a", command, retries=1, retry_delay=0)])
        assert out == "attempt 1\nattempt 2\n"


def test_lines_are_shown_while_the_task_runs(tmp_path):
    file = jobs(tmp_path, job("a", "echo first; printf half; until test -e go; do sleep 0.01; done; echo ' whole'"))
    with started("run", file, "-q", "--line-buffer", *LEDGER, cwd=tmp_path) as celeriac:
        stdout = celeriac.process.stdout
        assert stdout is not None
        assert os.read(stdout.fileno(), 100) == b"first\n"
        (tmp_path / "go").touch()
        assert celeriac.wait().out == "half whole\n"


@pytest.mark.parametrize("option", ["--group", "--line-buffer", "-k"])
def test_large_outputs_are_exact(tmp_path, option):
    size = 11_000_000  # more than what is kept of a stream by default, and no multiple of a part
    make = f"yes {{}} | head -c {size}"
    with started("run", "-t", make, "-q", option, "-j1", *LEDGER, ":::", "abc", "x", cwd=tmp_path) as celeriac:
        out, _ = celeriac.process.communicate(timeout=120)
    expected = (b"abc\n" * size)[:size], (b"x\n" * size)[:size]
    assert hashlib.sha256(out).hexdigest() == hashlib.sha256(b"".join(expected)).hexdigest()


def test_a_limit_of_the_output_holds_for_what_is_shown(tmp_path):
    out, _ = shown(tmp_path, "--group", "--output-limit", "0", lines=[job("a", "yes | head -c 100000")])
    assert len(out) < 20_000
    assert "bytes left out]" in out


def test_files_stay_with_output_and_those_of_failed_tasks_without(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    lines = [job("a", "echo a"), job("b", "echo b; exit 1")]
    shown(tmp_path, "--group", lines=lines)
    assert [path.name for path in (tmp_path / "tmp").glob("celeriac-*/*")] == ["b.out"]
    assert shown(tmp_path, "-k", "--output", "out", lines=lines)[0] == "a\nb\n"
    assert {path.name for path in (tmp_path / "out").iterdir() if path.stat().st_size} == {"a.out", "b.out"}


def test_a_reader_that_goes_does_not_end_the_run(tmp_path):
    lines = [job(f"n{n}", f"yes {n} | head -c 300000; echo {n} >> log") for n in range(5)]
    command = ["sh", "-c", '"$@" | head -c 10 > /dev/null; true', "sh"]
    assert run("run", jobs(tmp_path, *lines), "-q", "--group", *LEDGER, cwd=tmp_path, before=command).status == 0
    assert len((tmp_path / "log").read_text().split()) == 5


def test_a_retry_shows_its_output(tmp_path):
    ledger = ("--ledger", str(tmp_path / "ledger.db"))
    run("run", jobs(tmp_path, job("a", "echo again; test -e go")), "-q", *ledger, cwd=tmp_path)
    (tmp_path / "go").touch()
    assert run("retry", "jobs", "-q", "--tag", *ledger, cwd=tmp_path).out == "a\tagain\n"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--line-buffer", "--group"], "give either --line-buffer or --group"),
        (["--line-buffer", "-k"], "give either --line-buffer or --keep-order"),
        (["--tag", "--quiet-output"], "give either --tag or --quiet-output"),
        (["--tag", "--json"], "--tag and --json would both write to standard output"),
        (["-k", "--events", "-"], "--keep-order and --events - would both write to standard output"),
        (["--group", "--", "ls"], "--group is for several commands: the output of one is shown as it is"),
        (
            ["--tag", "--broker", "amqp://127.0.0.1:1", "--backend", "rpc://"],
            "celeriac: --tag: a result backend of kind 'rpc' cannot carry the output of commands; use Redis",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, options, line):
    file = [] if "--" in options else [jobs(tmp_path, job("a", "touch ran"))]
    ended = run_in_process("run", *file, *options, cwd=tmp_path)
    assert (ended.status, (tmp_path / "ran").exists()) == (2, False)
    assert line in ended.err


# — on a terminal —


def test_a_terminal_shows_whole_outputs_above_the_bar(tmp_path):
    lines = [job(f"n{n}", f"echo begin{n}; sleep 0.{n}; printf end{n}", priority=-n) for n in range(1, 4)]
    lines += [job("bad", "echo why >&2; exit 9", priority=-9)]
    with on_terminal("run", str(jobs(tmp_path, *lines)), "-j1", *LEDGER, cwd=tmp_path, lines=40) as terminal:
        terminal.wait_for("end1\n")
        assert terminal.wait() == 1
        shown = [line for line in terminal.text().splitlines() if line]
    assert shown[:8] == [*(f"{word}{n}" for n in range(1, 4) for word in ("begin", "end")), "why", shown[7]]
    assert shown[7].startswith("failed: bad: exit code 9, after ")
    assert shown[8] == "4 tasks: 3 succeeded, 1 failed"


@pytest.mark.parametrize("options", [["--quiet-output"], ["-o", "out"], ["--json"], ["--events", "-"], ["-q"]])
def test_a_terminal_shows_no_output_that_was_not_wanted(tmp_path, options):
    file = str(jobs(tmp_path, job("a", "echo $((40 + 2))")))
    with on_terminal("run", file, *options, *LEDGER, cwd=tmp_path) as terminal:
        assert terminal.wait() == 0
        shown = terminal.text().splitlines()
    assert "42" not in shown


# — order, as a pure function of events —


def event(key: str, state: State, attempt: int = 1, execution: Execution | None = None) -> Event:
    return Event(key=key, state=state, when=0.0, id=key, attempt=attempt, execution=execution)


def test_the_order_of_jobs_is_kept_whatever_the_order_of_their_ends(tmp_path, capsysbinary):
    output = ShownOutput(OutputStyle(in_order=True), OutputPolicy(directory=tmp_path, keep=False), lambda: None)
    output.on_queued(iter([("a", "true"), ("b", "true")]))
    output.on_queued([("c", "true"), ("d", "true")])

    def ends(key: str, attempt: int = 1, state: State = State.SUCCESS, *, code: int = 0) -> None:
        (path := tmp_path / f"{key}{attempt}").write_text(f"{key}{attempt} ")
        execution = Execution(host="h", exit_code=code, stdout=Output(path=str(path)))
        output.on_event(event(key, state, attempt, execution), None)

    ends("c")
    ends("a", 1, State.WAITING, code=1)
    assert capsysbinary.readouterr().out == b"a1 "
    ends("recovered")
    ends("a", 2)
    assert capsysbinary.readouterr().out == b"a2 "
    output.on_event(event("b", State.SKIPPED, 0), None)
    assert capsysbinary.readouterr().out == b"c1 "
    output.on_tick(Totals(ended=1.0), cast("CeleryExecutor", None))
    assert capsysbinary.readouterr().out == b"recovered1 "
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a1"]  # of a failed attempt


def test_a_long_line_without_end_is_shown_in_parts(tmp_path, capsysbinary):
    policy = OutputPolicy(directory=tmp_path, keep=False)
    output = ShownOutput(OutputStyle(by_line=True), policy, lambda: None)
    output.on_event(event("a", State.RUNNING), None)
    (tmp_path / "a.out").write_bytes(b"x" * (CHUNK_SIZE + 5))
    output.on_tick(Totals(), cast("CeleryExecutor", None))
    assert capsysbinary.readouterr().out == b"x" * CHUNK_SIZE
    execution = Execution(host="h", exit_code=0, stdout=Output(path=str(tmp_path / "a.out")))
    output.on_event(event("a", State.SUCCESS, 1, execution), None)
    assert capsysbinary.readouterr().out == b"x" * 5
    assert list(tmp_path.iterdir()) == []
