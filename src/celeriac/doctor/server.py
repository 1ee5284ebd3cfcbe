"""The shared part of the checks of servers: the one error that a server gave, and the check that reports it.

A server is used as a run would use it, and the first error ends that. `owner_of` names the check that reports it, so
that one fault is one line.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from celeriac.doctor.check import Check, Problem, error, warning
from celeriac.errors import BrokerBlocked, QueueRefused, describe_error
from celeriac.server_errors import (
    CERTIFICATE,
    CLUSTER,
    CONNECTIONS,
    DATABASE,
    LOGIN,
    MEMORY,
    READ_ONLY,
    REDIS_CODES,
    RIGHTS,
    ServerProblem,
    chain_of,
    diagnose,
    is_server_error,
    remedy_for,
)

ENTRANCE = (LOGIN, CERTIFICATE, DATABASE)
VIRTUAL_HOST = "virtual host"
NEARLY = 0.9  # of a limit that is nearly reached
MAX_CLOCK_DIFFERENCE = 5.0  # seconds; a request and a claim that a worker stores between two renewals take less
SEE_LOG = "see the log of the server"
REMEDIES = {"reachable": "start the server, or correct the host and the port in the URL", "login": SEE_LOG}
"""The checks of every server that report its error, each with a remedy for an error that says none."""


@dataclass(slots=True, kw_only=True)
class ServerFacts:
    """The facts of every server."""

    error: BaseException | None = None
    """The error of the first request that failed."""

    clock: float | None = None
    """Seconds by which the server's clock is ahead of this machine's."""

    connections: tuple[int, int] | None = None
    """How many connections the server has, and how many it allows."""

    IDS: ClassVar[Collection[str]] = ()
    """The checks that may report `error`, beside `REMEDIES` and `writable`."""

    def problems(self, id: str) -> Iterator[Problem]:
        """Yield the server's error if the check of this id reports it."""
        if self.error is None:
            return
        owner = owner_of(self.error)
        if id == (owner if owner in (*REMEDIES, *self.IDS) else "writable"):
            yield refusal(self.error, REMEDIES.get(owner, SEE_LOG))


def refusal(problem: BaseException, otherwise: str = SEE_LOG) -> Problem:
    """Return the error of a server as a problem: its own words, and the remedy, `otherwise` if none is known."""
    cause = next((link for link in chain_of(problem) if isinstance(link, QueueRefused)), None)
    if cause is not None:
        text, _, remedy = str(cause).rpartition("; ")
        return error(text, remedy)
    inner = getattr(problem, "error", None) or problem.__cause__ or problem
    text = describe_error(inner).partition(" : <")[0]  # the client of a Sentinel shows its whole state
    return error(text.rstrip("."), remedy_for(problem) or otherwise)


OWNERS: tuple[tuple[Any, str], ...] = (
    (CLUSTER, "redis-cluster"),
    (MEMORY, "redis-memory"),
    (REDIS_CODES["MISCONF"], "redis-persistence"),
    (CONNECTIONS, "connections"),
    *((diagnosis, "login") for diagnosis in ENTRANCE),
)
POOLER_TEXTS = ("statement pooling", "unsupported startup parameter")


def owner_of(problem: BaseException) -> str:
    """Return the id of the check that reports an error of a server."""
    links = [*chain_of(problem)]
    for link in links:
        if isinstance(link, QueueRefused):
            return "rights" if "ACCESS_REFUSED" in link.answer else "rabbitmq-queues"
        if isinstance(link, BrokerBlocked):
            return "rabbitmq-alarm"
    text = " ".join(str(link) for link in links)
    if any(part in text for part in POOLER_TEXTS):
        return "postgresql-pooler"
    diagnosis = diagnose(problem)
    if diagnosis is None:
        return "writable"
    if diagnosis.problem is ServerProblem.UNREACHABLE:
        return "reachable"
    if diagnosis == READ_ONLY:
        return "postgresql-read-only" if "read-only transaction" in text else "redis-replica"
    if diagnosis == RIGHTS:
        return owner_of_right(text.lower())
    if VIRTUAL_HOST in (diagnosis.remedy or ""):
        return "login"
    return next((owner for known, owner in OWNERS if known == diagnosis), "writable")


def owner_of_right(text: str) -> str:
    """Return the check for a missing right, by the reply of the server in lower case."""
    if "access a key" in text or "of the keys" in text or "access a channel" in text or "of the channels" in text:
        return "redis-keys"
    if any(f"'{command}" in text for command in ("eval", "evalsha", "script")):
        return "redis-scripts"
    return "rights"


def attempt(use: Callable[[], object]) -> BaseException | None:
    """Use a server. Return its error; None if it gave none."""
    try:
        use()
    except Exception as problem:
        if not is_server_error(problem) and not isinstance(problem, QueueRefused | BrokerBlocked):
            raise
        return problem
    return None


# — decisions —


def clock_problem(facts: ServerFacts) -> Iterator[Problem]:
    if facts.clock is not None and abs(facts.clock) > MAX_CLOCK_DIFFERENCE:
        way = "ahead of" if facts.clock > 0 else "behind"
        text = f"the server's clock is {abs(facts.clock):.0f} s {way} this machine's"
        yield warning(text, "set both clocks by NTP")


def connections_problem(facts: ServerFacts) -> Iterator[Problem]:
    yield from facts.problems("connections")
    if facts.error is None and facts.connections is not None:
        used, allowed = facts.connections
        if allowed and used >= NEARLY * allowed:
            yield warning(
                f"{used:,} of at most {allowed:,} connections are open", "allow more connections, or use fewer"
            )


def reporting(id: str) -> Callable[[ServerFacts], Iterator[Problem]]:
    """Return the look of a check that reports the server's error alone."""
    return lambda facts: facts.problems(id)


REACHABLE: Check[ServerFacts] = Check(
    id="reachable",
    sound="it answers",
    risk="Tasks wait until it does.",
    look=reporting("reachable"),
    is_vital=True,
)
LOGIN_CHECK: Check[ServerFacts] = Check(
    id="login",
    sound="the login is accepted",
    risk="Commands and workers refuse to start.",
    look=reporting("login"),
    is_vital=True,
)
RIGHTS_CHECK: Check[ServerFacts] = Check(
    id="rights",
    sound="this user has the rights that are needed",
    risk="Tasks cannot be sent, or their results cannot be stored.",
    look=reporting("rights"),
)
WRITABLE: Check[ServerFacts] = Check(
    id="writable",
    sound="it can be read and written",
    risk="Tasks wait until it can.",
    look=reporting("writable"),
)
CLOCK: Check[ServerFacts] = Check(
    id="clock",
    sound="its clock agrees with this machine's",
    risk="Times and ages are wrong.",
    look=clock_problem,
)
CONNECTIONS_CHECK: Check[ServerFacts] = Check(
    id="connections",
    sound="it allows more connections",
    risk="Workers and executors are refused.",
    look=connections_problem,
)
