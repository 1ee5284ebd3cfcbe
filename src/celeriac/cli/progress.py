"""The progress of a run: a bar on a terminal; without a terminal, a line every few seconds.

Failures ─┬─ ProgressLines
          └─ ProgressBar
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

from celeriac.cli.formatting import count, failure_line, format_seconds, on_one_line, stderr_tail
from celeriac.cli.messages import erase_line, print_line
from celeriac.cli.status_line import PLAIN_INTERVAL
from celeriac.executor.executor import CeleryExecutor
from celeriac.runs.run import Totals
from celeriac.task.event import Event
from celeriac.task.state import State
from celeriac.task.task import Command, TaskKey

if TYPE_CHECKING:
    from rich.progress import Progress

RATE_WINDOW = 10.0  # seconds over which the rate is measured
MAX_FAILURES_WITH_TAIL = 20
MAX_FAILURES_SHOWN = 200


def progress_for(*, quiet: bool) -> Failures:
    """Return the display that fits standard error."""
    if quiet:
        return Failures()
    return ProgressBar() if sys.stderr.isatty() else ProgressLines()


class Failures:
    """Print failures when they happen, and the effect of each interrupt."""

    records_all = False

    is_output_shown = False
    """Whether something else shows the output of each task."""

    def __init__(self) -> None:
        self._failures = 0

    def on_queued(self, jobs: Iterable[tuple[TaskKey, Command]]) -> None:
        """Nothing to print."""

    def clear(self) -> None:
        """Remove what is shown at the cursor."""

    def on_event(self, event: Event, command: Command | None) -> None:
        if event.state is not State.FAILED:
            return
        self._failures += 1
        if self._failures > MAX_FAILURES_SHOWN:
            return
        self.print(f"failed: {failure_line(event, command)}")
        if self._failures <= MAX_FAILURES_WITH_TAIL and not self.is_output_shown:
            for line in stderr_tail(event):
                self.print(f"    {line}")
        if self._failures == MAX_FAILURES_SHOWN:
            self.print("further failures are counted, but not shown here")

    def on_tick(self, totals: Totals, executor: CeleryExecutor) -> None:
        """Nothing to print."""

    def on_interrupt(self, totals: Totals, executor: CeleryExecutor) -> None:
        if totals.interrupts == 1:
            running = executor.stats().tasks_running
            self.print(f"interrupted: starting nothing more, {running} still running; interrupt again to end them")
        elif totals.interrupts == 2:
            self.print(f"ending {count(executor.tasks_in_flight, 'running task')}; interrupt again to stop at once")
        else:
            self.print("stopping at once")

    def on_revoke(self, waiting: int) -> None:
        self.print(f"writing down {count(waiting, 'task')} that never ran")

    def print(self, line: str) -> None:
        print_line(line)


class ProgressLines(Failures):
    """Print a line every `PLAIN_INTERVAL`."""

    def __init__(self) -> None:
        super().__init__()
        self._rate = Rate()
        self._next_line = time.monotonic() + PLAIN_INTERVAL

    def on_tick(self, totals: Totals, executor: CeleryExecutor) -> None:
        rate = self._rate.update(totals.ran)
        if totals.suspended:
            self.print(suspension_line(totals, executor))
            return
        if (now := time.monotonic()) >= self._next_line and totals.ended is None:
            self._next_line = now + PLAIN_INTERVAL
            self.print(progress_line(totals, executor, rate))


class ProgressBar(Failures):
    """Draw a bar at every tick. Failures scroll by above it."""

    def __init__(self) -> None:
        super().__init__()
        self._rate = Rate()
        self._progress: Progress | None = None
        self._is_drawn = False
        """Whether the bar is at the cursor."""

    def on_tick(self, totals: Totals, executor: CeleryExecutor) -> None:
        rate = self._rate.update(totals.ran)
        if totals.suspended:
            self._suspend(totals, executor)
            return
        if self._progress is None:
            self._progress = new_bar()
            self._progress.add_task("")
            self._progress.start()
        text = progress_line(totals, executor, rate)
        self._progress.update(self._progress.task_ids[0], total=totals.queued, completed=totals.done, description=text)
        self._progress.refresh()
        self._is_drawn = True
        if totals.ended is not None:
            self._progress.stop()
            self._is_drawn = False

    def _suspend(self, totals: Totals, executor: CeleryExecutor) -> None:
        """Leave the terminal to the shell, with a cursor. The next tick draws another bar."""
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._is_drawn = None, False
        self.print(suspension_line(totals, executor))

    def clear(self) -> None:
        if self._is_drawn:
            erase_line()
            self._is_drawn = False

    def print(self, line: str) -> None:
        if self._progress is None:
            super().print(line)
        else:
            self._progress.console.print(on_one_line(line), markup=False, emoji=False, highlight=False, soft_wrap=True)
            self._is_drawn = True


class Rate:
    """Tasks per second over the last `RATE_WINDOW`."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])

    def update(self, done: int) -> float:
        now = time.monotonic()
        self._samples.append((now, done))
        while len(self._samples) > 2 and now - self._samples[0][0] > RATE_WINDOW:
            self._samples.popleft()
        start, done_then = self._samples[0]
        return (done - done_then) / (now - start) if now > start else 0.0


def progress_line(totals: Totals, executor: CeleryExecutor, rate: float) -> str:
    waiting = executor.tasks_waiting
    started = "in flight" if totals.on_workers else "running"
    text = f"{totals.done:,}/{totals.queued:,} done, {executor.tasks_in_flight:,} {started}, {waiting:,} waiting"
    text += f", {len(totals.failed):,} failed" + (f", {totals.skipped:,} skipped" if totals.skipped else "")
    text += f", {rate:,.1f}/s"
    if held := executor.adjustments.why_held():
        return f"{text}, {held}"
    left = totals.queued - totals.done
    return text + (f", {format_seconds(left / rate)} left" if rate and left else "")


def suspension_line(totals: Totals, executor: CeleryExecutor) -> str:
    if totals.on_workers:
        return f"suspended: sending nothing more; {count(executor.tasks_in_flight, 'task')} on workers go on"
    running = executor.stats().tasks_running
    return f"suspended, with {count(running, 'running command')}; fg or bg goes on"


def new_bar() -> Progress:
    from rich.console import Console  # imported late: a run without a terminal does not need it
    from rich.progress import BarColumn, Progress, TextColumn

    columns = [BarColumn(bar_width=20), TextColumn("{task.description}", markup=False)]
    return Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True)
