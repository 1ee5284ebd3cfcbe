"""The command `airflow celeriac explain`: why a task instance waits, and what became of it.

It reads what the page reads: Airflow's database, the broker, the leases, and what the executor in the scheduler says.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

from airflow.cli.simple_table import AirflowConsole
from sqlalchemy.exc import SQLAlchemyError

from celeriac.airflow.cli_output import Show
from celeriac.airflow.command_parts import exit_with_one_line
from celeriac.airflow.page.database import TaskName
from celeriac.airflow.page.schedulers import Statement
from celeriac.airflow.page.sources import Sources, TaskDetails
from celeriac.errors import describe_error, on_one_line


@exit_with_one_line
def explain(args: Any) -> Show:
    name = TaskName(args.dag_id, args.run_id, args.task_id, args.map_index)
    try:
        details = Sources().task(name)
    except (SQLAlchemyError, RuntimeError) as error:  # a worker of Airflow 3 may not reach the database
        problem = f"the metadata database cannot be read here: {describe_error(error)}"
        raise SystemExit(f"airflow celeriac: {problem}; run the command where the scheduler runs") from None
    if details is None:
        remedy = "give DAG_ID, TASK_ID and RUN_ID as Airflow's page shows them, and --map-index for a mapped task"
        raise SystemExit(f"airflow celeriac: there is no such task instance; {remedy}")
    return partial(show, name, details, args.output)


def show(name: TaskName, details: TaskDetails, output: str) -> None:
    match output:
        case "json":
            print(json.dumps(content_of(name, details)))  # noqa: T201
        case "yaml":
            AirflowConsole().print_as_yaml(content_of(name, details))
        case _:
            print("\n".join(lines_of(name, details)))  # noqa: T201


def content_of(name: TaskName, details: TaskDetails) -> dict[str, Any]:
    facts, statement = details.stored.facts, details.statement
    return {
        "dag_id": name.dag,
        "run_id": name.run,
        "task_id": name.task,
        "map_index": name.index,
        "try_number": facts.try_number,
        "state": facts.state,
        "queue": facts.queue,
        "celery_id": facts.celery_id,
        "now": details.now,
        "worker": None if details.place is None else details.place.worker,
        "executor": None
        if statement is None
        else {"name": statement.executor, "now": statement.words, "events": events_of(statement)},
    }


def events_of(statement: Statement) -> list[dict[str, Any]]:
    return [{"when": each.when, "state": each.state.value, "detail": each.detail} for each in statement.events]


def lines_of(name: TaskName, details: TaskDetails) -> Iterator[str]:
    facts, statement = details.stored.facts, details.statement
    index = f" [{name.index}]" if name.index >= 0 else ""
    yield f"{name.dag}.{name.task}{index}, run {name.run}, try {facts.try_number}: {facts.state or 'no state'}"
    yield on_one_line(details.now)
    if statement is None and details.asks:
        yield "No scheduler says anything about it now: this is from Airflow's database, the broker and the leases."
    if statement is None:
        return
    yield f"The executor in scheduler {statement.executor} says: {on_one_line(statement.words)}."
    for event in statement.events:
        when = datetime.fromtimestamp(event.when, UTC).astimezone().isoformat(sep=" ", timespec="milliseconds")
        yield f"  {when}  {event.state.value:<10} {on_one_line(event.detail or '')}".rstrip()
