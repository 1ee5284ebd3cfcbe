"""`celeriac set`: change the limits of a live run, or the priority of a waiting task."""

from __future__ import annotations

import json
from typing import Any

import click
from msgspec import Struct, field
from msgspec.structs import replace

from celeriac.cli.completion import complete_run
from celeriac.cli.control_options import exit_on_error
from celeriac.cli.formatting import on_one_line
from celeriac.cli.help_sections import SectionedCommand
from celeriac.cli.options import check_text, connection_options, json_option
from celeriac.cli.pause import ledger_of_run_option
from celeriac.config.executor_config import SHARED_LIMITS, Config
from celeriac.config.settings import Settings, read_settings
from celeriac.errors import InvalidConfig
from celeriac.task.task import MAX_PRIORITY

NAMES = ("priority", "parallelism", "queue_limits", *SHARED_LIMITS)
NO_LIMIT = "none"


class Changes(Struct, kw_only=True):
    """Changes of a run or of a task."""

    key: str | None = None
    priority: int | None = None
    parallelism: int | None = None
    queue_limits: dict[str, int | None] = field(default_factory=dict)
    shared_limits: dict[str, dict[str, int | str | None]] = field(default_factory=dict)


@click.command("set", cls=SectionedCommand)
@click.argument("run", shell_complete=complete_run)
@click.argument("words", nargs=-1, required=True, metavar="[KEY] CHANGE...")
@ledger_of_run_option
@connection_options
@json_option
@exit_on_error
def set_(
    run: str, words: tuple[str, ...], ledger: str | None, config: str | None, as_json: bool, **options: Any
) -> None:
    """Change a run while it runs.

    A CHANGE is parallelism=8 (the slots of the run), queue_limits=gpu=2,net=1 (the slots of single queues),
    concurrency_limits=db=3, concurrency_rates=db=10/m or queue_rates=net=5/s, or with the KEY of a waiting task
    priority=5 (a larger number is more urgent). "none" removes a limit: concurrency_limits=db=none.

    Tasks that run keep their slots. A limit with which a waiting task could never start is refused. The limits last
    until the process of the run ends; a priority is stored. Limits are those of a live `celeriac run`; the tasks of a
    submitted run have the limits of `celeriac serve`.

    Exit status: 0; 2 bad input, or a task that does not wait.
    """
    check_text("RUN, KEY", run, *words)
    changes = parse(words)
    settings = read_settings({**options, "ledger": ledger}, config=config)
    result = (
        change_priority(settings, run, changes) if changes.key is not None else change_limits(settings, run, changes)
    )
    if as_json:
        click.echo(json.dumps(result))
    else:
        shown = ", ".join(f"{name} {describe(value)}" for name, value in result.items() if name not in ("run", "key"))
        what = f"run {run!r}" if changes.key is None else f"task {changes.key!r} of run {run!r}"
        click.echo(on_one_line(f"{what}: {shown}"))


set = set_  # noqa: A001 - the name of the command


def describe(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{queue}={limit}" for queue, limit in value.items()) or NO_LIMIT
    return str(value)


def change_limits(settings: Settings, run: str, changes: Changes) -> dict[str, Any]:
    """Change limits. Raises `InvalidConfig` and `LedgerError`."""
    from celeriac.cli.owner_options import asked_by, owner_of_run  # imports SQLAlchemy

    owner = owner_of_run(settings, run, asked_by=asked_by("set"))
    reply = owner.change_limits(changes.parallelism, changes.queue_limits, changes.shared_limits)
    limits = {"parallelism": reply.parallelism, "queue_limits": dict(reply.queue_limits)}
    return {"run": run, **limits, **reply.shared_limits}


def change_priority(settings: Settings, run: str, changes: Changes) -> dict[str, Any]:
    """Change the priority of a task. Raises `InvalidConfig` and `LedgerError`."""
    from celeriac.cli.owner_options import asked_by, change_priority_of  # imports SQLAlchemy

    key, priority = str(changes.key), int(changes.priority or 0)
    if not change_priority_of(settings, run, key, priority, asked_by=asked_by("set")):
        raise InvalidConfig("priority", f"task {key!r} of run {run!r} does not wait", "name a task that waits")
    return {"run": run, "key": key, "priority": priority}


# — words —


def parse(words: tuple[str, ...]) -> Changes:
    """Return the changes. Raises `InvalidConfig`."""
    changes = Changes()
    for place, word in enumerate(words):
        name, _, value = word.partition("=")
        if name not in NAMES or "=" not in word:
            if place > 0:
                raise InvalidConfig("NAME=VALUE", f"{word!r} is none", f"the names are {', '.join(NAMES)}")
            changes.key = word
        elif name == "queue_limits":
            changes.queue_limits |= parse_limits(value)
        elif name in SHARED_LIMITS:
            changes.shared_limits.setdefault(name, {}).update(parse_shared_limits(name, value))
        elif name == "parallelism":
            changes.parallelism = parse_number(name, value, minimum=1)
        else:
            changes.priority = parse_number(name, value, minimum=-MAX_PRIORITY)
    check_together(changes)
    return changes


def check_together(changes: Changes) -> None:
    has_limits = changes.parallelism is not None or bool(changes.queue_limits or changes.shared_limits)
    if changes.key is None and changes.priority is not None:
        raise InvalidConfig("priority", "is that of one task", "give its KEY: celeriac set RUN KEY priority=N")
    if changes.key is not None and has_limits:
        raise InvalidConfig(f"KEY {changes.key!r}", "a limit is that of a run", "leave the KEY out")
    if changes.key is not None and changes.priority is None:
        raise InvalidConfig(f"KEY {changes.key!r}", "nothing is to be changed", "give priority=N")


def parse_limits(text: str) -> dict[str, int | None]:
    limits: dict[str, int | None] = {}
    for part in text.split(","):
        queue, separator, value = part.rpartition("=")
        if not separator or not queue:
            raise InvalidConfig("queue_limits", f"{part!r} is not a limit", "write QUEUE=N, for example gpu=2,net=1")
        limits[queue] = None if value == NO_LIMIT else parse_number(f"queue_limits of {queue}", value, minimum=1)
    return limits


def parse_shared_limits(name: str, text: str) -> dict[str, int | str | None]:
    """Return limits of keys or rates. Raises `InvalidConfig`."""
    limits: dict[str, int | str | None] = {}
    for part in text.split(","):
        subject, separator, value = part.rpartition("=")
        if not separator or not subject:
            example = "db=3" if name == "concurrency_limits" else "db=10/m"
            raise InvalidConfig(name, f"{part!r} is not a limit", f"write for example {example}")
        if value == NO_LIMIT:
            limits[subject] = None
        elif name == "concurrency_limits":
            limits[subject] = parse_number(f"{name} of {subject}", value, minimum=1)
        else:
            limits[subject] = value
    replace(Config(), **{name: {subject: limit for subject, limit in limits.items() if limit is not None}})
    return limits


def parse_number(name: str, text: str, *, minimum: int) -> int:
    try:
        number = int(text)
    except ValueError:
        raise InvalidConfig(name, f"{text!r} is not a whole number", f"give {minimum:,} or more") from None
    if number < minimum or abs(number) > MAX_PRIORITY:
        raise InvalidConfig(name, f"{text} is out of range", f"give {minimum:,} to {MAX_PRIORITY:,}")
    return number
