"""`celeriac submit`: leaves a file of commands to `celeriac serve`, and waits for their end if that is wanted."""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from celeriac.cli.options import BAD_INPUT, config_option, defaults_among, job_options, or_bad_input

if TYPE_CHECKING:
    from celeriac.config.settings import Settings
    from celeriac.ledger.run_store import RunStore
    from celeriac.task.task import Task

LOOK = 0.5  # seconds between two looks for the end of a run
INTERRUPTED = 130


@click.command(short_help="Leave a file of commands to `celeriac serve`.")
@click.argument("file")
@job_options
@click.option("--ledger", metavar="PATH|URL", help="What `celeriac serve` serves. [the user's own]")
@config_option
@click.option("--name", metavar="NAME", help="Call the run so. [as FILE; jobs-2 where there is a run called jobs]")
@click.option("--wait", is_flag=True, help="Return when the run has ended, with the exit status of `celeriac run`.")
@click.option("--json", "as_json", is_flag=True, help="Say so as JSON.")
@or_bad_input
def submit(
    file: str,
    format_: str,
    ledger: str | None,
    config: str | None,
    name: str | None,
    wait: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Leave the commands of FILE ("-" for standard input) to `celeriac serve`, which need not be up now, and return.

    FILE is what `celeriac run` takes, and all of it is checked first. Prints the run's name.

    \b
    Exit status: 0, 2 bad input or a ledger that is away; with --wait also 1 some did not succeed,
    130 interrupted, in which case the run goes on.
    """
    from celeriac.config.settings import read_settings
    from celeriac.runs.job_file import BadJobs, read_jobs

    settings = read_settings({"ledger": ledger}, config=config)
    try:
        tasks = read_jobs(file, format_, defaults_among(options))
    except BadJobs as bad:
        for problem in bad.problems:
            click.echo(str(problem), err=True)
        sys.exit(BAD_INPUT)
    with the_ledger(settings) as opened:
        sys.exit(hand_in(opened, file, name, tasks, wait=wait, as_json=as_json))


def the_ledger(settings: Settings, *, must_exist: bool = False) -> RunStore:
    """Raises `InvalidConfig` if there is to be none, or none can be had."""
    from celeriac.errors import InvalidConfig
    from celeriac.ledger.run_store import RunStore

    if settings.ledger is None:
        raise InvalidConfig("ledger", "this needs one", "name a path or URL")
    return RunStore(settings.ledger, must_exist=must_exist)


def hand_in(ledger: RunStore, file: str, name: str | None, tasks: list[Task], *, wait: bool, as_json: bool) -> int:
    import json

    from celeriac.runs.record import LONGEST_NAME
    from celeriac.worker.signals import signals_to

    path = None if file == "-" else Path(file).absolute()
    wanted = name or ("stdin" if path is None else path.stem[:LONGEST_NAME] or "run")
    called = ledger.submit(wanted, None if path is None else str(path), tasks, is_given=name is not None)
    try:
        if not as_json:
            click.echo(called)
        if wait:
            interrupts: list[None] = []
            with signals_to(lambda: interrupts.append(None)):
                return see_to_the_end(ledger, called, interrupts, as_json=as_json)
        if as_json:
            click.echo(json.dumps({"run": called, "tasks": len(tasks)}))
    except KeyboardInterrupt:
        click.echo(f"celeriac: no longer waiting; run {called} goes on", err=True)
        return INTERRUPTED
    return 0


def see_to_the_end(ledger: RunStore, name: str, interrupts: Collection[None], *, as_json: bool) -> int:
    """Raises `KeyboardInterrupt`, between two looks: where Python itself would raise it, a library might swallow it."""
    import json
    import time

    from celeriac.cli.formatting import many
    from celeriac.cli.progress import PLAIN_INTERVAL
    from celeriac.errors import LedgerUnavailable
    from celeriac.task.state import State

    run = ledger.find_run(name)
    assert run is not None  # noqa: S101 - it has just been made
    next_line, is_away = time.monotonic() + PLAIN_INTERVAL, False
    while True:
        if interrupts:
            raise KeyboardInterrupt
        try:
            if ledger.has_ended(run):
                states = ledger.count_states(run)
                break
            if time.monotonic() >= next_line:
                click.echo(standing(ledger, run), err=True)
                next_line = time.monotonic() + PLAIN_INTERVAL
            is_away = False
            time.sleep(LOOK)  # a ledger tells nobody that it has changed
        except LedgerUnavailable as away:
            if not is_away:
                click.echo(f"celeriac: {away}; waiting for it", err=True)
            is_away = True
            time.sleep(LOOK)  # nothing tells when it is back
    status = 0 if states[State.SUCCESS] == states.total() else 1
    ends = {"succeeded": State.SUCCESS, "failed": State.FAILED, "revoked": State.REVOKED, "skipped": State.SKIPPED}
    counts = {word: states[state] for word, state in ends.items()}
    if as_json:
        click.echo(json.dumps({"run": name, "tasks": states.total(), **counts, "exit_status": status}))
    else:
        told = ", ".join(
            f"{number:,} {word}" for word, number in counts.items() if number or word in ("succeeded", "failed")
        )
        click.echo(f"{many(states.total(), 'task')}: {told}", err=True)
    return status


def standing(ledger: RunStore, run: int) -> str:
    from celeriac.task.state import State

    states = ledger.count_states(run)
    done = sum(number for state, number in states.items() if state.is_final)
    out = states.total() - done - states[State.WAITING]
    words = f"{done:,}/{states.total():,} done, {out:,} out, {states[State.WAITING]:,} waiting"
    return f"{words}, {states[State.FAILED]:,} failed"
