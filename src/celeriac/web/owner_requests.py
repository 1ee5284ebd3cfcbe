"""Requests to the executor of a run: what a task waits for, which the executor knows best, and a new priority."""

from __future__ import annotations

from dataclasses import replace

from celeriac.broker.session import BrokerSession
from celeriac.cluster.worker_registry import REPLY_TIMEOUT
from celeriac.control.broker_client import BrokerControlClient
from celeriac.control.unix_client import UnixControlClient
from celeriac.control.wire import ReplyMessage
from celeriac.errors import CeleriacError
from celeriac.executor.requests import ExplainRequest, Explanation, PriorityOutcome, PriorityRequest
from celeriac.ledger.explanation import explain_from_ledger
from celeriac.ledger.owned_run import RunKey
from celeriac.ledger.views import RunView
from celeriac.server_errors import is_server_error
from celeriac.web.checks import cached_app
from celeriac.web.reads import Reads


def explain(reads: Reads, run: str, key: str, *, live: bool) -> list[tuple[Explanation, str]]:
    """Return the history of a task, with the executor that sent it, or "" for the ledger. Raises `NotFound`."""
    view, task = reads.task(run, key)
    if live and view.owner is not None and not task.state.is_final:
        found = ask_owner(reads, view, key)
        if found:
            return found
    return [(explain_from_ledger(reads.ledger, view, key), "")]


def ask_owner(reads: Reads, run: RunView, key: str) -> list[tuple[Explanation, str]]:
    """Ask the executors that can be reached. Return the reply of the one that owns the run, if it replies.

    `celeriac serve` knows its tasks as RUN/KEY, and `celeriac run` as KEY.
    """
    for name in (str(RunKey(run.name, key)), key):
        for reply in replies_to(reads, ExplainRequest(name=name)):
            if is_of_owner(reply, run.owner) and (histories := reply.explanations()):
                return [(replace(history, key=key), reply.executor) for history in histories[:1]]
    return []


def is_of_owner(reply: ReplyMessage, owner: str | None) -> bool:
    """Return whether a reply came from the process that owns a run."""
    pid, _, host = reply.executor.partition("@")
    return owner == f"process {pid} on {host}"


def change_priority(reads: Reads, run: RunView, key: str, priority: int) -> PriorityOutcome | None:
    """Ask the owner of a run to change a priority. Return None if it cannot be reached, or knows no such request."""
    request = PriorityRequest(name=str(RunKey(run.name, key)), priority=priority)
    replies = (reply for reply in replies_to(reads, request) if is_of_owner(reply, run.owner))
    return next((reply.priority for reply in replies if reply.priority is not None), None)


def replies_to(reads: Reads, request: ExplainRequest | PriorityRequest) -> list[ReplyMessage]:
    """Return the replies of the executors of this machine; if none of them knows the task, also of those on the
    broker."""
    replies = list(UnixControlClient().send_request(request))
    connection = reads.sources.connection
    is_known = any(
        reply.encoded_explanations or reply.priority not in (None, PriorityOutcome.UNKNOWN) for reply in replies
    )
    if connection is None or is_known:
        return replies
    session = BrokerSession(cached_app(connection), timeout=max(connection.operation_timeout, 2 * REPLY_TIMEOUT))
    try:
        with session.open() as opened:
            return [*replies, *BrokerControlClient(opened).send_request(request)]
    except Exception as error:
        if not isinstance(error, CeleriacError) and not is_server_error(error):
            raise
        return replies
