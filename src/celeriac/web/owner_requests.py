"""Requests to the executor of a run: what a task waits for, which the executor knows best, and changes of it."""

from __future__ import annotations

from msgspec.structs import replace

from celeriac.broker.session import BrokerSession
from celeriac.cluster.worker_registry import REPLY_TIMEOUT
from celeriac.control.wire import ReplyMessage
from celeriac.executor.requests import ExplainRequest, Explanation
from celeriac.ledger.explanation import explain_from_ledger
from celeriac.ledger.owned_run import RunKey
from celeriac.ledger.views import RunView
from celeriac.runs.live_owner import LiveOwner, OpenConnection, all_replies
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


def owner_of(reads: Reads, run: str, label: str, asked_by: str) -> LiveOwner:
    """Return the owner of a run, to be asked."""
    return LiveOwner(run=run, label=label, asked_by=asked_by, open_connection=open_connection_of(reads))


def replies_to(reads: Reads, request: ExplainRequest) -> list[ReplyMessage]:
    """Return the replies of the executors of this machine; if none of them knows the task, also of those on the
    broker."""
    replies = list(all_replies(request, None))
    is_known = any(reply.encoded_explanations for reply in replies)
    return replies if is_known else list(all_replies(request, open_connection_of(reads)))


def open_connection_of(reads: Reads) -> OpenConnection | None:
    """Return how to connect to the broker of a server, if it has one."""
    connection = reads.sources.connection
    if connection is None:
        return None
    timeout = max(connection.operation_timeout, 2 * REPLY_TIMEOUT)
    return BrokerSession(cached_app(connection), timeout=timeout).open
