"""The page of a report: the template with its values.

The template escapes every text, and the page has a policy that forbids scripts and the network.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from celeriac import __version__
from celeriac.ledger.views import RunState, RunView
from celeriac.report.chart import CHART_HEIGHT, charts_of
from celeriac.report.gathered import Bar, Gathered, Queue
from celeriac.task.state import State
from celeriac.task.task import Command
from celeriac.values_as_text import count, format_seconds, format_time, shorten_command

FOLDER = Path(__file__).parent
POLICY = "default-src 'none'; style-src 'sha256-{}'; base-uri 'none'; form-action 'none'"
GENERATOR = b'<meta name="generator" content="celeriac report">'
"""A file with this near its beginning is a report, and may be overwritten by another."""

MAX_TEXT = 2_000  # characters
MAX_LINES = 2_000  # characters of the last lines of one stream
TERMINAL_CODE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
LEGEND = [
    ("ok", "succeeded"),
    ("bad", "failed"),
    ("again", "followed by another attempt"),
    ("now", "running"),
    ("cut", "revoked"),
]
REASONS = {
    "exit_code": "exit code",
    "not_started": "could not be started",
    "output": "output could not be written",
    "lost": "worker lost",
    "poison": "lost too many workers",
    "refused": "message refused",
    "publish_error": "could not be sent",
    "worker_error": "error of the worker",
    "caller": "set by the caller",
    "deadline": "not started by its deadline",
    "need_failed": "a task that it needs failed",
}
MEGABYTE = 1_000_000


@dataclass(frozen=True, slots=True)
class Headline:
    """How the run stands."""

    kind: str
    label: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Tile:
    """A number of the summary."""

    value: str
    label: str
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Share:
    """A part of all tasks, in percent."""

    kind: str
    label: str
    left: float
    part: float


def page_of(run: RunView, gathered: Gathered) -> Iterator[str]:
    """Yield the text of the page, piece by piece."""
    made, charts = environment(), charts_of(gathered)
    css = made.get_template("page.css").render()
    stream = made.get_template("page.html").stream(
        run=run,
        gathered=gathered,
        charts=charts,
        policy=POLICY.format(b64encode(sha256(css.encode()).digest()).decode()),
        state=headline_of(run, gathered),
        facts=facts_of(run),
        tiles=tiles_of(run, gathered),
        shares=shares_of(gathered),
        queues=queues_of(gathered),
        timeline_note=timeline_note(gathered, has_bars=charts.has_bars, has_gaps=bool(charts.axis.gaps)),
        legend=LEGEND,
        chart_height=int(CHART_HEIGHT),
        version=__version__,
        zone=zone_of(gathered.now),
    )
    stream.enable_buffering(500)
    return stream


def environment() -> Environment:
    """Return the environment of the template. It escapes each value."""
    made = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "text": visible,
        "lines": last_lines,
        "command": command_text,
        "seconds": format_seconds,
        "time": format_time,
        "number": count,
        "percent": lambda part: f"{part:.1f} %",
        "place": lambda place: f"{place:.2f}".rstrip("0").rstrip("."),
        "level": lambda level: f"{level:,.0f}" if level >= 9.95 else f"{level:.1f}".removesuffix(".0"),
        "memory": lambda size: "" if size is None else f"{size / MEGABYTE:,.0f} MB",
        "reason": lambda reason: REASONS.get(reason, reason),
        "bar_title": bar_title,
    }
    return made


# — texts of others —


def visible(text: Any, length: int = MAX_TEXT) -> str:
    """Return a text with escapes for characters that hide or turn others, shortened. The template escapes markup."""
    shown = TERMINAL_CODE.sub("", str(text)[: 2 * length])
    shown = "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in shown)
    return shown if len(shown) <= length else f"{shown[: length - 1]}…"


def last_lines(text: str) -> str:
    """Return the end of an output."""
    shown = visible(text[-MAX_LINES:].replace("\r\n", "\n").replace("\r", "\n"), 2 * MAX_LINES).rstrip("\n")
    return shown if len(text) <= MAX_LINES else f"…{shown}"


def command_text(command: Command | None, length: int) -> str:
    """Return a command as one line."""
    return "" if command is None else visible(shorten_command(command, length), length)


def bar_title(bar: Bar) -> str:
    """Return what is shown when the mouse is over a bar."""
    attempt = bar.attempt
    number = f", attempt {attempt.number}" if attempt.number > 1 or attempt.state is State.WAITING else ""
    state = "failed, and was followed by another attempt" if attempt.state is State.WAITING else attempt.state.value
    ran = format_seconds(bar.ended - bar.began)
    return f"{visible(attempt.key, 80)}{number}: {state}, {ran}, from {format_time(bar.began)}"


# — the summary —


def headline_of(run: RunView, gathered: Gathered) -> Headline:
    """Return how the run stands."""
    so_far = f"It has not ended: this is how it stood at {format_time(gathered.now)}."
    match run.state:
        case RunState.RUNNING:
            return Headline("now", "running", f"{so_far} {run.owner} runs it.")
        case RunState.SUBMITTED:
            return Headline("now", "waits for a service", so_far)
        case RunState.INTERRUPTED:
            note = "It was interrupted, and no process runs it: celeriac retry goes on with it."
            return Headline("cut", "interrupted", note)
    unsuccessful = sum(number for state, number in gathered.states.items() if state is not State.SUCCESS)
    if not unsuccessful:
        return Headline("ok", "all tasks succeeded" if gathered.states else "no tasks")
    failed = gathered.states[State.FAILED]
    return Headline(
        "bad", f"{count(failed, 'task')} failed" if failed else f"{count(unsuccessful, 'task')} did not run"
    )


def facts_of(run: RunView) -> list[tuple[str, str]]:
    """Return what is known of the run as a whole."""
    facts = [("began", format_time(run.created))]
    if run.ended is not None:
        facts.append(("ended", format_time(run.ended)))
    facts.append(("took", format_seconds(run.duration)))
    if run.source is not None:
        facts.append(("file", run.source))
    if run.output is not None:
        facts.append(("output", run.output))
    return facts


def tiles_of(run: RunView, gathered: Gathered) -> list[Tile]:
    """Return the numbers of the summary."""
    states = gathered.states
    in_flight = states[State.PUBLISHING] + states[State.QUEUED] + states[State.RUNNING]
    waiting = states[State.WAITING] + run.unrecorded
    revoked = states[State.REVOKED] - gathered.never_ran
    optional = (
        (states[State.FAILED], "failed", "bad"),
        (revoked, "revoked", ""),
        (gathered.never_ran, "never ran", ""),
        (states[State.SKIPPED], "skipped", ""),
        (in_flight, "in flight", ""),
        (waiting, "waiting", ""),
        (gathered.retries, "retries", ""),
        (gathered.lost, "lost attempts", ""),
    )
    tiles = [
        Tile(f"{states.total() + run.unrecorded:,}", "tasks"),
        Tile(f"{states[State.SUCCESS]:,}", "succeeded", "ok"),
        *(Tile(f"{number:,}", label, kind) for number, label, kind in optional if number),
    ]
    if gathered.all_attempts:
        tiles.append(Tile(format_seconds(gathered.durations.sum), "run time of all attempts"))
    return tiles


def shares_of(gathered: Gathered) -> list[Share]:
    """Return how the tasks stand, as parts of one bar."""
    states, shares, left = gathered.states, list[Share](), 0.0
    ended = (State.SUCCESS, State.FAILED, State.REVOKED, State.SKIPPED)
    numbers = [
        ("ok", "succeeded", states[State.SUCCESS]),
        ("bad", "failed", states[State.FAILED]),
        ("cut", "revoked or skipped", states[State.REVOKED] + states[State.SKIPPED]),
        ("left", "not ended", states.total() - sum(states[state] for state in ended)),
    ]
    for kind, label, number in numbers:
        if number:
            part = 100.0 * number / states.total()
            shares.append(Share(kind, label, left, part))
            left += part
    return shares


def queues_of(gathered: Gathered) -> list[Queue]:
    """Return the queues, the one with the most tasks first."""
    return sorted(gathered.queues.values(), key=lambda queue: (-queue.tasks, queue.name))


def timeline_note(gathered: Gathered, *, has_bars: bool, has_gaps: bool) -> str:
    """Return how to read the timeline."""
    attempts = count(gathered.all_attempts, "attempt")
    note = (
        f"{attempts} on {count(len(gathered.hosts), 'host')}."
        if has_bars
        else f"{attempts} on {count(len(gathered.hosts), 'host')}: too many to be drawn one by one."
    )
    return f"{note} Dashed lines are times in which nothing ran." if has_gaps else note


def zone_of(when: float) -> str:
    """Return the name of the local time zone, with its distance from UTC."""
    return datetime.fromtimestamp(when, tz=UTC).astimezone().strftime("%Z (UTC%z)")
