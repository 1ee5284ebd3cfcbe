"""Checks of the workers, by their leases, and of the queues."""

from __future__ import annotations

import shlex
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from celery import Celery

from celeriac import __version__
from celeriac.backend.claims import claims_for
from celeriac.backend.claims.claim import Lease, LeaseState
from celeriac.backend.claims.redis import RedisClaims
from celeriac.backend.claims.stored import printable
from celeriac.cluster.status import status_of
from celeriac.cluster.status_parts import QueueStatus
from celeriac.config.lease import LEASE_DURATION
from celeriac.doctor.check import Check, Problem, Subject, Unreadable, error, warning
from celeriac.doctor.server import MAX_CLOCK_DIFFERENCE
from celeriac.errors import BrokerUnavailable
from celeriac.server_errors import is_server_error

OLDER = "an older version"


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A worker with a lease that has not ended."""

    lease: Lease
    age: float | None
    """Seconds since its last heartbeat; None if that is unknown."""

    clock: float | None = None
    """Seconds by which its clock is ahead; None if that is unknown."""

    @property
    def name(self) -> str:
        return self.lease.name

    @property
    def is_silent(self) -> bool:
        """Whether its lease has expired."""
        return self.age is not None and self.age > LEASE_DURATION


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """The workers and the queues of one broker, and what must agree with them here."""

    workers: Sequence[Worker]
    queues: Sequence[QueueStatus]
    keys: Sequence[str] | None
    """The fingerprints of the signing keys here, that of the one that signs first; None without a key."""

    version: str = __version__

    @property
    def live(self) -> Sequence[Worker]:
        return [worker for worker in self.workers if not worker.is_silent]


# — decisions —


def heartbeat_problems(facts: Workers) -> Iterator[Problem]:
    for worker in facts.workers:
        if worker.is_silent:
            text = f"worker {worker.name} on {worker.lease.host}: no heartbeat for {worker.age:.0f} s"
            yield warning(text, "look at its machine, and start it again if its process is gone")


def paused_problems(facts: Workers) -> Iterator[Problem]:
    for worker in facts.live:
        if worker.lease.paused:
            who = worker.lease.paused_by
            text = f"worker {worker.name} is paused" + ("" if who is None else f" by {printable(who)}")
            yield warning(text, f"celeriac resume --worker {shlex.quote(worker.name)}")


def clock_problems(facts: Workers) -> Iterator[Problem]:
    for worker in facts.live:
        if worker.clock is not None and abs(worker.clock) > MAX_CLOCK_DIFFERENCE:
            way = "ahead" if worker.clock > 0 else "behind"
            text = f"worker {worker.name}: the clock of {worker.lease.host} is {abs(worker.clock):.0f} s {way}"
            yield warning(text, "set the clocks of all machines by NTP")


def version_problems(facts: Workers) -> Iterator[Problem]:
    for worker in facts.live:
        if (version := worker.lease.version) != facts.version:
            yield warning(
                f"worker {worker.name} is of Celeriac {printable(version or OLDER)}, and here is {facts.version}",
                "install the same version on all machines: those of two neighbouring versions work together meanwhile",
            )


def key_problems(facts: Workers) -> Iterator[Problem]:
    for worker in facts.live:
        keys = worker.lease.keys
        if keys is None:  # of an older version, which does not report them
            continue
        if keys and not facts.keys:
            text = f"worker {worker.name} has a signing key, and here is none: it refuses messages from here"
            yield error(text, "set signing_key_file to the file with its key")
        elif keys and facts.keys and facts.keys[0] not in keys:
            text = f"worker {worker.name} has another signing key than here: it refuses messages from here"
            yield error(text, "give both the same key; while keys are being changed, give the worker both")
        elif facts.keys and not keys:
            text = f"worker {worker.name} has no signing key: it also runs messages that nothing has signed"
            yield warning(text, "set signing_key_file on its machine")


def refused_problems(facts: Workers) -> Iterator[Problem]:
    for worker in facts.live:
        if worker.lease.refused:
            text = f"worker {worker.name} has refused {worker.lease.refused:,} messages"
            yield warning(text, "see why: celeriac status --refused")


def queue_problems(facts: Workers) -> Iterator[Problem]:
    for queue in facts.queues:
        if queue.waiting and not queue.slots:
            name = shlex.quote(queue.name)
            text = f"{queue.waiting:,} messages wait in queue {name}, and no worker serves it"
            yield warning(text, f"celeriac worker --queues {name}")


def live_workers(facts: Workers) -> str:
    names = [worker.name for worker in facts.live]
    return f"{len(names):,} with a heartbeat" if names else "there is none"


# — facts —


def read_workers(app: Celery, queues: Collection[str], keys: Sequence[str] | None, timeout: float) -> Workers:
    """Raise `Unreadable` if the broker or the result backend cannot be read: their own checks say why."""
    try:
        workers = workers_of(app, timeout)
        status = status_of(app, queues, timeout=timeout)
    except Exception as problem:
        if not is_server_error(problem) and not isinstance(problem, BrokerUnavailable):
            raise
        raise Unreadable from None
    return Workers(workers=workers, queues=status.queues, keys=keys)


def workers_of(app: Celery, timeout: float) -> Sequence[Worker]:
    claims = claims_for(app, timeout=timeout)
    if claims is None:
        return ()
    with closing(claims):
        records = claims.leases().values()
        leases = [each.lease for each in records if each.lease is not None and each.state is LeaseState.LIVE]
        ages = claims.heartbeat_ages([lease.holder for lease in leases])
        now = claims.now() if isinstance(claims, RedisClaims) else None
    workers = [
        Worker(lease=lease, age=ages.get(lease.holder), clock=clock_of(lease, ages.get(lease.holder), now))
        for lease in leases
    ]
    return sorted(workers, key=lambda worker: worker.name)


def clock_of(lease: Lease, age: float | None, now: float | None) -> float | None:
    """Return by how many seconds a worker's clock is ahead. `age` is that of its lease, and `now` the store's time.

    A store without a time of its own (None) measures ages by the worker's clock: only one that is ahead is seen.
    """
    if lease.clock is None:
        return None
    if now is None:
        return max(0.0, lease.clock - time.time())
    return None if age is None else lease.clock - (now - age)


CHECKS: tuple[Check[Any], ...] = (
    Check(
        id="workers",
        sound="each worker has a heartbeat",
        risk="The tasks of a dead worker run elsewhere, and its slots are missing.",
        look=heartbeat_problems,
        describe=live_workers,
    ),
    Check(
        id="paused-workers",
        sound="none is paused",
        risk="A paused worker takes no tasks until it is resumed.",
        look=paused_problems,
    ),
    Check(
        id="worker-clocks",
        sound="their clocks agree",
        risk="Times and ages are wrong.",
        look=clock_problems,
    ),
    Check(
        id="worker-versions",
        sound="they are of this version of Celeriac",
        risk="Only neighbouring versions work together.",
        look=version_problems,
    ),
    Check(
        id="worker-keys",
        sound="they have the signing key of this machine, or none as here",
        risk="Workers refuse messages, or run messages of strangers.",
        look=key_problems,
    ),
    Check(
        id="refused-messages",
        sound="they have refused no message",
        risk="Tasks that were refused have failed.",
        look=refused_problems,
    ),
    Check(
        id="queues-served",
        sound="each queue with messages has a worker",
        risk="Its tasks wait.",
        look=queue_problems,
    ),
)


def workers_subject(
    app: Celery, queues: Collection[str], keys: Sequence[str] | None, timeout: float
) -> Subject[Workers]:
    return Subject("workers", lambda: read_workers(app, queues, keys, timeout), CHECKS)
