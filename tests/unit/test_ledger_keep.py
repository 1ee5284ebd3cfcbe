"""The setting `ledger_keep`, and when a service applies it."""

from __future__ import annotations

import threading
import time

import pytest
from sqlalchemy import update

from celeriac.config.ledger_keep import LedgerKeep, keep_of
from celeriac.config.settings import read_settings
from celeriac.errors import InvalidConfig
from celeriac.ledger.run_store import RunStore
from celeriac.ledger.schema import RUNS
from celeriac.runs.ledger_limits import INTERVAL, RETRY_DELAY, THREAD, DailyLimits
from tests.support.cli_runner import until

SERVER = "postgresql://HOST/NAME"


@pytest.mark.parametrize(
    ("text", "days", "size"),
    [
        ("90 days or 2 GB", 90, 2_000_000_000),
        ("1 day", 1, None),
        ("0.5d,100MB", 0.5, 100_000_000),
        ("2 tb", None, 2_000_000_000_000),
        ("512 B", None, 512),
        ("everything", None, None),
    ],
)
def test_limits_are_read_and_written_as_text(text, days, size):
    keep = keep_of(text)
    assert keep == LedgerKeep(days, size)
    assert keep_of(str(keep)) == keep


@pytest.mark.parametrize("text", ["90", "90 weeks", "days", "-1 day", "2 GB of rows", "1 day or"])
def test_other_text_is_refused_in_one_line(text):
    assert keep_of(text) is None
    with pytest.raises(InvalidConfig, match=r'CELERIAC_LEDGER_KEEP.*give for example "90 days or 2 GB"'):
        read_settings(environment={"CELERIAC_LEDGER_KEEP": text})


@pytest.mark.parametrize(
    ("ledger", "text", "limits"),
    [
        ("ledger.db", None, LedgerKeep(90, 2_000_000_000)),
        ("ledger.db", "2 GB", LedgerKeep(None, 2_000_000_000)),
        ("none", None, LedgerKeep(90, 2_000_000_000)),
        (SERVER, None, LedgerKeep()),
        (SERVER, "90 days or 2 GB", LedgerKeep(90, None)),
        (SERVER, "30 days", LedgerKeep(30, None)),
        (SERVER, "everything", LedgerKeep()),
    ],
)
def test_a_ledger_on_a_server_has_the_age_that_was_set(ledger, text, limits):
    environment = {"CELERIAC_LEDGER": ledger} | ({} if text is None else {"CELERIAC_LEDGER_KEEP": text})
    assert read_settings(environment=environment).ledger_limits == limits


def test_a_size_alone_is_refused_for_a_ledger_on_a_server():
    settings = read_settings(environment={"CELERIAC_LEDGER": SERVER, "CELERIAC_LEDGER_KEEP": "2 GB"})
    with pytest.raises(
        InvalidConfig, match=r'CELERIAC_LEDGER_KEEP: limits the size .* give an age, for example "90 da'
    ):
        _ = settings.ledger_limits


# — a service —


class Checks:
    """A ledger in a file with old runs, and the lines about it."""

    def __init__(self, folder, days: float | None = 1.0) -> None:
        self.url = f"sqlite:///{folder}/ledger.db"
        self.lines: list[str] = []
        self.limits = DailyLimits(self.url, LedgerKeep(days), self.lines.append)
        self.begin = time.monotonic()

    def add_old_run(self, name: str) -> None:
        with RunStore(self.url) as ledger:
            run = ledger.create_run(name)
            old = update(RUNS).where(RUNS.c.id == run).values(created=1.0, ended=2.0)
            ledger.database.write(lambda connection: connection.execute(old))

    def has(self, name: str) -> bool:
        with RunStore(self.url, must_exist=True) as ledger:
            return ledger.find_run(name) is not None

    def check_until_removed(self, name: str, later: float) -> None:
        def is_removed() -> bool:
            self.limits.check(self.begin + later)  # starts nothing while the check before it is at work
            return not self.has(name)

        until(is_removed, "the removal of the run")


def wait_for_end() -> None:
    until(lambda: THREAD not in {thread.name for thread in threading.enumerate()}, "the end of the check")


def test_a_service_removes_old_runs_at_its_start_and_once_a_day_and_says_so_the_first_time(tmp_path):
    checks = Checks(tmp_path)
    checks.add_old_run("a")
    checks.add_old_run("b")
    checks.check_until_removed("a", 0.0)
    checks.check_until_removed("b", 0.0)
    until(lambda: checks.lines, "the announcement")
    checks.add_old_run("c")
    checks.check_until_removed("c", INTERVAL)
    [line] = checks.lines
    assert line == (
        "the ledger keeps 1 day: 2 older runs were removed from it, and more will be; the setting ledger_keep changes "
        "that"
    )


def test_a_check_before_its_time_removes_nothing(tmp_path):
    checks = Checks(tmp_path)
    checks.add_old_run("a")
    checks.check_until_removed("a", 0.0)
    wait_for_end()
    checks.add_old_run("b")
    checks.limits.check(checks.begin + INTERVAL - 1.0)
    wait_for_end()
    assert checks.has("b")


def test_a_service_without_limits_never_looks(tmp_path):
    checks = Checks(tmp_path, days=None)
    checks.limits.check(checks.begin)
    wait_for_end()
    assert (checks.lines, [*tmp_path.iterdir()]) == ([], [])


def test_a_ledger_that_cannot_be_used_is_reported_and_tried_again_later(tmp_path):
    checks = Checks(tmp_path)
    checks.limits.check(checks.begin)
    wait_for_end()
    [line] = checks.lines
    assert line.endswith("old runs stay")
    checks.add_old_run("a")
    checks.limits.check(time.monotonic())
    wait_for_end()
    assert checks.has("a")
    checks.check_until_removed("a", time.monotonic() - checks.begin + RETRY_DELAY)
