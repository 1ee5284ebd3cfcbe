"""Measure `airflow celeriac worker` beside Airflow's own worker, in turn in one deployment: CPU a task, idle memory.

`airflow_deployment` says what is counted.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

from bench.player import INCUMBENTS, Cost, players
from bench.table import Row, at_most

KINDS = {"ours": "ours", "incumbent": "upstream"}
Costs = dict[str, list[Cost]]


def workers(rounds: int) -> list[Row]:
    costs: Costs = {party: [] for party in KINDS}
    with players() as new:
        deployment = new(INCUMBENTS, "bench.airflow_deployment")
        try:
            for _ in range(rounds):
                for party, kind in KINDS.items():
                    costs[party].append(deployment.ask("measure", worker=kind))
        finally:
            deployment.finish()
    return [
        row("Airflow worker: CPU a no-op task, of the worker and all its processes", costs, "cpu", shown_cpu),
        row(
            "Airflow worker: memory at idle, pages shared between its processes counted once",
            costs,
            "pss",
            shown_memory,
        ),
    ]


def row(what: str, costs: Costs, figure: str, shown: Callable[[list[Cost]], str]) -> Row:
    ratios = [mine[figure] / rival[figure] for mine, rival in zip(costs["ours"], costs["incumbent"], strict=True)]
    ratio, scatter = statistics.median(ratios), ", ".join(f"{one:.2f}" for one in ratios)
    mine, rival = (shown(costs[party]) for party in KINDS)
    return Row(what, mine, rival, f"{ratio:.2f} ({scatter})", "at most 1.0", at_most(ratio, 1))


def shown_cpu(costs: list[Cost]) -> str:
    return f"{statistics.median(cost['cpu'] for cost in costs) * 1e3:,.0f} ms"


def shown_memory(costs: list[Cost]) -> str:
    pss, rss, processes = (statistics.median(cost[name] for cost in costs) for name in ("pss", "rss", "processes"))
    return f"{pss:,.0f} MiB in {processes:.0f} processes (RSS {rss:,.0f})"
