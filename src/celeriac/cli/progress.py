"""How a run looks while it goes: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import TYPE_CHECKING

import click

from celeriac.cli.formatting import failure, last_words, seconds
from celeriac.executor.executor import CeleryExecutor
from celeriac.runs.run import Totals, Watcher
from celeriac.task.event import Event
from celeriac.task.state import State

if TYPE_CHECKING:
    from rich.progress import Progress

PLAIN_INTERVAL = 5.0  # seconds between two plain lines
RATE_WINDOW = 10.0  # seconds over which the rate is taken
FAILURES_WITH_LAST_WORDS = 20
FAILURES_SHOWN = 200


def progress_for(quiet: bool) -> Watcher:
    if quiet:
        return Failures()
    return Bar() if sys.stderr.isatty() else Lines()


class Failures:
    """Failures as they happen, and what an interrupt does."""

    def __init__(self) -> None:
        self._failures = 0

    def on_event(self, event: Event) -> None:
        if event.state is not State.FAILED:
            return
        self._failures += 1
        if self._failures > FAILURES_SHOWN:
            return
        self.say(f"failed: {failure(event)}")
        if self._failures <= FAILURES_WITH_LAST_WORDS:
            for line in last_words(event):
                self.say(f"    {line}")
        if self._failures == FAILURES_SHOWN:
            self.say("further failures are counted, and not shown here")

    def on_tick(self, totals: Totals, executor: CeleryExecutor) -> None:
        """Nothing to show."""

    def on_interrupt(self, totals: Totals, executor: CeleryExecutor) -> None:
        if totals.interrupts == 1:
            running = executor.stats().tasks_running
            self.say(f"interrupted: starting nothing more, {running} still running; once more ends them")
        elif totals.interrupts == 2:
            self.say(f"ending the {executor.tasks_in_flight} that run")
        else:
            self.say("waiting for nothing more")

    def say(self, line: str) -> None:
        click.echo(line, err=True)


class Lines(Failures):
    """A plain line every few seconds."""

    def __init__(self) -> None:
        super().__init__()
        self._rate = Rate()
        self._next = time.monotonic() + PLAIN_INTERVAL

    def on_tick(self, totals: Totals, executor: CeleryExecutor) -> None:
        rate = self._rate.update(totals.ran)
        if (now := time.monotonic()) >= self._next and totals.ended is None:
            self._next = now + PLAIN_INTERVAL
            self.say(standing(totals, executor, rate))


class Bar(Failures):
    """A bar that is drawn at every tick, with failures scrolling by above it."""

    def __init__(self) -> None:
        super().__init__()
        self._rate = Rate()
        self._progress: Progress | None = None

    def on_tick(self, totals: Totals, executor: CeleryExecutor) -> None:
        rate = self._rate.update(totals.ran)
        if self._progress is None:
            self._progress = new_bar()
            self._progress.add_task("")
            self._progress.start()
        text = standing(totals, executor, rate)
        self._progress.update(self._progress.task_ids[0], total=totals.queued, completed=totals.done, description=text)
        self._progress.refresh()
        if totals.ended is not None:
            self._progress.stop()

    def say(self, line: str) -> None:
        if self._progress is None:
            super().say(line)
        else:
            self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)


class Rate:
    """Tasks a second over the last seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])

    def update(self, done: int) -> float:
        now = time.monotonic()
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[0][0] > RATE_WINDOW:
            self._seen.popleft()
        then, before = self._seen[0]
        return (done - before) / (now - then) if now > then else 0.0


def standing(totals: Totals, executor: CeleryExecutor, rate: float) -> str:
    waiting = executor.tasks_waiting
    words = f"{totals.done:,}/{totals.queued:,} done, {executor.tasks_in_flight:,} running, {waiting:,} waiting"
    words += f", {len(totals.failed):,} failed" + (f", {totals.skipped:,} skipped" if totals.skipped else "")
    words += f", {rate:,.1f}/s"
    left = totals.queued - totals.done
    return words + (f", {seconds(left / rate)} left" if rate and left else "")


def new_bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = [BarColumn(bar_width=20), TextColumn("{task.description}", markup=False)]
    return Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True)
