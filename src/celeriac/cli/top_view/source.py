"""All that the application reads and does, as blocking calls for one thread. There is no textual here."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from celeriac.cli.cancel import Cancellation, describe_cancelled, describe_failure
from celeriac.cli.control_options import open_broker
from celeriac.cli.explain import ask_executors
from celeriac.cli.formatting import count
from celeriac.cli.ledger_options import open_ledger
from celeriac.cli.overview_options import open_overview
from celeriac.cli.owner_options import asked_by, live_owner
from celeriac.config.settings import Settings
from celeriac.errors import CeleriacError, InvalidConfig
from celeriac.executor.requests import CancelOutcome, Explanation
from celeriac.ledger.explanation import explain_from_ledger
from celeriac.ledger.task_attempts import Attempts, attempts_of
from celeriac.ledger.views import RunView, find_run
from celeriac.runs.cancellation import NEXT_OWNER_CANCELS, OWNER_CANCELS, AskOwner, request_cancel
from celeriac.runs.live_owner import LiveOwner
from celeriac.runs.output_files import files_of_attempt, read_file
from celeriac.runs.overview import Overview
from celeriac.task.result import Output
from celeriac.web.task_pages import TaskFilter, TaskPage, read_task_page

PAGE_SIZE = 200  # tasks
TAIL_SIZE = 16_384  # bytes of the end of an output
TAIL_LINES = 200
ASK_INTERVAL = 5.0  # seconds between two questions to executors about a task
STREAMS = ("stdout", "stderr")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """The end of one output stream."""

    stream: str
    lines: Sequence[str]
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskDetails:
    """All that is shown of one task."""

    attempts: Attempts
    explanation: Explanation
    tails: Sequence[Tail]


class Source:
    """The servers of the application. It belongs to one thread."""

    def __init__(self, settings: Settings, *, with_ledger: bool, config: str | None) -> None:
        """`config` is the file of --config, for the commands that are started. Raises `InvalidConfig`."""
        self._settings, self._config = settings, config
        self._reader = open_overview(settings, with_ledger=with_ledger)
        self.has_broker, self.has_ledger = settings.values["broker"].value is not None, with_ledger
        self._is_local = settings.values["broker"].value is None
        self._asked_by = asked_by("top")
        self._asked: tuple[str, float, Explanation | None] = ("", 0.0, None)
        self.latest = Overview(when=time.time())

    def close(self) -> None:
        self._reader.close()

    def check(self) -> None:
        """Raise `InvalidConfig` or `LedgerError` if there should be a ledger and it cannot be opened."""
        if self.has_ledger:
            self._reader.open_store()

    # — reads —

    def overview(self) -> Overview:
        self.latest = self._reader.read()
        return self.latest

    def tasks(self, run: RunView, wanted: TaskFilter, after: str | None) -> TaskPage:
        """Return a page of tasks. Raises `LedgerError`."""
        return read_task_page(self._reader.open_store().database, run.id, wanted, after=after, limit=PAGE_SIZE)

    def task(self, run: RunView, key: str) -> TaskDetails:
        """Read one task. Raises `InvalidConfig` for an unknown one, and `LedgerError`."""
        database = self._reader.open_store().database
        attempts = attempts_of(database, run.name, key)
        explanation = explain_from_ledger(database, attempts.run, key)
        if not attempts.task_has_ended:
            explanation = self._ask(run, attempts) or explanation
        return TaskDetails(attempts=attempts, explanation=explanation, tails=[tail_of(attempts, s) for s in STREAMS])

    def _ask(self, run: RunView, attempts: Attempts) -> Explanation | None:
        """Return what the executor of a task says about it; None if there is none. Do not ask too often."""
        task_id, when, answer = self._asked
        if task_id == attempts.task.task.id and time.monotonic() - when < ASK_INTERVAL:
            return answer
        answer = None
        for name in (f"{run.name}/{attempts.key}", attempts.key):  # a service names the run, too
            try:
                histories = ask_executors(self._settings, name, local=self._is_local).histories
            except CeleriacError:  # the ledger is shown instead; the overview names what is unavailable
                break
            answer = next((each for each, _ in histories if each.id == attempts.task.task.message_id), None)
            if answer is not None:
                break
        self._asked = (attempts.task.task.id, time.monotonic(), answer)
        return answer

    # — actions: each returns a sentence about its effect, or raises a `CeleriacError` —

    def cancel_task(self, run: RunView, key: str) -> str:
        """Cancel one task through the ledger or, if its executor takes no requests there, through its executor."""
        try:
            with open_ledger(self._settings, must_exist=True) as ledger:
                owner = request_cancel(ledger, run.id, run.name, [key], self._asker(run))
        except InvalidConfig:  # its owner is a Celeriac of an earlier version
            return self._cancel_through_executor(key)
        return f"{key}: {NEXT_OWNER_CANCELS if owner is None else OWNER_CANCELS.format(owner=owner)}"

    def _cancel_through_executor(self, key: str) -> str:
        cancellation = Cancellation(keys=(key,), wait=0.0)
        cancellation.send(self._settings, local=self._is_local)
        lines = [
            f"{result.name}: {describe_cancelled(result, 0.0)}"
            if result.outcome in (CancelOutcome.REVOKED, CancelOutcome.CALLED_BACK)
            else describe_failure(result)
            for result, _ in cancellation.results
        ]
        return "; ".join([*lines, *cancellation.errors])

    def set_priority(self, run: RunView, key: str, priority: int) -> str:
        """Change the priority of a waiting task, through its owner, or else through the ledger."""
        with open_ledger(self._settings, must_exist=True) as ledger:
            owner = find_run(ledger.database, run.name, counted=False).owner
            if owner is not None:
                is_changed = self._owner(run, owner).change_priority(key, priority)
            else:
                is_changed = ledger.reprioritise(run.id, run.name, key, priority, asked_by=self._asked_by)
        if not is_changed:
            raise InvalidConfig(f"task {key!r}", "does not wait", "its priority has no effect any more")
        return f"{key} has priority {priority}"

    def cancel_run(self, run: RunView) -> str:
        """Cancel all tasks of a run that have not ended, through the ledger or through its owner."""
        with open_ledger(self._settings, must_exist=True) as ledger:
            owner = request_cancel(ledger, run.id, run.name, None, self._asker(run))
        return f"run {run.name}: " + ("its tasks are cancelled" if owner is None else OWNER_CANCELS.format(owner=owner))

    def _asker(self, run: RunView) -> AskOwner:
        """Return how to ask an owner that takes no requests through the ledger."""
        return lambda label, keys: self._owner(run, label).cancel(keys)

    def _owner(self, run: RunView, label: str) -> LiveOwner:
        return live_owner(self._settings, run=run.name, label=label, asked_by=self._asked_by)

    def drain(self, worker: str) -> str:
        """Let a worker finish what it runs and stop."""
        from celeriac.cluster.drain import send_drain  # imports Celery

        with open_broker(self._settings.connection) as broker:
            send_drain(broker.app, broker.connection, [worker], asked_by=self._asked_by)
        return f"{worker} takes nothing more, and stops when its running tasks have ended"

    def retry_command(self, run: RunView, keys: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """Return the command that runs tasks again, and its environment: it holds the URLs, which may have passwords.

        Without keys, it runs all that did not succeed.
        """
        command = [sys.executable, "-m", "celeriac", "retry", run.name]
        command += [f"--key={key}" for key in keys]
        command += [] if self._config is None else ["--config", self._config]
        environment = dict(os.environ)
        for name in ("broker", "backend", "ledger"):
            variable = f"CELERIAC_{name.upper()}"
            environment.pop(f"{variable}_FILE", None)
            if (value := self._settings.values[name].value) is not None:
                environment[variable] = value
        return command, environment


# — the end of an output —


def tail_of(attempts: Attempts, stream: str) -> Tail:
    """Return the last lines of the attempt that began last."""
    number = attempts.last_begun
    if number is None:
        return Tail(stream=stream, lines=[])
    if attempts.is_running(number):
        files = files_of_attempt(attempts, number)
        if files is None:
            return Tail(stream=stream, lines=[], note="the worker has it until the attempt has ended")
        return Tail(stream=stream, lines=lines_of(read_end(files[stream], attempts.run.output) or b""))
    execution = attempts.ended.get(number)
    output = Output() if execution is None else getattr(execution, stream)
    is_here = execution is not None and output.machine(execution.host) == socket.gethostname()
    if output.path is not None and is_here:
        content = read_end(Path(output.path), attempts.run.output)
        if content is not None:
            return Tail(stream=stream, lines=lines_of(content))
    kept = output.tail.encode("utf-8", "replace")
    note = f"the last {len(kept):,} of {count(output.size, 'byte')}" if output.size > len(kept) else None
    return Tail(stream=stream, lines=lines_of(kept), note=note)


def lines_of(content: bytes) -> list[str]:
    return content.decode("utf-8", "replace").splitlines()[-TAIL_LINES:]


def read_end(path: Path, folder: str | None) -> bytes | None:
    """Return the end of a file of output; None if it cannot be read."""
    found = read_file(path, folder, -TAIL_SIZE, TAIL_SIZE)
    return None if found is None else found[0]
