"""How a run looks when nobody sits at a terminal."""

from __future__ import annotations

import pytest

from celeriac.cli.progress import FAILURES_SHOWN, FAILURES_WITH_LAST_WORDS, Failures, Lines, standing
from celeriac.config.executor_config import Config
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
    said = Execution(host="here", exit_code=3, duration=0.25, stderr=Output(size=9, tail="one\ntwo\n"))
    return Event(
        key=key,
        state=State.FAILED,
        when=0.0,
        id=key,
        attempt=1,
        reason=Reason.EXIT_CODE,
        detail="exit code 3",
        execution=said,
    )


def test_a_line_says_how_the_run_stands(executor):
    totals = Totals(queued=10, succeeded=4, failed=[a_failure("x")])
    assert standing(totals, executor, 2.5) == "5/10 done, 2 running, 3 waiting, 1 failed, 2.5/s, 2.00 s left"
    totals.skipped = 3
    assert standing(totals, executor, 2.5).startswith("8/10 done, 2 running, 3 waiting, 1 failed, 3 skipped, 2.5/s")


def test_plain_lines_come_every_few_seconds_and_not_at_every_tick(executor, monkeypatch, capsys):
    clock = ManualClock(0.0)
    monkeypatch.setattr("celeriac.cli.progress.time.monotonic", clock)
    lines, totals = Lines(), Totals(queued=10)
    for _ in range(120):
        clock.advance(0.1)
        lines.on_tick(totals, executor)
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_failures_are_said_with_their_last_words_until_there_are_too_many(capsys):
    failures = Failures()
    for n in range(FAILURES_SHOWN + 50):
        failures.on_event(a_failure(f"k{n}"))
    said = capsys.readouterr().err.splitlines()
    assert said[:3] == ["failed: k0: exit code 3, after 0.25 s", "    one", "    two"]
    assert len([line for line in said if line.startswith("failed: ")]) == FAILURES_SHOWN
    assert said.count("    two") == FAILURES_WITH_LAST_WORDS
    assert said[-1] == "further failures are counted, and not shown here"


def test_tests_do_not_see_the_progress_lines_of_a_slow_run(executor):
    line = standing(Totals(queued=10, succeeded=4), executor, 2.5)
    assert without_progress(f"before\n{line}\nafter\n") == "before\nafter\n"
