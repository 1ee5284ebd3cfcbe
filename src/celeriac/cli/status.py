"""`celeriac status`: queues, workers and submitted runs, as tables or as JSON."""

from __future__ import annotations

import json
import shlex
import sys
from contextlib import closing
from dataclasses import asdict
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import click

from celeriac.cli.control_options import silence_logs, status_of
from celeriac.cli.exit_status import FAILED
from celeriac.cli.formatting import format_seconds, format_time, on_one_line
from celeriac.cli.help_sections import SectionedCommand
from celeriac.cli.json_errors import print_json_error
from celeriac.cli.ledger_options import open_ledger
from celeriac.cli.messages import print_message
from celeriac.cli.options import connection_options, exit_on_bad_input, json_option
from celeriac.cli.tables import fill, output_width, table_lines
from celeriac.cli.url_options import url_option
from celeriac.config.settings import DEFAULT, Settings, read_settings
from celeriac.errors import BrokerUnavailable
from celeriac.task.state import State

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from celeriac.backend.claims.place_use import LimitStatus
    from celeriac.cluster.status_parts import Status, WorkerStatus
    from celeriac.ledger.submit import SubmittedRun

WATCH_INTERVAL = 2.0  # seconds
ENDS = {"succeeded": State.SUCCESS, "failed": State.FAILED, "revoked": State.REVOKED, "skipped": State.SKIPPED}
FOLDABLE = ("run", "owner", "queue", "worker", "queues", "state")  # columns of the tables
IN_FLIGHT = (State.PUBLISHING, State.QUEUED, State.RUNNING)


@click.command(cls=SectionedCommand)
@connection_options
@click.option(
    "--queues",
    metavar="NAMES",
    help='Queues to show besides those that workers serve, separated by commas. [default: the queue "default"]',
)
@url_option(
    "ledger", metavar="PATH|URL", help="Also show the submitted runs of this ledger; without a broker, only them."
)
@click.option(
    "--refused", is_flag=True, help="Show instead the newest messages that workers refused, from the result backend."
)
@click.option(
    "--ask",
    is_flag=True,
    help="Ask each worker, plain Celery workers too. Takes two seconds. [default: read the leases]",
)
@click.option(
    "--watch",
    "watches",
    is_flag=True,
    help="Show the state again and again until Ctrl-C: queues, workers, and with a ledger its latest runs.",
)
@click.option(
    "--interval",
    type=click.FloatRange(min=0.5),
    metavar="SECONDS",
    help="With --watch: time from one look to the next. [default: 2]",
)
@json_option
@exit_on_bad_input
def status(
    config: str | None,
    as_json: bool,
    refused: bool,
    ask: bool,
    watches: bool,
    interval: float | None,
    **options: str | None,
) -> None:
    """Show the queues and workers of a broker, and the submitted runs of a ledger that have not ended.

    "slots" is how many tasks the workers of a queue run at once. Workers are read from their leases, the proof of life
    that each Celeriac worker renews every two seconds in the result backend. On Redis all queues with waiting tasks are
    listed, also those that no worker serves; other queues are named with --queues.

    RabbitMQ does not report how long the oldest task has waited.

    With --watch and without a terminal, one line is printed for each change; with --json, too, one JSON object.

    Exit status: 0; 1 if the broker is unavailable or refuses; 2 bad input, or a refusal that waiting cannot end.
    """
    settings = read_settings(options, config=config)
    if interval is not None and not watches:
        raise click.UsageError("--interval needs --watch")
    if watches:
        if refused or ask:
            raise click.UsageError("--watch takes neither --ask nor --refused")
        watch_status(settings, interval or WATCH_INTERVAL, as_json=as_json)
        return
    if refused:
        from celeriac.cli.refused import show_refused

        show_refused(settings, as_json=as_json)
        return
    runs = submitted_runs(settings) if settings.values["ledger"].origin != DEFAULT else None
    if settings.values["broker"].value is None and runs is not None:
        if as_json:
            click.echo(json.dumps({"runs": run_fields(runs)}))
        else:
            print_runs(runs)
        return
    try:
        broker = broker_status(settings, ask=ask)
    except BrokerUnavailable as error:
        print_message(str(error))
        print_json_error(str(error))
        if runs is not None and not as_json:
            print_runs(runs)
        sys.exit(status_of(error))
    if as_json:
        click.echo(json.dumps(asdict(broker) | ({} if runs is None else {"runs": run_fields(runs)})))
    else:
        print_status(broker)
        if runs is not None:
            click.echo()
            print_runs(runs)
    if broker.problem is not None:
        print_message(f"{broker.problem}; workers are shown by their leases")
        sys.exit(FAILED)


def watch_status(settings: Settings, interval: float, *, as_json: bool) -> None:
    """Show the state until Ctrl-C. Raises `InvalidConfig`."""
    from celeriac.cli.overview_options import open_overview  # these import rich and SQLAlchemy
    from celeriac.cli.watch import watch

    has_ledger = settings.values["ledger"].origin != DEFAULT and settings.ledger is not None
    if not has_ledger:
        _ = settings.connection  # a broker is needed
    with closing(open_overview(settings, with_ledger=has_ledger)) as reader:
        watch(reader, interval=interval, as_json=as_json)


