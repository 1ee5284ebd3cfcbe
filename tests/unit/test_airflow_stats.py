"""The executor's telemetry under Airflow's metrics."""

from __future__ import annotations

from typing import Any

import pytest

from celeriac.airflow.stats import StatsReporter
from celeriac.telemetry import metrics
from celeriac.telemetry.telemetry import Telemetry


class Client:
    """Keeps what Airflow's client would send."""

    def __init__(self) -> None:
        self.sent: list[tuple[Any, ...]] = []

    def gauge(self, name: str, value: float, *, tags: dict[str, str]) -> None:
        self.sent.append(("gauge", name, value, tags))

    def incr(self, name: str, count: int, *, tags: dict[str, str]) -> None:
        self.sent.append(("incr", name, count, tags))

    def timing(self, name: str, duration: Any, *, tags: dict[str, str]) -> None:
        self.sent.append(("timing", name, duration.total_seconds(), tags))


@pytest.fixture
def telemetry() -> Telemetry:
    telemetry = Telemetry()
    telemetry.set_source("one", lambda: [(metrics.TASKS_WAITING, {("gpu.big",): 3})])
    return telemetry


def reported(reporter: StatsReporter, client: Client) -> list[tuple[Any, ...]]:
    client.sent.clear()
    reporter.report()
    return list(client.sent)


def test_labels_are_parts_of_the_name_for_a_client_without_tags(telemetry):
    reporter = StatsReporter(telemetry, client := Client(), tagged=False)
    assert [each[:3] for each in reported(reporter, client)] == [("gauge", "celeriac.tasks_waiting.gpu_big", 3)]


def test_a_gauge_that_has_gone_is_0(telemetry):
    reporter = StatsReporter(telemetry, client := Client(), tagged=False)
    reported(reporter, client)
    telemetry.set_source("one", list)
    assert [each[:3] for each in reported(reporter, client)] == [("gauge", "celeriac.tasks_waiting.gpu_big", 0)]
    assert reported(reporter, client) == []


def test_labels_are_tags_for_a_client_with_tags(telemetry):
    reporter = StatsReporter(telemetry, client := Client(), tagged=True, team_name="blue")
    tags = {"queue": "gpu.big", "team_name": "blue"}
    assert reported(reporter, client) == [("gauge", "celeriac.tasks_waiting", 3, tags)]


def test_teams_have_names_of_their_own(telemetry):
    reporter = StatsReporter(telemetry, client := Client(), tagged=False, team_name="blue")
    assert [each[1] for each in reported(reporter, client)] == ["celeriac.blue.tasks_waiting.gpu_big"]


def test_a_counter_is_sent_when_it_has_grown(telemetry):
    reporter = StatsReporter(telemetry, client := Client(), tagged=False)
    telemetry.count(metrics.TASK_ENDS, "q", "FAILED", "lost", by=2)
    assert ("incr", "celeriac.task_ends_total.q.FAILED.lost", 2) in [each[:3] for each in reported(reporter, client)]
    assert "incr" not in [each[0] for each in reported(reporter, client)]
    telemetry.count(metrics.TASK_ENDS, "q", "FAILED", "lost")
    assert ("incr", "celeriac.task_ends_total.q.FAILED.lost", 1) in [each[:3] for each in reported(reporter, client)]


def test_each_measured_time_is_sent_once(telemetry):
    reporter = StatsReporter(telemetry, client := Client(), tagged=False)
    telemetry.observe(metrics.WAIT_SECONDS, 1.5, "q")
    telemetry.observe(metrics.WAIT_SECONDS, -0.5, "q")
    timings = [each[1:3] for each in reported(reporter, client) if each[0] == "timing"]
    assert timings == [("celeriac.task_wait_seconds.q", 1.5), ("celeriac.task_wait_seconds.q", 0.0)]
    assert "timing" not in [each[0] for each in reported(reporter, client)]
