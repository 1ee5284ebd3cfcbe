"""`airflow celeriac status|stop|drain`: looking at workers, and seeing them out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
from airflow.cli.simple_table import AirflowConsole
from airflow.utils import cli
from celery import Celery

from celeriac.airflow.config import Options, app_of
from celeriac.airflow.worker import PROCESS_NAME, conf_of, one_line_of_error
from celeriac.broker.session import BrokerSession
from celeriac.cluster.status import ANSWERS, Status, status_of


def stop(args: Any) -> None:
    """The pid file goes with its worker, and at once if there is none any more."""
    path = Path(cli.setup_locations(process=PROCESS_NAME, pid=args.pid)[0])
    try:
        pid = int(path.read_text())
        process = psutil.Process(pid)
    except FileNotFoundError:
        raise SystemExit(f"airflow celeriac: there is no pid file {path}: does a worker run as a daemon?") from None
    except ValueError:
        raise SystemExit(f"airflow celeriac: {path} holds no process id") from None
    except psutil.NoSuchProcess:
        path.unlink(missing_ok=True)
        raise SystemExit(
            f"airflow celeriac: process {pid} has ended without its pid file {path}, now removed"
        ) from None
    process.terminate()
    print(f"Worker {pid} takes nothing more, and goes when what it runs has ended.")  # noqa: T201


@one_line_of_error
def status(args: Any) -> None:
    app, options = app_for(args.team)
    queue = options.text("operators", "default_queue", "default")
    timeout = options.seconds("celery", "operation_timeout", 1.0)
    found = status_of(app, [queue], timeout=timeout)
    running = running_on(app, timeout)
    show(found, running, AirflowConsole(), args.output)


def show(found: Status, running: Mapping[str, list[str]], console: AirflowConsole, output: str) -> None:
    queues = [asdict(queue) for queue in found.queues]
    workers: list[dict[str, Any]] = [
        {
            "name": worker.name,
            "queues": list(worker.queues),
            "concurrency": worker.concurrency,
            "running": running.get(worker.name, []),
        }
        for worker in found.workers
    ]
    match output:
        case "json":
            print(json.dumps({"queues": queues, "workers": workers}))  # noqa: T201
        case "yaml":
            console.print_as_yaml({"queues": queues, "workers": workers})
        case _:
            for worker in workers:
                worker["running"] = len(worker["running"])
            print_table = console.print_as_plain_table if output == "plain" else console.print_as_table
            tasks = [{"worker": name, "running": what} for name in sorted(running) for what in running[name]]
            for table in (queues, workers, tasks):
                if table:
                    print_table(table)


def running_on(app: Celery, timeout: float) -> dict[str, list[str]]:
    """By worker. The broker was there a moment ago: what it does not say now is not said."""
    calls = BrokerSession(app, timeout=max(timeout, 2 * ANSWERS))
    try:
        with calls.connect() as connection:
            active = app.control.inspect(timeout=ANSWERS, connection=connection).active() or {}
    except calls.connection_errors:
        return {}
    return {name: [name_of(request) for request in requests] for name, requests in active.items()}


def name_of(request: Mapping[str, Any]) -> str:
    """Which workload it is: of its message no more than that, for the rest of it is a token."""
    try:
        workload = json.loads(request["args"][0])
        ti = workload["ti"]
        place = f" [{ti['map_index']}]" if ti.get("map_index", -1) not in (-1, None) else ""
        return f"{ti['dag_id']}.{ti['task_id']}{place} {ti['run_id']} try {ti['try_number']}"
    except (LookupError, TypeError, ValueError):
        return str(request.get("id"))


@one_line_of_error
def drain(args: Any) -> None:
    app, options = app_for(args.team)
    timeout = options.seconds("celery", "operation_timeout", 1.0)
    calls = BrokerSession(app, timeout=max(timeout, 2 * ANSWERS))
    try:
        with calls.connect() as connection:
            inspect = app.control.inspect(timeout=ANSWERS, connection=connection)
            workers = sorted(inspect.ping() or {})
            if args.worker not in workers:
                names = ", ".join(workers) or "none"
                raise SystemExit(f"airflow celeriac: no worker {args.worker!r} answers; those that do: {names}")
            app.control.shutdown(destination=[args.worker], connection=connection)
    except calls.connection_errors as error:
        raise SystemExit(f"airflow celeriac: the broker does not answer: {error}") from None
    print(f"{args.worker} takes nothing more, and goes when what it runs has ended.")  # noqa: T201


def app_for(team: str | None) -> tuple[Celery, Options]:
    conf = conf_of(team)
    options = Options(conf)
    timeout = options.seconds("celery", "operation_timeout", 1.0)
    return app_of(conf, team_name=team, operation_timeout=timeout), options
