"""`celeriac status`: queues and workers, as a table or as JSON."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from celeriac.cli.options import connection_options, or_bad_input

if TYPE_CHECKING:
    from celeriac.cluster.status import Status
    from celeriac.config.settings import Settings
    from celeriac.ledger.submit import SubmittedRun

AWAY = 1


@click.command(short_help="Show what waits on a broker, who works, and what was submitted.")
@connection_options
@click.option("--queues", metavar="NAMES", help="Beside those that workers serve, with commas between them. [default]")
@click.option("--ledger", metavar="PATH|URL", help="Show its submitted runs too; without a broker nothing else.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@or_bad_input
def status(config: str | None, as_json: bool, **options: str | None) -> None:
    """Show what waits on a broker, who works on it, and the submitted runs of a ledger that have not ended.

    RabbitMQ does not tell how long the oldest task has waited. Exit status: 0, 1 if the broker is away, 2 bad input.
    """
    import json
    from dataclasses import asdict

    from celeriac.config.settings import DEFAULT, read_settings
    from celeriac.errors import BrokerUnavailable

    settings = read_settings(options, config=config)
    runs = submitted_runs(settings) if settings.values["ledger"].origin != DEFAULT else None
    if settings.values["broker"].value is None and runs is not None:
        if as_json:
            click.echo(json.dumps({"runs": as_plain(runs)}))
        else:
            tell_runs(runs)
        return
    from celeriac.broker.app import app_for
    from celeriac.cluster.status import status_of

    connection = settings.connection
    try:
        found = status_of(app_for(connection), settings.worker.queues, timeout=connection.operation_timeout)
    except BrokerUnavailable as away:
        click.echo(f"celeriac: {away}", err=True)
        if runs is not None and not as_json:
            tell_runs(runs)
        sys.exit(AWAY)
    if as_json:
        click.echo(json.dumps(asdict(found) | ({} if runs is None else {"runs": as_plain(runs)})))
        return
    tell_status(found)
    if runs is not None:
        click.echo()
        tell_runs(runs)


def submitted_runs(settings: Settings) -> list[SubmittedRun] | None:
    """None where no ledger is to be kept."""
    from celeriac.cli.submit import the_ledger

    if settings.ledger is None:
        return None
    with the_ledger(settings, must_exist=True) as ledger:
        return ledger.submitted_runs()


def counts_of(run: SubmittedRun) -> dict[str, int]:
    from celeriac.task.state import State

    states = run.states
    out = states[State.PUBLISHING] + states[State.QUEUED] + states[State.RUNNING]
    ended = {"succeeded": State.SUCCESS, "failed": State.FAILED, "revoked": State.REVOKED, "skipped": State.SKIPPED}
    return {"waiting": states[State.WAITING], "out": out, **{word: states[state] for word, state in ended.items()}}


def as_plain(runs: list[SubmittedRun]) -> list[dict[str, Any]]:
    return [{"name": run.name, "owner": run.owner, **counts_of(run)} for run in runs]


def tell_runs(runs: list[SubmittedRun]) -> None:
    from rich.console import Console
    from rich.table import Table

    from celeriac.cli.formatting import on_one_line

    console = Console(markup=False, highlight=False)
    if not runs:
        console.print("no submitted run waits or is at work")
        return
    ends = ("succeeded", "failed", "revoked", "skipped")
    table = Table("run", "waiting", "out", *ends, "served by", box=None, pad_edge=False)
    for run in runs:
        counts = (f"{number:,}" for number in counts_of(run).values())
        table.add_row(on_one_line(run.name), *counts, on_one_line(run.owner or "nobody"))
    console.print(table)


def tell_status(found: Status) -> None:
    from rich.console import Console
    from rich.table import Table

    from celeriac.cli.formatting import on_one_line, seconds

    queues = Table("queue", "waiting", "oldest", "slots", box=None, pad_edge=False)
    for queue in found.queues:
        oldest = "" if queue.oldest is None else seconds(queue.oldest)
        queues.add_row(on_one_line(queue.name), f"{queue.waiting:,}", oldest, str(queue.slots))
    workers = Table("worker", "queues", "concurrency", "running", box=None, pad_edge=False)
    shows_refused = any(worker.refused for worker in found.workers)
    if shows_refused:
        workers.add_column("refused")
    for worker in found.workers:
        counts = (worker.concurrency, worker.running, *((worker.refused,) if shows_refused else ()))
        numbers = ("" if number is None else str(number) for number in counts)
        workers.add_row(on_one_line(worker.name), on_one_line(",".join(worker.queues)), *numbers)
    console = Console(markup=False, highlight=False)
    console.print(queues)
    console.print()
    console.print(workers if found.workers else "no worker answers")
