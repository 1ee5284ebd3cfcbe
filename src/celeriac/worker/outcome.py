"""The outcome of a command: the result that travels back to the executor.

report ─► judge: reason and detail ─► outcome ─► secrets masked ─► returned, or raised as `CommandFailed`
"""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from celeriac.errors import CommandFailed
from celeriac.task.result import Reason
from celeriac.worker.kill_evidence import KillWatch
from celeriac.worker.output import OutputPolicy
from celeriac.worker.supervisor.masking import Masker
from celeriac.worker.supervisor.messages import CommandReport, StartError, StopReason

HOST = socket.gethostname()
KILLS = KillWatch()
"""What the kernel has killed for lack of memory, since this process began or since the last KILL of a command."""

SHELL = "/bin/sh"

START_ERRORS = {
    errno.ENOENT: "there is no such program",
    errno.EACCES: "it is not executable",
    errno.ENOEXEC: "it is neither a binary program nor a script that begins with #!",
    errno.E2BIG: "its arguments and environment are too long for this system",
    errno.ENOTDIR: "a part of its path is not a directory",
}
INPUT_ERRORS = {errno.ENOENT: "does not exist", errno.EACCES: "is not readable", 0: "is not a regular file"}
CWD_ERRORS = {errno.ENOENT: "does not exist", errno.ENOTDIR: "is not a directory", errno.EACCES: "is not accessible"}

STOP_DETAILS = {
    StopReason.REVOKED: (Reason.REVOKED, "revoked while it ran"),
    StopReason.WORKER_GONE: (Reason.LOST, "its worker ended"),
    StopReason.WORKER_SILENT: (Reason.LOST, "its worker could not renew its lease"),
    StopReason.SUPERSEDED: (Reason.LOST, "its worker was declared dead, so the task may run elsewhere"),
    StopReason.TOO_LATE: (Reason.LOST, "its worker's lease expired before it started"),
}


def outcome_of(report: CommandReport, message: Mapping[str, Any], policy: OutputPolicy) -> dict[str, Any]:
    """Return the outcome of a command that succeeded. Raises `CommandFailed` with the outcome of any other."""
    reason, detail = judge(report, message, policy)
    outcome = {"reason": reason, "detail": detail, "execution": execution_of(report)}
    if reason is None and not (policy.keep or policy.is_read):
        discard_files(outcome)
    mask(outcome, secrets_of(message))
    if reason is not None:
        raise CommandFailed(outcome)
    return outcome


def not_run(reason: Reason, detail: str) -> dict[str, Any]:
    """Return the outcome of a command without a report."""
    return {"reason": reason, "detail": detail, "execution": {"host": HOST}}


def judge(report: CommandReport, message: Mapping[str, Any], policy: OutputPolicy) -> tuple[Reason | None, str | None]:
    """Return why a command failed, and a detail for a person. The reason is None if the command succeeded."""
    if report.error is not None:
        return Reason.NOT_STARTED, describe_start_error(report.error, message)
    if report.stopped is StopReason.TIMEOUT:
        return Reason.TIMEOUT, f"it ran longer than {message['timeout']:g} s"
    if report.stopped is StopReason.MEMORY:
        from celeriac.task.size import format_size  # late: few commands have a limit

        used, limit = format_size(report.peak_memory or 0), format_size(message["memory"])
        return Reason.MEMORY, f"it used {used} of memory, and may use {limit}"
    if report.stopped is not None:
        return STOP_DETAILS[report.stopped]
    code = exit_code_of(report)
    if code is None:
        return Reason.LOST, "its end was not observed"
    if code < 0:
        cause = KILLS.explain() if code == -signal.SIGKILL else ""
        return Reason.SIGNAL, f"ended by {signal_name(-code)}{cause}"
    if code > 0:
        return Reason.EXIT_CODE, f"exit code {code}"
    if policy.keep and report.output_error:
        return Reason.OUTPUT, f"its output was not kept: {report.output_error}"
    if report.artifacts_error:
        return Reason.OUTPUT, f"its artifacts were not kept: {report.artifacts_error}"
    return None, report.output_error


def describe_start_error(error: StartError, message: Mapping[str, Any]) -> str:
    """Return one line that names the program, the working directory or the input, and the problem with it."""
    if error.about == "cwd":
        return f"cwd {message['cwd']!r} {CWD_ERRORS.get(error.errno or 0, error.text)}"
    if error.about == "stdin":
        return f"stdin_file {message['stdin_file']!r} {INPUT_ERRORS.get(error.errno or 0, error.text)}"
    if error.about == "artifacts":
        return "its artifacts have no place here: give --output to celeriac run, serve or worker, where it runs"
    if error.about == "scratch":
        return f"its scratch folder cannot be made in {error.text}"
    program = SHELL if isinstance(message["command"], str) else message["command"][0]
    if error.about == "interpreter":
        return f"cannot start {program!r}: {error.text}"
    return f"cannot start {program!r}: {START_ERRORS.get(error.errno or 0, error.text)}"


def execution_of(report: CommandReport) -> dict[str, Any]:
    """Return the facts of one run in the format of the result."""
    code = exit_code_of(report)
    return {
        "host": HOST,
        "pid": report.pid,
        "started": report.started,
        "duration": report.duration,
        "exit_code": code if code is None or code >= 0 else None,
        "signal": signal_name(-code) if code is not None and code < 0 else None,
        "peak_memory": report.peak_memory,
        "leftovers_ended": report.leftovers_ended,
        "stdout": report.stdout.to_json(),
        "stderr": report.stderr.to_json(),
    }


def exit_code_of(report: CommandReport) -> int | None:
    """Return the exit code, or the negative number of a signal; None if the end was not observed."""
    return None if report.status is None else os.waitstatus_to_exitcode(report.status)


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal has no name
        return f"signal {number}"


def discard_files(outcome: dict[str, Any]) -> None:
    """Delete the files with the output of a command."""
    for name in ("stdout", "stderr"):
        stream = outcome["execution"][name]
        if stream["path"] is not None:
            Path(stream["path"]).unlink(missing_ok=True)
            stream["path"] = None


def secrets_of(message: Mapping[str, Any]) -> list[str]:
    """Return the texts that the command of a message knows, and no message may show."""
    secrets = [message["env"][name] for name in message["secrets"]]
    return [*secrets, message["stdin"]] if message.get("stdin_is_secret") and message.get("stdin") else secrets


def mask(outcome: dict[str, Any], secrets: list[str]) -> None:
    """Replace secrets in the output lines of the result: a supervisor of an earlier version has not."""
    masker = Masker(secrets)
    for name in ("stdout", "stderr") if masker.longest else ():
        stream = outcome["execution"][name]
        stream["tail"] = masker.mask(stream["tail"].encode()).decode("utf-8", "replace")
