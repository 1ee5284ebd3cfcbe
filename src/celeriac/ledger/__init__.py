"""The executor's durable memory: tasks and events, in SQLite or PostgreSQL.

    executor ─► LedgerWriter ─► RunLedger.write: one transaction ─► tasks, events, unacknowledged ends
             ◄─ recover      ◄─ RunLedger.unfinished ◄─┘

sql_ledger  the public class                     run_store   all that commands and services do with runs
run_writer  one run, written by its executor     owned_runs  the submitted runs of one service
                                                 owned_run   one of them: how far it is loaded
owner       ownership of runs: leases            liveness    the decision whether an owner is alive
schema      the tables and their version         codec       tasks and events as rows and JSON
database    connections, transactions, errors    read_only   open a file without write permission
submit      hand a run to a service              cancel      cancel tasks through the ledger
resume      plan to run a changed file again     retry       plan to run tasks again without their file
views       runs and tasks for a reader          prune       remove runs
memory      a ledger without a database

In: tasks, records and events of `celeriac.executor`. Out: unfinished tasks, events and views of runs. The folder may
import SQLAlchemy, and `broker`, `executor`, `config`, `task` and `errors`.
"""

from __future__ import annotations

from celeriac.ledger.memory import MemoryLedger
from celeriac.ledger.run_writer import RunLedger
from celeriac.ledger.sql_ledger import SqlLedger

__all__ = ["MemoryLedger", "RunLedger", "SqlLedger"]
