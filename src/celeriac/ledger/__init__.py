"""The executor's durable memory: tasks and events, in SQLite or PostgreSQL.

    executor ─► LedgerWriter ─► RunLedger.write: one transaction ─► tasks, events, unacknowledged ends
             ◄─ recover      ◄─ RunLedger.unfinished ◄─┘

sql_ledger     the public class                  run_recorder   record a new run: create, open and close it
run_writer     one run, written by its executor  run_store      all else that commands and services do with runs
owned_runs     the submitted runs of one service owned_run      one of them: how far it is loaded
idle_runs      take submitted runs without owner
owner          ownership of runs: leases         liveness       the decision whether an owner is alive
schema         the tables and their version      codec          tasks and events as rows and JSON
statements     those of a new run, in SQLAlchemy prepared       the same as SQL for SQLite, generated
transactions   what both kinds of databases have statement      one statement, for both
database       a database, through SQLAlchemy    file_database  a file, without it
ledger_file    checks before a file is opened    read_only      open a file without write permission
submit         hand a run to a service           cancel         cancel tasks through the ledger
resume         plan to run a changed file again  retry          plan to run tasks again without their file
views, counts  runs and tasks for a reader       prune, limits  remove runs
memory         a ledger without a database

The names below are imported at their first use: some of the modules import SQLAlchemy.

In: tasks, records and events of `celeriac.executor`. Out: unfinished tasks, events and views of runs. The folder may
import SQLAlchemy, and `broker`, `executor`, `config`, `task` and `errors`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celeriac.ledger.memory import MemoryLedger
    from celeriac.ledger.run_writer import RunLedger
    from celeriac.ledger.sql_ledger import SqlLedger

MODULE_OF = {"MemoryLedger": "memory", "RunLedger": "run_writer", "SqlLedger": "sql_ledger"}

__all__ = ["MemoryLedger", "RunLedger", "SqlLedger"]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use."""
    if name not in MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"celeriac.ledger.{MODULE_OF[name]}"), name)
