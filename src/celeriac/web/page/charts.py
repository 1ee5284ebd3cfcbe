"""The ends of tasks over time, for a graph: values in, values out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from celeriac.web.statistics import RunStatistics, step_for


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """How many tasks ended per second, step by step. The three lists have the same length."""

    step: float
    times: Sequence[float]
    succeeded: Sequence[float]
    failed: Sequence[float]

    @property
    def data(self) -> str:
        """The columns as JSON, for the script."""
        return json.dumps([self.times, self.succeeded, self.failed])

    @property
    def text(self) -> str:
        """The same for people who do not see the graph."""
        top = max((a + b for a, b in zip(self.succeeded, self.failed, strict=True)), default=0.0)
        failed = round(sum(self.failed) * self.step)
        return f"Tasks that ended per second, at most {top:,.1f}; {failed:,} failed"

    def last_rate(self, seconds: float) -> float:
        """Return how many tasks ended per second in the last seconds of the graph."""
        steps = max(1, round(seconds / self.step))
        return (sum(self.succeeded[-steps:]) + sum(self.failed[-steps:])) / min(steps, len(self.times))


def chart_of(statistics: Iterable[RunStatistics], begin: float, end: float) -> Chart | None:
    """Return the ends of all these runs in one graph. Return None if no task ended in that time.

    Each run has steps of its own: what ended in one of its steps is spread over the steps of the graph.
    """
    step = step_for(max(1.0, end - begin))
    first = int(begin // step)
    number = max(2, int(end // step) - first + 1)
    succeeded, failed = [0.0] * number, [0.0] * number
    for run in statistics:
        for ends in run.ends:
            spread(succeeded, ends.succeeded, ends.at / step - first, run.step / step)
            spread(failed, ends.failed + ends.other, ends.at / step - first, run.step / step)
    if not any(succeeded) and not any(failed):
        return None
    times = [(first + index) * step for index in range(number)]
    return Chart(step=step, times=times, succeeded=per_second(succeeded, step), failed=per_second(failed, step))


def spread(buckets: list[float], amount: float, begin: float, width: float) -> None:
    """Add an amount to the buckets between two positions, to each as much as it covers."""
    if not amount:
        return
    index = max(0, int(begin))
    while index < len(buckets) and index < begin + width:
        covered = min(index + 1, begin + width) - max(index, begin)
        buckets[index] += amount * covered / width
        index += 1


def per_second(buckets: Sequence[float], step: float) -> list[float]:
    return [round(amount / step, 3) for amount in buckets]
