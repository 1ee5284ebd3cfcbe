"""A failover that loses the last writes: of the broker, or of the store of claims and results.

A replica takes the place of a server that has gone down. It lacks what the server had confirmed in the last moments,
and all connections end. A task of which the store has lost anything may run twice: `docs/guarantees.md` says so. All
else must hold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import replace as replace_message
from itertools import count
from random import Random
from typing import TYPE_CHECKING

from msgspec.structs import replace

from celeriac.backend.claims.claim import LeaseRecord, LeaseState
from celeriac.backend.claims.memory import Entry
from celeriac.executor.interfaces import Unreadable
from celeriac.task.result import Result
from tests.simulation.faults import later
from tests.simulation.servers import Broker, Message, Store

if TYPE_CHECKING:
    from tests.simulation.history import History

SHARE = 0.08  # of all histories
FROM, UNTIL = 2.0, 44.0  # seconds in which failovers begin
MAX_LOST = 3.0  # seconds of which writes are lost
MAX_AWAY = 6.0  # seconds until the replica takes the place of the server


def failovers(seed: int) -> list[tuple[float, Callable[[History], str | None]]]:
    """Return the failovers of a seed, each with the time from which on writes will be lost."""
    random = Random(f"{seed} failover")
    if random.random() >= SHARE:
        return []
    kinds = random.choice(((fail_over_broker,), (fail_over_store,), (fail_over_store, fail_over_store)))
    return [(random.uniform(FROM, UNTIL), kind) for kind in kinds]


def fail_over_broker(history: History) -> str:
    broker = history.broker
    queue, unacked = list(broker.queue), list(broker.unacked.values())

    def restore() -> None:
        restore_broker(broker, queue, unacked)

    return fail_over(history, broker, restore)


def fail_over_store(history: History) -> str | None:
    if history.limits is not None:
        return None  # what a replica knows of the places of limits is not simulated
    kept = StoredState.of(history.store)
    return fail_over(history, history.store, lambda: restore_store(history, kept))


def fail_over(history: History, server: Broker | Store, restore: Callable[[], None]) -> str:
    """Let the server go down soon, and come back as it is now."""
    random = history.chance
    lost, away = random.uniform(0.05, MAX_LOST), random.uniform(0.1, MAX_AWAY)

    def go_down() -> None:
        history.tell(f"the {server.name} goes down, and loses {lost:.2f} s of writes")
        server.is_up = False
        restore()
        later(history, away, lambda: setattr(server, "is_up", True))

    later(history, lost, go_down)
    return f"the {server.name} will lose what is written from now on, in a failover of {away:.1f} s"


def restore_broker(broker: Broker, queue: list[Message], unacked: list[Message]) -> None:
    """Put the messages back. On Redis each keeps its tag; of RabbitMQ all connections end, and all messages wait."""
    if broker.kind == "redis":
        broker.queue, broker.unacked = queue, {id(message): message for message in unacked}
    else:
        broker.queue, broker.unacked = [replace_message(message) for message in (*unacked, *queue)], {}
    broker.notify()


@dataclass(frozen=True)
class StoredState:
    """Hold what a replica has of the store."""

    results: dict[str, Result | Unreadable]
    entries: dict[str, Entry]
    leases: dict[str, LeaseRecord]
    token: int
    """The next one."""

    @classmethod
    def of(cls, store: Store) -> StoredState:
        claims = store.claims
        token = next(claims._tokens)
        claims._tokens = count(token)
        entries = {task_id: replace(entry) for task_id, entry in claims._entries.items()}
        return cls(dict(store.results), entries, dict(claims._leases), token)

    def is_dead(self, holder: str | None) -> bool:
        record = self.leases.get(holder) if holder is not None else None
        return record is not None and record.state is LeaseState.DEAD


def restore_store(history: History, kept: StoredState) -> None:
    store, now = history.store, StoredState.of(history.store)
    for task_id in sorted(now.entries.keys() | now.results.keys() | kept.results.keys()):
        entry = now.entries.get(task_id)
        is_changed = entry != kept.entries.get(task_id) or now.results.get(task_id) != kept.results.get(task_id)
        holder = None if entry is None else entry.holder
        if is_changed or now.is_dead(holder) != kept.is_dead(holder):
            history.job_of(task_id).is_forgotten = True
    store.results = dict(kept.results)
    store.claims._entries, store.claims._leases = dict(kept.entries), dict(kept.leases)
    store.claims._tokens = count(kept.token)
    history.watched_claims.fail_over(kept)
