"""The Celery task: one message, one command, one report.

message ─► request_of ─► Runner ─► report ─► conclude: returns if the command ended well, raises if not
"""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from celery import Celery

from celeriac.broker.app import TASK_NAME, TASK_OPTIONS, priority_settings_for
from celeriac.config.signing import SigningKeys
from celeriac.errors import CommandFailed
from celeriac.task.result import Reason
from celeriac.worker.output import OutputPolicy
from celeriac.worker.runner import Runner
from celeriac.worker.signature_check import SignatureVerifier
from celeriac.worker.supervisor_client import Report, SupervisorDied

HOST = socket.gethostname()

SHELL = "/bin/sh"

NOT_STARTED = {
    errno.ENOENT: "there is no such program",
    errno.EACCES: "it may not be executed",
    errno.ENOEXEC: "it is neither a program nor a script that names its interpreter",
    errno.E2BIG: "its arguments and environment are longer than the system allows",
    errno.ENOTDIR: "its path leads through something that is no directory",
}
BAD_CWD = {errno.ENOENT: "does not exist", errno.ENOTDIR: "is no directory", errno.EACCES: "may not be entered"}


def execute_command_with(runner: Runner, policy: OutputPolicy) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The body of the Celery task, for a worker whose threads wait for their commands."""

    def execute_command(message: dict[str, Any]) -> dict[str, Any]:
        report: Report | SupervisorDied | None
        try:
            report = runner.run(request_of(message, policy))
        except SupervisorDied as died:
            report = died
        return conclude(message, report, policy)

    return execute_command


def register(
    app: Celery,
    runner: Runner | None = None,
    policy: OutputPolicy | None = None,
    *,
    signing_key: str | None = None,
) -> None:
    """Teach an app to execute commands: then any Celery worker of it will do, with processes or threads.

    To be called once the app is configured. Its settings stay what they are, but for the levels of urgency inside the
    broker, which must be the same wherever messages are sent and taken. With `signing_key` (several, with commas
    between them) nothing runs that was not signed with it.
    """
    app.conf.update(priority_settings_for(app))
    body = execute_command_with(runner or Runner(), policy or OutputPolicy())
    guard = SignatureVerifier(SigningKeys.of(signing_key))

    def execute_command(task: Any, message: dict[str, Any]) -> dict[str, Any]:
        admit(guard, message, task.request.id)
        return body(message)

    app.task(name=TASK_NAME, bind=True, acks_late=True, track_started=True, **TASK_OPTIONS)(execute_command)


def admit(guard: SignatureVerifier, message: Any, task_id: str | None) -> None:
    """Raises `CommandFailed` for a message that is not to be run."""
    if (why := guard.reject_reason(message, task_id)) is not None:
        raise CommandFailed(not_run(Reason.REFUSED, f"its worker did not run it: {why}"))


def conclude(message: dict[str, Any], report: Report | SupervisorDied | None, policy: OutputPolicy) -> dict[str, Any]:
    """Put into words how a command ended. Raises `CommandFailed` with them unless it ended well."""
    match report:
        case None:
            raise CommandFailed(not_run(Reason.REVOKED, "revoked before it started"))
        case SupervisorDied() as died:
            raise CommandFailed(not_run(Reason.LOST, str(died)))
    reason, detail = judge(report, message, policy)
    if reason is None and not policy.keep:
        discard_files(report)
    outcome = {"reason": reason, "detail": detail, "execution": execution_of(report)}
    mask(outcome, [message["env"][name] for name in message["secrets"]])
    if reason is not None:
        raise CommandFailed(outcome)
    return outcome


def not_run(reason: Reason, detail: str) -> dict[str, Any]:
    return {"reason": reason, "detail": detail, "execution": {"host": HOST}}


def request_of(message: dict[str, Any], policy: OutputPolicy) -> dict[str, Any]:
    command = message["command"]
    key, attempt = message["key"], message["attempt"]
    return {
        "id": message["id"],
        "argv": [SHELL, "-c", command] if isinstance(command, str) else command,
        "cwd": message["cwd"],
        "env": {**message["env"], "CELERIAC_KEY": key, "CELERIAC_ATTEMPT": str(attempt), **token_of(message)},
        "timeout": message["timeout"],
        "grace": message["grace"],
        "start_by": message.get("start_by"),
        "output": policy.request(key, attempt),
    }


def token_of(message: dict[str, Any]) -> dict[str, str]:
    """The fencing token of a command that was claimed, for what it writes to: it grows with every claim."""
    return {"CELERIAC_TOKEN": str(message["token"])} if "token" in message else {}


def judge(report: Report, message: dict[str, Any], policy: OutputPolicy) -> tuple[Reason | None, str | None]:
    """How a command ended, as a reason and in words."""
    if report["error"] is not None:
        return Reason.NOT_STARTED, word_not_started(report["error"], message)
    code = None if report["status"] is None else os.waitstatus_to_exitcode(report["status"])
    match report["stopped"]:
        case "timeout":
            return Reason.TIMEOUT, f"it ran longer than {message['timeout']:g} s"
        case "revoked":
            return Reason.REVOKED, "revoked while it ran"
        case "worker gone":
            return Reason.LOST, "its worker went away"
        case "worker silent":
            return Reason.LOST, "its worker fell silent: others had to take it for dead"
        case "superseded":
            return Reason.LOST, "it is no longer this worker's to run: others took the worker for dead"
        case "too late":
            return Reason.LOST, "it did not start while its worker's lease was good"
    if code is None:
        return Reason.LOST, "its end was not seen"
    if code < 0:
        return Reason.SIGNAL, f"ended by {signal_name(-code)}"
    if code > 0:
        return Reason.EXIT_CODE, f"exit code {code}"
    if policy.keep and report["output_error"]:
        return Reason.OUTPUT, f"its output was not kept: {report['output_error']}"
    return None, report["output_error"]


def word_not_started(error: dict[str, Any], message: dict[str, Any]) -> str:
    number = error["errno"]
    if error["about"] == "cwd":
        return f"cwd {message['cwd']!r} {BAD_CWD.get(number, error['text'])}"
    program = SHELL if isinstance(message["command"], str) else message["command"][0]
    return f"cannot start {program!r}: {NOT_STARTED.get(number, error['text'])}"


def execution_of(report: Report) -> dict[str, Any]:
    code = None if report["status"] is None else os.waitstatus_to_exitcode(report["status"])
    return {
        "host": HOST,
        "pid": report["pid"],
        "started": report["started"],
        "duration": report["duration"],
        "exit_code": code if code is None or code >= 0 else None,
        "signal": signal_name(-code) if code is not None and code < 0 else None,
        "peak_memory": report["peak_memory"],
        "leftovers_ended": report["leftovers_ended"],
        "stdout": report["stdout"],
        "stderr": report["stderr"],
    }


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal has no name
        return f"signal {number}"


def discard_files(report: Report) -> None:
    for stream in (report["stdout"], report["stderr"]):
        if stream["path"] is not None:
            Path(stream["path"]).unlink(missing_ok=True)
            stream["path"] = None


def mask(outcome: dict[str, Any], secrets: list[str]) -> None:
    """No secret value leaves in the lines that travel back."""
    for stream in ("stdout", "stderr"):
        for secret in filter(None, secrets):
            outcome["execution"][stream]["tail"] = outcome["execution"][stream]["tail"].replace(secret, "******")
