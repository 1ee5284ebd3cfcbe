"""`celeriac status --watch`: the overview on the alternate screen of a terminal, or one line for each change."""

from __future__ import annotations

import json
import os
import select
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict

import click
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from celeriac.cli.formatting import format_time, on_one_line
from celeriac.cli.options import interrupt
from celeriac.cli.overview_tables import GAP, Section, crop, fitted, sections_of, shares
from celeriac.cli.standard_streams import check_readers
from celeriac.cli.tables import fill
from celeriac.runs.overview import Overview, OverviewReader
from celeriac.worker.signals import signals_to

TICK = 0.1  # seconds between two looks at the keyboard and at the size of the terminal
ROOMY = 12  # lines from which on there are empty lines between the tables
FIRST_FIELDS = ("waiting", "slots", "in use", "state", "queues", "tasks", "in flight", "succeeded", "failed")
"""The columns that a line about a change shows."""


def watch(reader: OverviewReader, *, interval: float, as_json: bool) -> None:
    """Show the overview until Ctrl-C."""
    console = Console(markup=False, emoji=False, highlight=False)
    with suppress(KeyboardInterrupt), signals_to(interrupt):
        if as_json:
            watch_lines(reader, interval, JsonLines().changes)
        elif not console.is_terminal or console.is_dumb_terminal:
            watch_lines(reader, interval, ChangedLines().changes)
        else:
            watch_screen(reader, interval, console)


# — without a terminal —


def watch_lines(reader: OverviewReader, interval: float, changes: Callable[[Overview], list[str]]) -> None:
    """Print what has changed, each time that something has."""
    while True:
        for line in changes(reader.read()):
            click.echo(line)
        sys.stdout.flush()
        check_readers(sys.stdout)
        time.sleep(interval)  # neither leases nor a ledger report changes


class ChangedLines:
    """One line for each queue, worker, run and problem that is new, has changed or has gone."""

    def __init__(self) -> None:
        self._before: dict[str, str] = {}

    def changes(self, overview: Overview) -> list[str]:
        now = {f"problem: {on_one_line(problem)}": "" for problem in overview.problems}
        for section in sections_of(overview):
            now |= facts_of(section)
        if overview.problems:  # what is not known now is as it was
            now = {**self._before_without_problems(), **now}
        changed = [f"{name}{facts}" for name, facts in now.items() if self._before.get(name) != facts]
        changed += [f"{name}: gone" for name in self._before if name not in now]
        self._before = now
        return [f"{format_time(overview.when)}{GAP}{line}" for line in changed]

    def _before_without_problems(self) -> dict[str, str]:
        return {name: facts for name, facts in self._before.items() if not name.startswith("problem: ")}


def facts_of(section: Section) -> dict[str, str]:
    """Return the rows of a table as text, without what changes with time alone, by the name of each."""
    headings = [column.heading for column in section.columns]
    facts = {}
    for row in section.rows:
        cells = dict(zip(headings[1:], row[1:], strict=True))
        shown = [f"{name} {cells[name]}" for name in FIRST_FIELDS if cells.get(name)]
        facts[f"{headings[0]} {row[0]}"] = GAP + ", ".join(shown)
    return facts


class JsonLines:
    """The overview as one JSON object, each time that it has changed in more than its ages."""

    def __init__(self) -> None:
        self._before: object = None

    def changes(self, overview: Overview) -> list[str]:
        from celeriac.ledger.fields import run_fields

        status = {} if overview.status is None else asdict(overview.status)
        runs = None if overview.runs is None else [run_fields(line.view) for line in overview.runs]
        fields = {"problems": overview.problems, **status, **({} if runs is None else {"runs": runs})}
        ageless = json.dumps(without_ages(fields))
        if ageless == self._before:
            return []
        self._before = ageless
        return [json.dumps({"at": overview.when, **fields})]


AGES = ("oldest", "heartbeat_age", "duration")


def without_ages(value: object) -> object:
    if isinstance(value, dict):
        return {name: without_ages(each) for name, each in value.items() if name not in AGES}
    return [without_ages(each) for each in value] if isinstance(value, list | tuple) else value


# — on a terminal —


def watch_screen(reader: OverviewReader, interval: float, console: Console) -> None:
    """Draw the overview on the alternate screen until Ctrl-C or q."""
    with keyboard() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        live.update(Group(Text("reading …")), refresh=True)
        while True:
            overview, drawn_size = reader.read(), (0, 0)
            next_read = time.monotonic() + interval
            while time.monotonic() < next_read:
                if console.size != drawn_size:
                    drawn_size = console.size
                    live.update(screen(overview, interval, *drawn_size), refresh=True)
                if pressed(min(TICK, max(0.0, next_read - time.monotonic()))):
                    return


@contextmanager
def keyboard() -> Iterator[Callable[[float], bool]]:
    """Turn off the echo of keys, which would spoil the screen. Yield a function that waits for a key that quits."""
    descriptor = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
    if descriptor is None:
        yield no_key
        return
    before = termios.tcgetattr(descriptor)
    quiet = termios.tcgetattr(descriptor)
    quiet[3] &= ~(termios.ECHO | termios.ICANON)
    quiet[6][termios.VSUSP] = b"\0"  # a stopped process would leave the alternate screen
    termios.tcsetattr(descriptor, termios.TCSADRAIN, quiet)
    try:
        yield lambda seconds: quits(descriptor, seconds)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def no_key(seconds: float) -> bool:
    time.sleep(seconds)  # there is no terminal to wait for
    return False


def quits(descriptor: int, seconds: float) -> bool:
    """Wait for a key. Return whether it quits, or the terminal has gone."""
    if not select.select([descriptor], [], [], seconds)[0]:
        return False
    try:
        keys = os.read(descriptor, 64)
    except OSError:
        return True
    return not keys or keys in (b"q", b"Q")


def screen(overview: Overview, interval: float, width: int, height: int) -> Group:
    """Return the lines that fill a terminal of this size."""
    return Group(*(Text(text, style, no_wrap=True) for text, style in screen_lines(overview, interval, width, height)))


def screen_lines(overview: Overview, interval: float, width: int, height: int) -> list[tuple[str, str]]:
    """Return the lines of the screen, each with its style."""
    time_of_day = format_time(overview.when).partition(" ")[2]
    head = f"celeriac{GAP}{time_of_day}{GAP}every {interval:g} s{GAP}q quits"
    lines = [(crop(head, width), "dim")]
    for problem in overview.problems:
        lines += [(line, "bold red") for line in fill(on_one_line(problem).split(" "), width, gap=" ")]
    sections = sections_of(overview)
    needed = [max(1, len(section.rows) + 1 + len(section.warnings)) for section in sections]
    room = height - len(lines)
    gaps = [("", "")] if room > ROOMY else []
    for section, share in zip(sections, shares(needed, room - len(gaps) * len(sections)), strict=True):
        first, *others = fitted(section, width, share)
        lines += [*gaps, (first, "bold" if section.rows else "dim")]
        lines += [(line, "yellow" if line in section.warnings else "") for line in others]
    return lines[:height]
