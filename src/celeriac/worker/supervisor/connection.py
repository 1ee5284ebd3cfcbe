"""A socket to the worker: requests in, reports out."""

from __future__ import annotations

import json
import socket
import time
from functools import partial

from celeriac.shortages import is_shortage
from celeriac.worker.supervisor.capture import READ_SIZE
from celeriac.worker.supervisor.command import Command
from celeriac.worker.supervisor.journal import Journal
from celeriac.worker.supervisor.messages import FRAME, CommandReport, CommandRequest, StartError, StopReason
from celeriac.worker.supervisor.resources import RETRY_DELAY

TYPE_CHECKING = False  # importing `typing` would take a tenth of the supervisor's start

if TYPE_CHECKING:
    from typing import Any

    from celeriac.worker.supervisor.interfaces import Loop

SHUTDOWN_GRACE = 2.0  # seconds between TERM and KILL when the worker is gone
NO_GRACE = 0.0  # seconds between TERM and KILL of a command whose task may run elsewhere by now


class WorkerConnection:
    """A socket to one thread of the worker, for one command at a time."""

    def __init__(self, supervisor: Loop, sock: socket.socket, journal: Journal | None = None) -> None:
        self._supervisor, self._socket, self._journal = supervisor, sock, journal
        self._received = b""
        self._command: Command | None = None
        self._is_open = True
        supervisor.watch(sock.fileno(), self._on_readable)

    def report(self, task_id: str, report: CommandReport) -> None:
        """Record how a command ended, and send the report to the worker."""
        message = report.to_json()
        if self._journal is not None and task_id:
            # First, and even without a worker: the next worker reads the journal.
            self._journal.ended(task_id, message)
            message.update(self._journal.take_news())
        self._command = None
        if not self._is_open:
            return
        data = json.dumps(message).encode()
        self._send(FRAME.pack(len(data)) + data)

    def send_output(self, chunk: bytes) -> None:
        """Send a chunk of output to the worker."""
        self._send(FRAME.pack(len(chunk)) + chunk)

    def _send(self, data: bytes) -> None:
        """Send a report, the rest of it later if memory is exhausted for now: the worker waits for it."""
        try:
            while data and self._is_open:
                data = data[self._socket.send(data) :]
        except OSError as error:
            if is_shortage(error):
                self._supervisor.call_at(time.monotonic() + RETRY_DELAY, partial(self._send, data))
            # Otherwise the worker has gone, and the connection ends next.

    def _on_readable(self) -> None:
        try:
            data = self._socket.recv(READ_SIZE)
        except OSError as error:
            if is_shortage(error):
                return  # the loop calls again at once
            data = b""
        if not data:
            self._end()
            return
        self._received += data
        while len(self._received) >= FRAME.size:
            end = FRAME.size + FRAME.unpack_from(self._received)[0]
            if len(self._received) < end:
                break
            message, self._received = self._received[FRAME.size : end], self._received[end:]
            self._on_message(message)

    def _on_message(self, data: bytes) -> None:
        """Handle a message. The worker waits for a report of each request, so a bad one gets a report, too."""
        try:
            message = json.loads(data)
        except (ValueError, RecursionError):
            message = {"run": None}
        if not isinstance(message, dict) or "run" in message:
            if not self._supervisor.is_shutting_down:
                self._run(message.get("run") if isinstance(message, dict) else None)
        elif self._command is None:
            return
        elif "more" in message:
            self._command.on_taken()
        elif self._command.id == message.get("id"):
            reason = stop_reason(message.get("stop"))
            self._command.stop(reason, NO_GRACE if reason is StopReason.SUPERSEDED else None)

    def _run(self, fields: Any) -> None:
        try:
            request = CommandRequest.from_json(fields)
        except (ValueError, TypeError) as error:
            self._refuse("", f"its request is malformed: {error}")
            return
        if self._journal is not None:
            self._journal.started(request.id)
        try:
            self._command = Command(self._supervisor, partial(self.report, request.id), request, self.send_output)
        except Exception as error:  # noqa: BLE001 - such as a variable that no environment can hold
            self._refuse(request.id, str(error), getattr(error, "errno", None))
            return
        self._command.start()

    def _refuse(self, task_id: str, text: str, number: int | None = None) -> None:
        """Report a command that cannot be started."""
        self.report(task_id, CommandReport.not_started(StartError(errno=number, about="program", text=text)))

    def _end(self) -> None:
        self._is_open = False
        self._supervisor.unwatch(self._socket.fileno())
        self._socket.close()
        self._supervisor.reap()
        if self._command is not None:
            self._command.abandon_output()
        if self._command is not None:
            self._command.stop(StopReason.WORKER_GONE, min(self._command.grace, SHUTDOWN_GRACE))


def stop_reason(name: Any) -> StopReason:
    """Return the reason of this name. An unknown one, of another version, stops a command, too."""
    try:
        return StopReason(name)
    except ValueError:
        return StopReason.REVOKED
