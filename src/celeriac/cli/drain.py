"""`celeriac drain`."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from celeriac.backend.claims import claims_for
from celeriac.cli.control_options import exit_on_error, open_broker, wait_option
from celeriac.cli.exit_status import FAILED
from celeriac.cli.formatting import count, format_seconds, on_one_line
from celeriac.cli.help_sections import SectionedCommand
from celeriac.cli.json_errors import print_json_error
from celeriac.cli.messages import print_message
from celeriac.cli.options import connection_options, json_option
from celeriac.cluster.drain import DrainMonitor, matching_workers, replying_workers
from celeriac.config.settings import read_settings


@click.command(cls=SectionedCommand)
@click.argument("workers", nargs=-1, required=True, metavar="WORKER...")
@connection_options
@wait_option
@json_option
@exit_on_error
def drain(workers: tuple[str, ...], config: str | None, wait: float, as_json: bool, **options: Any) -> None:
    """Drain workers: each takes nothing more, finishes its running tasks, and stops.

    A worker ends tasks that still run after its grace, and gives them back to the broker. A WORKER may be named without
    its host if only one matches: w1 for w1@host. `celeriac status` lists the workers. With --wait the command returns
    when the workers have stopped.

    Exit status: 0; 1 if a worker does not answer or has not stopped in time; 2 bad input.
    """
    settings = read_settings(options, config=config)
    with open_broker(settings.connection) as broker:
        answers = replying_workers(broker.app, broker.connection)
        matches = {name: matching_workers(name, answers) for name in workers}
        mismatches = [describe_mismatch(name, each, answers) for name, each in matches.items() if len(each) != 1]
        for line in mismatches:
            print_message(line)
        if mismatches:
            print_json_error("\n".join(mismatches))
            sys.exit(FAILED)
        draining = [worker for (worker,) in matches.values()]
        claims = claims_for(broker.app, timeout=broker.timeout) if wait > 0 else None
        monitor = (
            DrainMonitor(broker.app, connection=broker.connection, claims=claims, workers=draining)
            if wait > 0
            else None
        )
        broker.app.control.shutdown(destination=draining, connection=broker.connection)
        remaining = monitor.wait(wait) if monitor is not None else {}
        if claims is not None:
            claims.close()
    report(draining, remaining, wait, as_json=as_json)
    sys.exit(FAILED if remaining else 0)


def describe_mismatch(name: str, matching: list[str], answers: list[str]) -> str:
    if matching:
        return f"{name!r} may be {' or '.join(matching)}: give the full name"
    return f"no worker {name!r} answers; workers that answer: {', '.join(answers) or 'none'}"


def report(draining: list[str], remaining: dict[str, int | None], wait: float, *, as_json: bool) -> None:
    """Print the result. `remaining` has each worker that has not stopped, and how many tasks it runs, if known."""
    if as_json:
        gone = {name: name not in remaining if wait > 0 else None for name in draining}
        fields = [{"worker": name, "gone": gone[name], "running": remaining.get(name)} for name in draining]
        click.echo(json.dumps({"workers": fields}))
        return
    for name in draining:
        if name in remaining:
            running = remaining[name]
            text = "has not stopped" if running is None else f"still runs {count(running, 'task')}"
            print_message(f"{name} {text} after {format_seconds(wait)}")
        else:
            text = "has stopped" if wait > 0 else "takes nothing more, and stops when its running tasks have ended"
            click.echo(on_one_line(f"{name} {text}"))
