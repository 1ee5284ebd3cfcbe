"""The command of a message: what the supervisor is asked to run, and what its report means. It needs no Celery.

message ─► request_of ─► supervisor ─► report ─► conclude ─► outcome
"""

from __future__ import annotations

from typing import Any

from celeriac.errors import CommandFailed
from celeriac.task.result import Reason
from celeriac.telemetry.trace_context import TRACEPARENT, new_trace
from celeriac.worker.outcome import SHELL, not_run, outcome_of
from celeriac.worker.output import OutputPolicy
from celeriac.worker.share import default_variables, own_variables
from celeriac.worker.supervisor.messages import CommandReport, CommandRequest
from celeriac.worker.supervisor_client import SupervisorDied

SELDOM = ("stdin", "stdin_is_secret", "stdin_file", "stdin_data", "scratch", "artifacts", "memory")
"""The fields of a message and a request that few commands have."""


def request_of(message: dict[str, Any], policy: OutputPolicy, *, sends_output: bool = False) -> CommandRequest:
    """Return the supervisor's request for the command of a message. `sends_output` says whether its output comes here
    as it is written."""
    command = message["command"]
    key, attempt = message["key"], message["attempt"]
    seldom: dict[str, Any] = {name: message[name] for name in SELDOM if name in message}
    if "artifacts" in seldom:
        seldom["artifacts_to"] = policy.artifacts_folder(key, attempt)
    return CommandRequest(
        id=message["id"],
        argv=[SHELL, "-c", command] if isinstance(command, str) else command,
        cwd=message["cwd"],
        env={
            **default_variables(message),
            **message["env"],
            **own_variables(message),
            "CELERIAC_KEY": key,
            "CELERIAC_ATTEMPT": str(attempt),
            **token_variable(message),
            **trace_variable(message),
        },
        secrets=message["secrets"],
        timeout=message["timeout"],
        grace=message["grace"],
        start_by=message.get("start_by"),
        output=policy.request(key, attempt, sent=message["output_cap"] if sends_output else None),
        inherits_input=policy.inherits_input,
        **seldom,
    )


def trace_variable(message: dict[str, Any]) -> dict[str, str]:
    """Return the variable with the span of the task, if the task is the root of a trace. All attempts of a task share
    its span."""
    if not message.get("traced") or TRACEPARENT in message["env"]:
        return {}
    first_id, attempt = message["id"], message["attempt"]
    return {TRACEPARENT: new_trace(first_id if attempt == 1 else first_id.removesuffix(f".{attempt}"))}


def token_variable(message: dict[str, Any]) -> dict[str, str]:
    """Return the variable with the fencing token of the claim: it grows with every claim. Commands can pass it on to
    the systems that they write to."""
    return {"CELERIAC_TOKEN": str(message["token"])} if "token" in message else {}


def conclude(
    report: CommandReport | SupervisorDied | None, message: dict[str, Any], policy: OutputPolicy
) -> dict[str, Any]:
    """Return the outcome of a command. A report of None means that it was revoked before it started.

    Raises as `execute_command` does.
    """
    if isinstance(report, SupervisorDied):
        raise CommandFailed(not_run(Reason.LOST, str(report)))
    if report is None:
        raise CommandFailed(not_run(Reason.REVOKED, "revoked before it started"))
    return outcome_of(report, message, policy)