def broker_status(settings: Settings, *, ask: bool) -> Status:
    """Ask the broker, and its workers if they have no leases. Raises `InvalidConfig` and `BrokerUnavailable`."""
    silence_logs()
    connection = settings.connection
    if not ask and (read := leased_status(settings)) is not None and read.workers:
        return read
    # These import Celery, which takes longer than to read the leases of a Redis and which the runs of a ledger do not
    # need.
    from celeriac.broker.app import app_for
    from celeriac.cluster.status import status_of as status_on

    return status_on(app_for(connection), settings.worker.queues, timeout=connection.operation_timeout, ask=ask)


def leased_status(settings: Settings) -> Status | None:
    """Return the status that a Redis holds, read without Celery; None if it cannot be read in this way."""
    if find_spec("hiredis") is None:  # it comes with celeriac[redis], not with redis itself
        return None
    from celeriac.cluster.redis_status import RedisStatusReader

    with closing(RedisStatusReader(settings.connection)) as reader:
        return reader.read(settings.worker.queues)


def submitted_runs(settings: Settings) -> list[SubmittedRun] | None:
    """Return the submitted runs that have not ended; None if the settings exclude a ledger."""
    if settings.ledger is None:
        return None
    with open_ledger(settings, must_exist=True) as ledger:
        return ledger.submitted_runs()


def counts_of(run: SubmittedRun) -> dict[str, int]:
    in_flight = sum(run.states[state] for state in IN_FLIGHT)
    ends = {label: run.states[state] for label, state in ENDS.items()}
    return {"waiting": run.states[State.WAITING], "out": in_flight, **ends}


def run_fields(runs: list[SubmittedRun]) -> list[dict[str, Any]]:
    return [{"name": run.name, "owner": run.owner, "paused": run.paused, **counts_of(run)} for run in runs]


def owner_and_pause(run: SubmittedRun) -> str:
    owner = run.owner or "none"
    return owner if run.paused is None else f"{owner}, {run.paused}"


def print_runs(runs: list[SubmittedRun]) -> None:
    if not runs:
        click.echo("no submitted runs are queued or running")
        return
    counts = ("waiting", "in flight", *ENDS)
    rows = [
        (on_one_line(run.name), *(f"{each:,}" for each in counts_of(run).values()), on_one_line(owner_and_pause(run)))
        for run in runs
    ]
    print_table(("run", *counts, "owner"), rows, right=counts)


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str]) -> None:
    for line in table_lines(headings, rows, width=output_width(), foldable=FOLDABLE, right=right):
        click.echo(line)


def print_status(status: Status) -> None:
    queues = [
        (
            on_one_line(queue.name),
            f"{queue.waiting:,}",
            "" if queue.oldest is None else format_seconds(queue.oldest),
            f"{queue.slots:,}",
        )
        for queue in status.queues
    ]
    print_table(("queue", "waiting", "oldest", "slots"), queues, right=("waiting", "oldest", "slots"))
    click.echo()
    if status.workers:
        print_workers(status.workers)
    else:
        click.echo("no worker answers")
    if status.limits:
        click.echo()
        print_limits(status.limits)
    for queue in status.queues:
        if queue.waiting and not queue.slots:
            print_unserved(on_one_line(queue.name))


def print_unserved(queue: str) -> None:
    name = shlex.quote(queue)
    sentence = f"no worker serves queue {name}: start one with celeriac worker --queues {name}"
    for line in fill(sentence.split(), output_width(), gap=" "):
        click.echo(line)


def print_workers(workers: Sequence[WorkerStatus]) -> None:
    """Print the table of the workers. The last columns are there only if they say something."""
    columns = {
        "worker": [worker.name for worker in workers],
        "queues": [",".join(worker.queues) for worker in workers],
        "concurrency": [count_text(worker.concurrency) for worker in workers],
        "running": [count_text(worker.running) for worker in workers],
    }
    if any(worker.refused for worker in workers):
        columns["refused"] = [count_text(worker.refused) for worker in workers]
    if any(states := [worker_state(worker) for worker in workers]):
        columns["state"] = states
    rows = ([*map(on_one_line, row)] for row in zip(*columns.values(), strict=True))
    print_table([*columns], rows, right=("concurrency", "running", "refused"))


def print_limits(limits: Sequence[LimitStatus]) -> None:
    rows = [
        (
            on_one_line(limit.text),
            f"{limit.used:,} of {limit.number:,}",
            "" if limit.full_until is None else f"full until {format_time(limit.full_until)}",
            on_one_line(", ".join(f"{executor}: {held:,}" for executor, held in limit.executors.items())),
        )
        for limit in limits
    ]
    print_table(("limit", "used", "", "executors"), rows, right=("used",))


def worker_state(worker: WorkerStatus) -> str:
    """Return what is unusual about a worker; "" for a healthy one."""
    if worker.is_suspected and worker.heartbeat_age is not None:
        return f"no heartbeat for {format_seconds(worker.heartbeat_age)}"
    if worker.state != "live":
        return worker.state
    return "" if worker.waits is None else f"waits: {worker.waits}"


def count_text(number: int | None) -> str:
    return "" if number is None else f"{number:,}"
