"""The checks of `airflow celeriac doctor` whether schedulers, API server and workers agree with the settings here.

A process that publishes nothing is not taken for sound: its line says that it is unknown.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field

from celery import Celery

from celeriac.airflow.component_facts import Facts
from celeriac.airflow.worker_replies import ask_all
from celeriac.backend.claims import claims_for
from celeriac.backend.claims.claim import Lease, LeaseState
from celeriac.backend.claims.stored import printable
from celeriac.broker.session import BrokerSession
from celeriac.cluster.worker_registry import REPLY_TIMEOUT
from celeriac.config.lease import LEASE_DURATION
from celeriac.doctor.check import Check, Problem, Subject, Unreadable, error, warning
from celeriac.server_errors import is_server_error

SAME_EVERYWHERE = "use the same settings on all machines, and restart what was started with others"


@dataclass(slots=True, kw_only=True)
class Agreement:
    """The facts that each process publishes, and those of this one."""

    here: Facts
    schedulers: Mapping[str, Facts | None] = field(default_factory=dict)
    """By the schedulers that have a heartbeat; None if one has recorded nothing."""

    api_servers: Mapping[str, Facts] = field(default_factory=dict)
    """By the names of those that have answered."""

    api_problems: Collection[str] = ()
    """Why it is not known what an API server uses."""


def scheduler_differences(facts: Agreement) -> Iterator[Problem]:
    for name, theirs in facts.schedulers.items():
        if theirs is None:
            text = f"what {name} uses is unknown: it has recorded nothing in Airflow's audit log since its start"
            yield warning(text, "restart it with this version of Celeriac as its executor")
        else:
            yield from differences(name, theirs, facts.here)


def api_server_differences(facts: Agreement) -> Iterator[Problem]:
    for name, theirs in facts.api_servers.items():
        yield from differences(name, theirs, facts.here)
    for problem in facts.api_problems:
        which = "an API server" if facts.api_servers else "the API server"
        yield warning(f"what {which} uses is unknown: {problem}", SAME_EVERYWHERE)


def differences(name: str, theirs: Facts, here: Facts) -> Iterator[Problem]:
    """Yield what another process has in another way than this one."""
    if theirs.version != here.version:
        text = f"{name} has Celeriac {printable(theirs.version)}, and here is {here.version}"
        yield warning(text, "install the same version everywhere")
    if theirs.keys[:1] != here.keys[:1]:
        kinds = {(True, False): "a signing key, and here is none", (False, True): "no signing key, and here is one"}
        kind = kinds.get((bool(theirs.keys), bool(here.keys)), "another signing key than here")
        yield error(f"{name} has {kind}", "set [celeriac] signing_key to the same keys on all machines")
    for setting, other, own in (
        ("[celery] broker_url", theirs.broker, here.broker),
        ("[celery] result_backend", theirs.backend, here.backend),
    ):
        if other != own:
            yield warning(f"{name} has {setting} {printable(other)}, and here is {own}", SAME_EVERYWHERE)


# — workers —


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenWorkers:
    """The workers with a lease in the result backend here, and those that reply on the broker here."""

    leases: Collection[Lease]
    replies: Collection[str]
    can_reply: bool = True
    """Whether workers accept remote control, by the settings here."""


def unknown_workers(facts: SeenWorkers) -> Iterator[Problem]:
    leased = {lease.name for lease in facts.leases}
    for name in sorted(set(facts.replies) - leased):
        text = f"what worker {printable(name)} uses is unknown: it replies on this broker, and has no lease here"
        remedy = "it is one of Airflow's own, or has another result_backend: give it that of this machine"
        yield warning(text, remedy)


def silent_workers(facts: SeenWorkers) -> Iterator[Problem]:
    for lease in facts.leases:
        if facts.can_reply and lease.name not in facts.replies:
            text = f"worker {lease.name} has a lease in this result backend, and does not reply on this broker"
            yield warning(text, "give it the broker_url of this machine, or set worker_enable_remote_control = True")


def read_workers(app: Celery, timeout: float) -> SeenWorkers:
    """Raise `Unreadable` if a server cannot be read: its own checks say why."""
    session = BrokerSession(app, timeout=max(timeout, 2 * REPLY_TIMEOUT))
    can_reply = bool(app.conf.worker_enable_remote_control)
    try:
        leases = read_leases(app, timeout)
        with session.connect() as connection:
            replies = ask_all(app, connection, "ping", [lease.name for lease in leases] if can_reply else ()).by_worker
    except Exception as problem:
        if not is_server_error(problem) and not session.is_broker_error(problem):
            raise
        raise Unreadable from None
    return SeenWorkers(leases=leases, replies=replies, can_reply=can_reply)


def read_leases(app: Celery, timeout: float) -> list[Lease]:
    """Return the leases of workers that live."""
    claims = claims_for(app, timeout=timeout)
    if claims is None:
        return []
    with closing(claims):
        records = claims.leases().values()
        leases = [each.lease for each in records if each.lease is not None and each.state is LeaseState.LIVE]
        ages = claims.heartbeat_ages([lease.holder for lease in leases])
    return [lease for lease in leases if ages.get(lease.holder, 0.0) <= LEASE_DURATION]


WORKER_CHECKS: tuple[Check[SeenWorkers], ...] = (
    Check(
        id="workers-known",
        sound="each worker that replies on the broker has a lease in the result backend",
        risk="Nothing is known of its version and its key, and its death is noticed late.",
        look=unknown_workers,
    ),
    Check(
        id="workers-reply",
        sound="each worker with a lease replies on this broker",
        risk="It takes no tasks from here.",
        look=silent_workers,
    ),
)


def seen_workers_subject(app: Celery, timeout: float) -> Subject[SeenWorkers]:
    return Subject("workers of this broker", lambda: read_workers(app, timeout), WORKER_CHECKS)
