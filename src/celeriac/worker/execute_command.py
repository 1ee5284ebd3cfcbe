"""The Celery task: one message, one command, one outcome.

message ─► request_of ─► Runner ─► report ─► outcome_of: returned if the command succeeded, else raised
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from celery import Celery

from celeriac.backend.outputs import OutputStore
from celeriac.backend.refused import refused_store_for
from celeriac.broker.app import TASK_OPTIONS, priority_settings_for
from celeriac.broker.command_message import TASK_NAME
from celeriac.config.schema import DEFAULT_MAX_MESSAGE_SIZE
from celeriac.config.signing import SigningKeys
from celeriac.errors import CommandFailed
from celeriac.task.result import Reason
from celeriac.worker.command import conclude, request_of
from celeriac.worker.gate import Gate
from celeriac.worker.intake import gated_strategy
from celeriac.worker.outcome import not_run
from celeriac.worker.output import OutputPolicy
from celeriac.worker.output_sender import OutputSender
from celeriac.worker.refusals import Refusals
from celeriac.worker.runner import Runner
from celeriac.worker.signature_check import SignatureVerifier
from celeriac.worker.supervisor.messages import CommandReport
from celeriac.worker.supervisor_client import SupervisorDied

STORE_TIMEOUT = 2.0  # seconds for one operation on the store of refused messages


def execute_command(
    message: dict[str, Any], runner: Runner, policy: OutputPolicy, outputs: OutputStore | None = None
) -> dict[str, Any]:
    """Run the command of a message to its end. `outputs` carries its output to the executor, if that wants it.

    Return its outcome if it succeeded. Raises `CommandFailed` with the outcome if it did not succeed, or did not run.
    """
    deadline = message.get("deadline")
    if deadline is not None and time.time() >= deadline:
        raise CommandFailed(not_run(Reason.DEADLINE, "its deadline had passed when its worker was about to start it"))
    policy.remove_later_attempts(message["key"], message["attempt"])
    report: CommandReport | SupervisorDied | None
    sender = None if outputs is None else sender_for(message, runner, outputs)
    request = request_of(message, policy, sends_output=sender is not None)
    try:
        report = runner.run(request) if sender is None else runner.run(request, sender.take)
    except SupervisorDied as error:
        report = error
    else:
        if sender is not None:
            sender.end()
    return conclude(report, message, policy)


def sender_for(message: dict[str, Any], runner: Runner, outputs: OutputStore) -> OutputSender | None:
    """Return what sends the output of a command; None if it is not wanted."""
    if message.get("output_cap") is None:
        return None
    task_id = message["id"]
    return OutputSender(outputs, task_id, message["token"], should_stop=lambda: runner.is_cut_short(task_id))


def register_task(
    app: Celery,
    runner: Runner | None = None,
    policy: OutputPolicy | None = None,
    *,
    signing_key: str | None = None,
    max_message_size: int = DEFAULT_MAX_MESSAGE_SIZE,
) -> None:
    """Register the task with an app, so that any Celery worker of that app runs commands, in processes or threads.

    Call it once the app is configured. It changes no setting but the priorities inside the broker, which senders and
    workers must share. With `signing_key`, or several keys with commas between them, only messages that were signed
    with one of them run. Messages for this task that no publisher can have sent are refused, and so are bodies of more
    than `max_message_size` bytes. Messages for other tasks are left to Celery.
    """
    app.conf.update(priority_settings_for(app))
    runner, policy = runner or Runner(), policy or OutputPolicy()
    refusals = Refusals(refused_store_for(app, timeout=STORE_TIMEOUT))
    verifier = SignatureVerifier(SigningKeys.of(signing_key), refusals=refusals)

    def run_task(task: Any, message: dict[str, Any]) -> dict[str, Any]:
        admit(verifier, message, task.request)
        return execute_command(message, runner, policy)

    options = {**TASK_OPTIONS, "Strategy": staticmethod(gated_strategy(Gate(max_size=max_message_size), refusals))}
    app.task(name=TASK_NAME, bind=True, acks_late=True, track_started=True, **options)(run_task)


def admit(verifier: SignatureVerifier, message: Any, request: Any, claim: Callable[[], object] = lambda: None) -> None:
    """Raise `CommandFailed` for a message that the gate has refused, or that has a bad signature.

    Its id may be that of another message, whose result must stay. So `claim` is called first: it raises if the task has
    been claimed.
    """
    if (problem := verifier.reject_reason(message, request)) is not None:
        claim()
        raise CommandFailed(not_run(Reason.REFUSED, f"its worker did not run it: {problem}"))
