"""Generate deploy/grafana/celeriac.json, a dashboard of Grafana.

    python tools/dashboard.py [--check]

With `--check`, fail if the file is out of date.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[1] / "deploy" / "grafana" / "celeriac.json"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24  # columns of a dashboard
JOB = 'job=~"$job"'
QUEUE = f'{JOB},queue=~"$queue"'
RATE = "[$__rate_interval]"

Panel = dict[str, Any]


def panel(kind: str, title: str, *targets: tuple[str, str], width: int = 8, unit: str = "short", **more: Any) -> Panel:
    """Return a panel. Each target is a query, and the legend of its series."""
    custom = more.pop("custom", {})
    defaults = {"unit": unit, "min": 0, "custom": custom, **more.pop("defaults", {})}
    return {
        "type": kind,
        "title": title,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "gridPos": {"w": width, "h": 4 if kind == "stat" else 8},
        "targets": [
            {"refId": chr(ord("A") + number), "datasource": SOURCE, "expr": query, "legendFormat": legend}
            for number, (query, legend) in enumerate(targets)
        ],
        **more,
    }


def stat(title: str, query: str, *, unit: str = "short", bad_from: float | None = None) -> Panel:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if bad_from is not None:
        steps.append({"color": "red", "value": bad_from})
    options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "graphMode": "area", "colorMode": "value"}
    defaults = {"thresholds": {"mode": "absolute", "steps": steps}, "noValue": "0"}
    return panel("stat", title, (query, ""), width=3, unit=unit, options=options, defaults=defaults)


def lines(title: str, *targets: tuple[str, str], unit: str = "short", stacked: bool = False, width: int = 8) -> Panel:
    custom = {"fillOpacity": 25 if stacked else 5, "stacking": {"mode": "normal" if stacked else "none"}}
    options = {"tooltip": {"mode": "multi", "sort": "desc"}, "legend": {"displayMode": "list", "placement": "bottom"}}
    return panel("timeseries", title, *targets, unit=unit, custom=custom, options=options, width=width)


def heatmap(title: str, metric: str) -> Panel:
    """Return a heatmap of a histogram: how many observations fell into each bucket."""
    query = f"sum by (le) (increase({metric}_bucket{{{QUEUE}}}{RATE}))"
    shown = panel("heatmap", title, (query, "{{le}}"), options={"calculate": False, "yAxis": {"unit": "s"}})
    shown["targets"][0]["format"] = "heatmap"
    return shown


def quantiles(title: str, metric: str, labels: str, *, by: str = "le") -> Panel:
    rate = f"sum by ({by}) (rate({metric}_bucket{{{labels}}}{RATE}))"
    legend = " {{queue}}" if "queue" in by else ""
    targets = [(f"histogram_quantile({q}, {rate})", f"{q:.0%}{legend}") for q in (0.5, 0.9, 0.99)]
    return lines(title, *targets, unit="s")


def available(title: str, metric: str) -> tuple[str, str]:
    return f"min({metric}{{{JOB}}})", title


def rows() -> Iterator[tuple[str, list[Panel]]]:
    """Yield the title and the panels of each row."""
    yield (
        "Now",
        [
            stat("Waiting", f"sum(celeriac_tasks_waiting{{{QUEUE}}})"),
            stat("In flight", f"sum(celeriac_tasks_in_flight{{{QUEUE}}})"),
            stat("Running", f"sum(celeriac_tasks_running{{{QUEUE}}})"),
            stat("First task waits", f"max(celeriac_oldest_waiting_seconds{{{JOB}}})", unit="s"),
            stat("Live workers", f'max(celeriac_workers{{{JOB},state="live"}})'),
            stat("Unserved queues", f"sum(max by (queue) (celeriac_queue_unserved{{{QUEUE}}}))", bad_from=1),
            stat("Failed, last hour", f'sum(increase(celeriac_task_ends_total{{{QUEUE},state="failed"}}[1h]))'),
            stat("Lost, last day", f"sum(increase(celeriac_tasks_lost_total{{{QUEUE}}}[1d]))", bad_from=1),
        ],
    )
    yield (
        "Tasks",
        [
            lines(
                "Tasks that end, per second",
                (f"sum by (state) (rate(celeriac_task_ends_total{{{QUEUE}}}{RATE}))", "{{state}}"),
                stacked=True,
            ),
            lines(
                "Tasks that arrive and are sent, per second",
                (f"sum(rate(celeriac_tasks_queued_total{{{QUEUE}}}{RATE}))", "queued"),
                (f"sum(rate(celeriac_publishes_total{{{QUEUE}}}{RATE}))", "sent"),
                (f"sum(rate(celeriac_publish_retries_total{{{QUEUE}}}{RATE}))", "sent again"),
            ),
            lines(
                "Slots",
                (f"sum(celeriac_slots_in_use{{{JOB}}})", "in use"),
                (f"sum(celeriac_slots_open{{{JOB}}})", "open"),
            ),
            lines("Waiting", (f"sum by (queue) (celeriac_tasks_waiting{{{QUEUE}}})", "{{queue}}"), stacked=True),
            lines(
                "Running, and what live workers can run",
                (f"sum by (queue) (celeriac_tasks_running{{{QUEUE}}})", "{{queue}}"),
                (f"max by (queue) (celeriac_queue_slots{{{QUEUE}}})", "{{queue}}: slots"),
            ),
            lines(
                "Waiting for other tasks, and unconfirmed",
                (f"sum(celeriac_tasks_blocked{{{JOB}}})", "blocked"),
                (f"sum(celeriac_tasks_unconfirmed{{{JOB}}})", "unconfirmed"),
            ),
        ],
    )
    yield (
        "Failures",
        [
            lines(
                "Failed tasks by reason",
                (f'sum by (reason) (increase(celeriac_task_ends_total{{{QUEUE},state="failed"}}{RATE}))', "{{reason}}"),
                stacked=True,
            ),
            lines(
                "Retries by reason",
                (f"sum by (reason) (increase(celeriac_task_retries_total{{{QUEUE}}}{RATE}))", "{{reason}}"),
                stacked=True,
            ),
            lines(
                "Losses",
                (f"sum by (queue) (increase(celeriac_tasks_lost_total{{{QUEUE}}}{RATE}))", "tasks of {{queue}}"),
                (f"max(increase(celeriac_workers_died_total{{{JOB}}}{RATE}))", "workers"),
                (f"sum(increase(celeriac_late_results_total{{{JOB}}}{RATE}))", "late results"),
            ),
        ],
    )
    yield (
        "Times",
        [
            heatmap("Waiting in the queue", "celeriac_task_wait_seconds"),
            heatmap("From the broker to the start", "celeriac_task_start_seconds"),
            heatmap("Running", "celeriac_task_run_seconds"),
            quantiles("Waiting in the queue", "celeriac_task_wait_seconds", QUEUE),
            quantiles("From the broker to the start", "celeriac_task_start_seconds", QUEUE),
            quantiles("Running", "celeriac_task_run_seconds", QUEUE, by="le, queue"),
        ],
    )
    yield (
        "Workers",
        [
            lines("Workers by state", (f"max by (state) (celeriac_workers{{{JOB}}})", "{{state}}"), stacked=True),
            lines(
                "Tasks of each worker",
                (f"celeriac_worker_running{{{JOB}}}", "{{instance}}"),
                (f"celeriac_worker_concurrency{{{JOB}}}", "{{instance}}: at most"),
            ),
            lines("Age of the leases", (f"celeriac_worker_lease_age_seconds{{{JOB}}}", "{{instance}}"), unit="s"),
            lines(
                "Ends by reason, per second",
                (f"sum by (reason) (rate(celeriac_worker_ends_total{{{JOB}}}{RATE}))", "{{reason}}"),
                stacked=True,
            ),
            lines(
                "Messages that were not run",
                (f"sum(increase(celeriac_worker_dropped_total{{{JOB}}}{RATE}))", "dropped: run elsewhere"),
                (f"sum(increase(celeriac_worker_returned_total{{{JOB}}}{RATE}))", "returned"),
                (f"sum(increase(celeriac_worker_refused_total{{{JOB}}}{RATE}))", "refused"),
            ),
            lines("Memory", (f"process_resident_memory_bytes{{{JOB}}}", "{{instance}}"), unit="bytes"),
        ],
    )
    yield (
        "Executors and servers",
        [
            lines(
                "Available (1) or not (0)",
                available("broker", "celeriac_broker_available"),
                available("result backend", "celeriac_backend_available"),
                available("ledger", "celeriac_ledger_available"),
            ),
            lines(
                "Heartbeat, 99 % are shorter",
                *(
                    (f"histogram_quantile(0.99, sum by (le) (rate({metric}_bucket{{{JOB}}}{RATE})))", title)
                    for metric, title in (
                        ("celeriac_heartbeat_seconds", "heartbeat"),
                        ("celeriac_sync_seconds", "applying results"),
                        ("celeriac_publish_seconds", "sending"),
                    )
                ),
                unit="s",
            ),
            quantiles("From the end of a command to its event", "celeriac_result_delay_seconds", JOB),
            lines("Age of the heartbeat", (f"celeriac_heartbeat_age_seconds{{{JOB}}}", "{{instance}}"), unit="s"),
        ],
    )


def placed() -> Iterator[Panel]:
    """Yield all panels with their numbers and places."""
    numbers, y = count(1), 0
    for title, panels in rows():
        yield {"id": next(numbers), "type": "row", "title": title, "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1}}
        x, y, height = 0, y + 1, 0
        for each in panels:
            place = each["gridPos"]
            if x + place["w"] > WIDTH:
                x, y = 0, y + height
            height = place["h"]
            yield {"id": next(numbers), **each, "gridPos": {"x": x, "y": y, **place}}
            x += place["w"]
        y += height


def variable(name: str, label: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
        "sort": 1,
    }


def dashboard() -> str:
    """Return the dashboard as JSON."""
    variables = [
        {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
        variable("job", "Job", 'label_values({__name__=~"celeriac_slots_open|celeriac_worker_concurrency"}, job)'),
        variable("queue", "Queue", "label_values(celeriac_tasks_waiting, queue)"),
    ]
    content = {
        "title": "Celeriac",
        "uid": "celeriac",
        "tags": ["celeriac", "celery"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": variables},
        "panels": list(placed()),
    }
    return json.dumps(content, indent=1) + "\n"


def main(arguments: list[str]) -> int:
    if "--check" not in arguments:
        FILE.write_text(dashboard())
    elif not FILE.exists() or FILE.read_text() != dashboard():
        print(f"{FILE} is out of date: run tools/dashboard.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
