"""Ask the live owner of a run to do something: a `celeriac run` has its tasks in memory, and reads no requests from the
ledger.

OwnerRequest ─► the owner's socket, if it is on this machine ─► its reply
             └► otherwise, or without a reply: the broker, if there is one ─► the reply of the owner
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from celeriac.control.broker_client import BrokerControlClient
from celeriac.control.unix_client import UnixControlClient
from celeriac.control.wire import ReplyMessage
from celeriac.errors import CeleriacError, InvalidConfig
from celeriac.executor.requests import (
    CancelRequest,
    LimitsReply,
    LimitsRequest,
    OwnerRequest,
    PauseReply,
    PauseRequest,
    PriorityOutcome,
    PriorityRequest,
    Request,
)
from celeriac.ledger.owned_run import RunKey
from celeriac.server_errors import is_server_error

OpenConnection = Callable[[], AbstractContextManager[Any]]
"""Open a connection to the broker. Raises `BrokerUnavailable`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveOwner:
    """The owner of one run."""

    run: str
    label: str
    """As the ledger names it: "process 4711 on host"."""

    asked_by: str
    open_connection: OpenConnection | None = None
    """None if no broker is known."""

    @property
    def executor(self) -> str:
        """The owner as it names itself in its replies."""
        pid, _, host = self.label.removeprefix("process ").partition(" on ")
        return f"{pid}@{host}"

    def cancel(self, keys: Collection[str] | None) -> None:
        """Cancel the tasks of these keys; with None the whole run. Raises `InvalidConfig` if the owner does not do it.

        Without keys nothing is asked: to the owner, a request without names is for the whole run.
        """
        if keys is not None and not keys:
            return
        names = () if keys is None else tuple(keys)
        reply = self._ask(self._request(cancel=CancelRequest(names=names)))
        if reply is None or reply.cancelled is None:
            raise self._unreachable("cancel its tasks with celeriac cancel KEY, or stop it with Ctrl-C, where it runs")

    def change_priority(self, key: str, priority: int) -> bool:
        """Change a priority. Return whether the task waits. Raises `InvalidConfig` if the owner does not reply.

        A service has many runs, and knows the task as RUN/KEY.
        """
        change = PriorityRequest(name=key, priority=priority, asked_by=self.asked_by)
        of_service = replace(change, name=str(RunKey(self.run, key)))
        requests: Sequence[Request] = (of_service, self._request(priority=change))
        replies = [reply for request in requests if (reply := self._ask(request)) is not None]
        if not replies:
            raise self._unreachable("only its own process can change a priority")
        return any(reply.priority is PriorityOutcome.CHANGED for reply in replies)

    def pause(self, queues: Sequence[str], *, resume: bool) -> PauseReply:
        """Pause the run or these queues of it, or resume them. Raises `InvalidConfig` if the owner does not do it."""
        request = PauseRequest(resume=resume, queues=tuple(queues), asked_by=self.asked_by)
        reply = self._ask(self._request(pause=request))
        if reply is None or reply.paused is None:
            raise self._unreachable("press Ctrl-Z where it runs")
        return reply.paused

    def change_limits(
        self,
        parallelism: int | None,
        queue_limits: Mapping[str, int | None],
        shared_limits: Mapping[str, Mapping[str, int | str | None]] | None = None,
    ) -> LimitsReply:
        """Change the limits of the run. Raises `InvalidConfig` if the owner does not do it, or refuses them."""
        request = LimitsRequest(
            parallelism=parallelism,
            queue_limits=queue_limits,
            shared_limits=shared_limits or {},
            asked_by=self.asked_by,
        )
        reply = self._ask(self._request(limits=request), with_error=True)
        if reply is not None and reply.error is not None:
            problem, _, remedy = reply.error.partition("; ")
            raise InvalidConfig(f"run {self.run!r}", problem, remedy or "give another value")
        if reply is None or reply.limits is None:
            raise self._unreachable("only its own process can change its limits")
        return reply.limits

    def _request(self, **request: Any) -> OwnerRequest:
        return OwnerRequest(executor=self.executor, run=self.run, asked_by=self.asked_by, **request)

    def _ask(self, request: Request, *, with_error: bool = False) -> ReplyMessage | None:
        """Return the owner's reply; None if it cannot be reached, or does not know such requests. `with_error` says
        whether it may be an error."""
        replies = all_replies(request, self.open_connection)
        of_owner = (reply for reply in replies if reply.executor == self.executor)
        return next((reply for reply in of_owner if with_error or reply.error is None), None)

    def _unreachable(self, remedy: str) -> InvalidConfig:
        return InvalidConfig(f"run {self.run!r}", f"its owner, {self.label}, cannot be asked from here", remedy)


def all_replies(request: Request, open_connection: OpenConnection | None) -> Iterator[ReplyMessage]:
    """Yield the replies of the executors of this machine, then of those on the broker. A broker that cannot be reached
    has none."""
    yield from UnixControlClient().send_request(request)
    if open_connection is None:
        return
    try:
        with open_connection() as connection:
            yield from BrokerControlClient(connection).send_request(request)
    except Exception as error:
        if not isinstance(error, CeleriacError) and not is_server_error(error):
            raise
