"""The progress of a run where standard error is not a terminal."""

from __future__ import annotations

import socket

import pytest
from msgspec.structs import replace

from celeriac.cli.progress import (
    MAX_FAILURES_SHOWN,
    MAX_FAILURES_WITH_TAIL,
    Failures,
    ProgressLines,
    progress_line,
)
from celeriac.cli.summary import name_lines
from celeriac.cli.url_options import place_of
from celeriac.config.executor_config import Config
from celeriac.config.url_files import UrlFile
from celeriac.executor.executor import CeleryExecutor
from celeriac.runs.run import Totals
from celeriac.task.event import Event
from celeriac.task.result import Execution, Output, Reason
from celeriac.task.state import State
from celeriac.testing import InMemoryBroker, ManualClock
from tests.support.cli_runner import without_progress


@pytest.fixture
def executor() -> CeleryExecutor:
    broker = InMemoryBroker()
    executor = CeleryExecutor(Config(parallelism=2), publisher=broker, results=broker, revoker=broker)
    for key in "abcde":
        executor.queue_command(key, "true")
    executor.heartbeat()
    return executor


def a_failure(key: str) -> Event:
    return Event(
        key=key,
        state=State.FAILED,
        when=0.0,
        id=key,
        attempt=1,
        reason=Reason.EXIT_CODE,
        detail="exit code 3",
        execution=Execution(
            host=socket.gethostname(), exit_code=3, duration=0.25, stderr=Output(size=9, tail="one\ntwo\n")
        ),
    )


def test_a_line_has_the_counts_the_rate_and_the_time_left(executor):
    totals = Totals(queued=10, succeeded=4, failed=[a_failure("x")])
    assert progress_line(totals, executor, 2.5) == "5/10 done, 2 running, 3 waiting, 1 failed, 2.5/s, 2.00 s left"
    totals.skipped = 3
    line = progress_line(totals, executor, 2.5)
    assert line.startswith("8/10 done, 2 running, 3 waiting, 1 failed, 3 skipped, 2.5/s")


def test_plain_lines_appear_every_few_seconds_not_at_every_tick(executor, monkeypatch, capsys):
    clock = ManualClock(0.0)
    monkeypatch.setattr("celeriac.cli.progress.time.monotonic", clock)
    lines, totals = ProgressLines(), Totals(queued=10)
    for _ in range(120):
        clock.advance(0.1)
        lines.on_tick(totals, executor)
    assert len(capsys.readouterr().err.splitlines()) == 2


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("gzip  -k\n a.txt", "gzip -k a.txt"),
        (("gzip", "-k", "a b"), "gzip -k 'a b'"),
        ("x" * 61, "x" * 59 + "…"),
        ("echo \x1b[2J", r"echo \x1b[2J"),
    ],
)
def test_a_failure_names_its_command_shortened(command, shown, capsys):
    Failures().on_event(a_failure("3"), command)
    assert capsys.readouterr().err.splitlines()[0] == f"failed: 3 ({shown}): exit code 3, after 0.25 s"


def test_failures_are_printed_with_their_output_up_to_a_limit(capsys):
    failures = Failures()
    for n in range(MAX_FAILURES_SHOWN + 50):
        failures.on_event(a_failure(f"k{n}"), None)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == ["failed: k0: exit code 3, after 0.25 s", "    one", "    two"]
    assert len([line for line in lines if line.startswith("failed: ")]) == MAX_FAILURES_SHOWN
    assert lines.count("    two") == MAX_FAILURES_WITH_TAIL
    assert lines[-1] == "further failures are counted, but not shown here"


def test_a_failure_elsewhere_names_its_machine(capsys):
    event = a_failure("x")
    assert event.execution is not None
    Failures().on_event(replace(event, execution=replace(event.execution, host="far")), None)
    assert capsys.readouterr().err.startswith("failed: x: exit code 3, after 0.25 s, on far\n")


def test_tasks_of_workers_elsewhere_are_in_flight_and_not_called_running(executor):
    assert " 2 running, " in progress_line(Totals(queued=1), executor, 0.0)
    assert " 2 in flight, " in progress_line(Totals(queued=1, on_workers=True), executor, 0.0)


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"broker": None}, ""),
        ({"broker": UrlFile("my url")}, " --broker-file 'my url'"),
        ({"broker": "amqp://u:hush@h", "backend": UrlFile("b")}, " --broker URL --backend-file b"),
    ],
)
def test_the_summary_says_how_to_run_the_rest_on_the_same_workers(options, place):
    totals = Totals(queued=1, failed=[a_failure("a b")], name="jobs")
    assert list(name_lines(totals, place_of(options))) == [
        "run jobs: see celeriac logs jobs 'a b'",
        f"to run again what did not succeed: celeriac retry jobs{place}",
    ]


def test_without_progress_removes_the_progress_lines_of_a_slow_run(executor):
    line = progress_line(Totals(queued=10, succeeded=4), executor, 2.5)
    assert without_progress(f"before\n{line}\nafter\n") == "before\nafter\n"
