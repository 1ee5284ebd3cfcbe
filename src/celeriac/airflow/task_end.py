"""Say in a task's own log why its process was killed, and remember it for the executor.

    begin ─► Airflow's supervisor ─► its task has ended ─► was it told to end? ─► by Celeriac: why
                                                          │                   └► by the supervisor: it says so itself
                                                          └─► no, but by a signal: which one, and was memory short?
                                      the task's log ◄────┴─► CommandFailed, once Airflow knows the end

The line is written before the supervisor reports the end and uploads the log.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from celeriac.errors import CommandFailed, describe_error
from celeriac.log_lines import logger_for
from celeriac.task.result import Reason
from celeriac.worker.kill_evidence import MemoryCounters, describe_kill, read_memory
from celeriac.worker.outcome import not_run, signal_name

SOURCE = "celeriac"
"""The logger that the lines in a task's log name."""

log = logger_for(__name__)


class TaskEnd:
    """Watches the end of the task of one child, which runs one at a time."""

    def __init__(self) -> None:
        self._why_ended: Callable[[], str | None] = lambda: None
        self._before = MemoryCounters()
        self._is_ended_by_supervisor = False
        self._killed: CommandFailed | None = None

    def begin(self, why_ended: Callable[[], str | None]) -> None:
        """Begin with another workload. `why_ended` returns why the worker ended it; None if it did not."""
        self._why_ended, self._before = why_ended, read_memory()
        self._is_ended_by_supervisor, self._killed = False, None

    def on_supervisor_kill(self) -> None:
        self._is_ended_by_supervisor = True

    def on_end(self, code: int, task_log: Any) -> None:
        """Write to the task's log why it was ended, if it was. An error here must not keep Airflow from the end."""
        try:
            text = self._explain(code)
            if text is not None:
                task_log.error(text, logger=SOURCE)
        except Exception as error:  # noqa: BLE001 - the supervisor goes on to report the end
            log.warning("the end of a task cannot be explained: %s", describe_error(error))

    def raise_if_killed(self) -> None:
        """Raise `CommandFailed` if a signal from outside has ended the task. Airflow knows that it has failed."""
        killed, self._killed = self._killed, None
        if killed is not None:
            raise killed

    def _explain(self, code: int) -> str | None:
        if (why := self._why_ended()) is not None:
            return f"Celeriac's worker ended this task: {why}"
        if code >= 0 or self._is_ended_by_supervisor:
            return None
        detail = signal_detail(-code, self._before, read_memory())
        outcome = not_run(Reason.SIGNAL, detail)
        outcome["execution"] |= {"signal": signal_name(-code)}
        self._killed = CommandFailed(outcome)
        return f"{detail[0].upper()}{detail[1:]}"


def signal_detail(number: int, before: MemoryCounters, after: MemoryCounters, *, what: str = "its process") -> str:
    """Return in one line that a process was ended by a signal, and for KILL also what is known of the cause."""
    text = f"{what} was ended by {signal_name(number)}"
    return f"{text}: {describe_kill(before, after)}" if number == signal.SIGKILL else text
