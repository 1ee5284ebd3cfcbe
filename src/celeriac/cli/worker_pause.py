"""`celeriac pause --worker`, and `resume --worker`."""

from __future__ import annotations

import json

import click

from celeriac.cli.control_options import open_broker
from celeriac.cli.drain import describe_mismatch
from celeriac.cli.exit_status import FAILED
from celeriac.cli.formatting import count, on_one_line
from celeriac.cli.messages import print_message
from celeriac.cluster.drain import matching_workers, replying_workers
from celeriac.cluster.worker_pause import WorkerPauseResult, change_worker_pause
from celeriac.config.settings import Settings


def change_worker_pauses(settings: Settings, names: tuple[str, ...], *, resume: bool, as_json: bool) -> int:
    """Pause or resume workers. Return the exit status. If one of the names matches none, change nothing.

    Raises `InvalidConfig` and `BrokerUnavailable`.
    """
    from celeriac.cli.owner_options import asked_by  # imports SQLAlchemy

    who = asked_by("resume" if resume else "pause")
    results: list[WorkerPauseResult] = []
    with open_broker(settings.connection) as broker:
        answers = replying_workers(broker.app, broker.connection)
        matches = {name: matching_workers(name, answers) for name in names}
        errors = [describe_mismatch(name, each, answers) for name, each in matches.items() if len(each) != 1]
        if not errors:
            workers = list(dict.fromkeys(worker for (worker,) in matches.values()))
            results, errors = change_worker_pause(broker.app, broker.connection, workers, resume=resume, asked_by=who)
    for error in errors:
        print_message(error)
    if as_json:
        workers_fields = [result.fields() for result in results]
        click.echo(json.dumps({"executors": [], "workers": workers_fields, "errors": errors}))
    else:
        print_results(results, resume=resume)
    return 0 if any(result.changed for result in results) and not errors else FAILED


def print_results(results: list[WorkerPauseResult], *, resume: bool) -> None:
    for result in results:
        if not result.changed:
            print_message(f"{result.worker}: {'not paused' if resume else 'already paused'}")
            continue
        running = f"it runs {count(result.running, 'task')}"
        text = "resumed" if resume else f"takes nothing more until it is resumed; {running}"
        click.echo(on_one_line(f"{result.worker}: {text}"))
