"""The files of `deploy/`: alerts, dashboard and autoscaling use metrics and labels that exist."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from celeriac.telemetry.metrics import METRICS, Kind
from tests.support.servers import program

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
ALERTS, DASHBOARD, KEDA = DEPLOY / "prometheus/alerts.yaml", DEPLOY / "grafana/celeriac.json", DEPLOY / "keda.yaml"
SELECTOR = re.compile(r"\bceleriac_(\w+)(?:\{([^}]*)\})?")
SUFFIXES = ("_bucket", "_sum", "_count")
FROM_PROMETHEUS = {"job", "instance"}
OF_ANY_PROCESS = ("up{", "process_resident_memory_bytes{")


def names_of(metric) -> Iterator[str]:
    """Yield the names that Prometheus has for a metric."""
    if metric.kind is Kind.HISTOGRAM:
        yield from (metric.name + suffix for suffix in SUFFIXES)
    else:
        yield metric.name


KNOWN = {name: metric for metric in METRICS for name in names_of(metric)}


def expressions(path: Path) -> list[str]:
    if path is DASHBOARD:
        panels = json.loads(path.read_text())["panels"]
        return [target["expr"] for panel in panels for target in panel.get("targets", ())]
    found = re.findall(r"^( *)(?:expr|query): (?:>-\n((?:\1  .*\n)+)|(.*)\n)", path.read_text(), re.MULTILINE)
    return [" ".join((several or one).split()) for _, several, one in found]


@pytest.mark.parametrize("path", [ALERTS, DASHBOARD, KEDA], ids=lambda path: path.name)
def test_each_metric_and_label_exists(path):
    found = expressions(path)
    assert found
    for expression in found:
        selectors = SELECTOR.findall(expression)
        assert selectors or expression.startswith(OF_ANY_PROCESS), expression
        for name, matchers in selectors:
            assert name in KNOWN, expression
            labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
            assert labels <= {*KNOWN[name].labels, *FROM_PROMETHEUS}, expression
        for grouped in re.findall(r"\bby \(([^)]*)\)", expression):
            known = {label for name, _ in selectors for label in KNOWN[name].labels} | {"le"}
            assert set(re.split(r",\s*", grouped)) <= known, expression


def test_the_dashboard_shows_each_metric_of_tasks():
    shown = {name for expression in expressions(DASHBOARD) for name, _ in SELECTOR.findall(expression)}
    left_out = [metric.name for metric in METRICS if not shown.intersection(names_of(metric))]
    assert left_out == [
        *("oldest_queued_seconds", "limit_places", "limit_places_held", "publish_unconfirmed_total"),
        *("worker_draining", "worker_paused", "worker_started_total", "worker_run_seconds"),
        *("web_requests_total", "web_request_seconds", "web_viewers", "web_topics"),
        *("web_poll_seconds", "web_poll_age_seconds"),
    ]


def test_the_dashboard_is_generated():
    subprocess.run([sys.executable, ROOT / "tools/dashboard.py", "--check"], check=True)


def test_no_panel_covers_another():
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells


def promtool(*arguments: str | Path) -> None:
    ended = subprocess.run([program("promtool"), *arguments], cwd=ALERTS.parent, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_prometheus_accepts_the_alerts():
    promtool("check", "rules", ALERTS.name)


def test_the_alerts_fire_when_they_should():
    promtool("test", "rules", "alerts_test.yaml")


def test_each_alert_has_a_test_and_a_place_in_the_docs():
    alerts = re.findall(r"- alert: (\w+)", ALERTS.read_text())
    assert len(alerts) == len(set(alerts)) > 10
    tested = set(re.findall(r"alertname: (\w+)", (ALERTS.parent / "alerts_test.yaml").read_text()))
    explained = re.findall(r"^\| `(Celeriac\w+)` \|", (ROOT / "docs/monitoring.md").read_text(), re.MULTILINE)
    assert (tested, explained) == (set(alerts), alerts)


@pytest.mark.parametrize("path", [DASHBOARD, KEDA], ids=lambda path: path.name)
def test_prometheus_understands_each_query(path, tmp_path):
    rules = [
        {"record": f"r{number}", "expr": re.sub(r"\$__rate_interval", "5m", expression).replace("$", "")}
        for number, expression in enumerate(expressions(path))
    ]
    file = tmp_path / "rules.json"  # JSON is YAML, too
    file.write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}))
    promtool("check", "rules", str(file))
