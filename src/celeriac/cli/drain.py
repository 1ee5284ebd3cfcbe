"""`celeriac drain`: sees workers out."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from celeriac.cli.control_options import FAILED, complain, json_option, on_broker, one_line_of_error, wait_option
from celeriac.cli.options import connection_options


@click.command(short_help="See workers out.")
@click.argument("workers", nargs=-1, required=True, metavar="WORKER...")
@connection_options
@wait_option
@json_option
@one_line_of_error
def drain(workers: tuple[str, ...], config: str | None, wait: float, as_json: bool, **options: Any) -> None:
    """See workers out: each takes nothing more, finishes what it runs within its grace, hands back the rest, and goes.

    A WORKER may be named without its host where that is clear: w1 for w1@host. `celeriac status` names those that are
    up. With --wait the answer comes when they have gone.

    Exit status: 0, 1 if one does not answer or has not gone in time, 2 bad input.
    """
    from celeriac.backend.claims import claims_for
    from celeriac.cluster.drain import DrainMonitor, answering, named
    from celeriac.config.settings import read_settings

    settings = read_settings(options, config=config)
    with on_broker(settings.connection) as broker:
        up = answering(broker.app, broker.connection)
        found = {given: named(given, up) for given in workers}
        for given, names in found.items():
            if len(names) != 1:
                complain(not_one(given, names, up))
        if any(len(names) != 1 for names in found.values()):
            sys.exit(FAILED)
        leaving = [name for (name,) in found.values()]
        claims = claims_for(broker.app, timeout=broker.timeout) if wait > 0 else None
        departures = DrainMonitor(broker.app, broker.connection, claims, leaving) if wait > 0 else None
        broker.app.control.shutdown(destination=leaving, connection=broker.connection)
        left = departures.wait(wait) if departures is not None else {}
        if claims is not None:
            claims.close()
    tell(leaving, left, wait, as_json=as_json)
    sys.exit(FAILED if left else 0)


def not_one(given: str, names: list[str], up: list[str]) -> str:
    if names:
        return f"{given!r} may be {' or '.join(names)}: name it in full"
    return f"no worker {given!r} answers; those that do: {', '.join(up) or 'none'}"


def tell(leaving: list[str], left: dict[str, int | None], wait: float, *, as_json: bool) -> None:
    from celeriac.cli.formatting import many, on_one_line, seconds

    if as_json:
        gone = {name: name not in left if wait > 0 else None for name in leaving}
        said = [{"worker": name, "gone": gone[name], "running": left.get(name)} for name in leaving]
        click.echo(json.dumps({"workers": said}))
        return
    for name in leaving:
        if name in left:
            running = left[name]
            what = "is still there" if running is None else f"still runs {many(running, 'task')}"
            complain(f"{name} {what} after {seconds(wait)}")
        else:
            goes = "has gone" if wait > 0 else "takes nothing more, and goes when what it runs has ended"
            click.echo(on_one_line(f"{name} {goes}"))
