"""Generate docs/metrics.md from the table of metrics.

    python tools/metrics.py [--check]

With `--check`, fail if the page is out of date.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from celeriac.telemetry.metrics import METRICS, Metric

PAGE = Path(__file__).parent.parent / "docs" / "metrics.md"

INTRODUCTION = """# Metrics

`make docs` generates this page from `src/celeriac/telemetry/metrics.py`; `make check` compares them.

Each name below has the prefix `celeriac_` in Prometheus, and `celeriac.` in StatsD and OpenTelemetry. All times are in
seconds. No label has the key of a task, so the number of label values is bounded. Of one metric, at most 500 label
values are shown; the others are added up under `other`.

A worker has the metrics that begin with `worker_`, and a process with `--listen` those that begin with `web_`. An
executor (`celeriac serve`, or a program with a `CeleryExecutor`) has all others. Reading them takes no time of a
heartbeat: the reader's thread copies the numbers.
[Monitoring](monitoring.md) says how to collect them.
"""


def page() -> str:
    return "\n".join([INTRODUCTION, *table(), ""])


def table() -> Iterator[str]:
    yield "| name | kind | labels | meaning |"
    yield "|---|---|---|---|"
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        yield f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help}{bounds(metric)} |"


def bounds(metric: Metric) -> str:
    if not metric.bounds:
        return ""
    return f" Buckets: {', '.join(f'{bound:g}' for bound in metric.bounds)}."


def main() -> None:
    if "--check" not in sys.argv:
        PAGE.write_text(page())
    elif not PAGE.exists() or PAGE.read_text() != page():
        sys.exit("docs/metrics.md does not match the table of metrics; run `make docs`")


if __name__ == "__main__":
    main()
