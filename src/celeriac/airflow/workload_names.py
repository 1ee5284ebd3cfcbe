"""The names of workloads in log lines: dag, task, run, try and map index after each Celery id. Never the token.

    message received ─► WorkloadNames ─► NameFilter on the loggers ─► "[id] … dag_id=… task_id=… run_id=… try_number=…"

A worker reads the names from its messages, unchecked: they are only shown. The scheduler's executor has them already.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from celeriac.errors import on_one_line
from celeriac.worker.log import quoted

WORKER_LOGGERS = (
    *("celery.app.trace", "celery.worker.request", "celery.worker.strategy"),
    *("celeriac.airflow.api_server", "celeriac.airflow.claim_takeover", "celeriac.airflow.prefork_control"),
    *("celeriac.airflow.request", "celeriac.airflow.task", "celeriac.airflow.worker"),
)
"""The loggers of lines about one workload, in the worker and in its children."""

EXECUTOR_LOGGERS = (
    *("celeriac.cluster.revoker", "celeriac.executor.control_handler", "celeriac.executor.dispatcher"),
    *("celeriac.executor.result_handler", "celeriac.executor.revocation"),
)
MAX_NAMES = 4096  # of the newest messages: more than one worker holds at a time
MAX_LENGTH = 250  # characters of one name, as in Airflow's database
MAX_SHOWN = 5  # names in one line
ID = re.compile(r"(?<=[\['])[\w-]{16,64}(?=[\]'])")
"""A Celery id in a log line, in brackets or quotes."""


class TaskInstanceHead(msgspec.Struct):
    dag_id: str
    task_id: str
    run_id: str
    try_number: int
    map_index: int | None = None


class CallbackHead(msgspec.Struct):
    id: str


class WorkloadHead(msgspec.Struct):
    """The part of a workload's JSON that log lines show, and the path of its log."""

    ti: TaskInstanceHead | None = None
    callback: CallbackHead | None = None
    connection_id: str | None = None
    log_path: str | None = None


HEAD = msgspec.json.Decoder(WorkloadHead)


def head_of(message: Any) -> WorkloadHead:
    """Return the head of a workload; an empty one if the message is none."""
    try:
        return HEAD.decode(message)
    except (msgspec.DecodeError, UnicodeDecodeError, TypeError, RecursionError):
        return WorkloadHead()


def name_in(head: WorkloadHead) -> str:
    if head.ti is not None:
        return name_of(head.ti)
    if head.callback is not None:
        return f"callback_id={shown(head.callback.id)}"
    return "" if head.connection_id is None else f"connection_id={shown(head.connection_id)}"


def name_of(ti: Any) -> str:
    """Return the name of one try of a task instance: of a workload's, of a row, or of a key of Airflow's."""
    index = getattr(ti, "map_index", None)
    return (
        f"dag_id={shown(ti.dag_id)} task_id={shown(ti.task_id)} run_id={shown(ti.run_id)} try_number={ti.try_number}"
        f"{'' if index is None or index < 0 else f' map_index={index}'}"
    )


def shown(value: object) -> str:
    return quoted(str(value)[:MAX_LENGTH])


class WorkloadNames:
    """The names of the workloads whose messages this process has received last, by Celery id."""

    def __init__(self) -> None:
        self._names: OrderedDict[str, str] = OrderedDict()

    def remember(self, celery_id: str, message: Any) -> None:
        self._names[celery_id] = name_in(head_of(message))
        if len(self._names) > MAX_NAMES:
            self._names.popitem(last=False)

    def find(self, celery_id: str) -> str | None:
        return self._names.get(celery_id)


class NameFilter(logging.Filter):
    """Adds the names of the workloads whose ids a message has. It drops no record."""

    def __init__(self, find: Callable[[str], str | None]) -> None:
        super().__init__()
        self._find = find

    def filter(self, record: logging.LogRecord) -> bool:
        with contextlib.suppress(Exception):  # a record that cannot be formatted: its handler reports that
            text = record.getMessage()
            ids = dict.fromkeys(ID.findall(text))
            names = [name for each in ids if (name := self._find(each))][:MAX_SHOWN]
            if names:
                record.msg, record.args = on_one_line(f"{text} {'; '.join(names)}"), None
        return True


@contextlib.contextmanager
def names_shown(find: Callable[[str], str | None], loggers: tuple[str, ...]) -> Iterator[None]:
    """Show names in the lines of these loggers, and in the children that this process forks."""
    added = NameFilter(find)
    for name in loggers:
        logging.getLogger(name).addFilter(added)
    try:
        yield
    finally:
        for name in loggers:
            logging.getLogger(name).removeFilter(added)
