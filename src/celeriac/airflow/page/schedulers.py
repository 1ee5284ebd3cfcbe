"""Ask the executors in the schedulers, over the broker, why tasks wait.

Page and command know what the database, the leases and the broker say. Only an executor knows what it has not sent yet,
what it waits for, and each event that it saw.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from celery import Celery

from celeriac.backend.claims.stored import printable
from celeriac.broker.session import BrokerSession
from celeriac.control.broker_client import BrokerControlClient
from celeriac.control.mailbox import has_mailboxes
from celeriac.errors import BrokerUnavailable
from celeriac.executor.requests import ExplainRequest, Explanation
from celeriac.task.event import Event

MAX_NAMES = 50  # in one request; a scheduler answers no more in one heartbeat
TIMEOUT = 4.0  # seconds for a scheduler to reply: it answers in its next heartbeat
QUIET = 5.0  # seconds in which viewers do not wait again for schedulers that did not reply
MAX_AT_ONCE = 4  # requests of this process
KEPT = 2.0  # seconds that an answer is kept for other viewers
MAX_KEPT = 1_000
MAX_WORDS = 500  # characters: any client of the broker may reply


@dataclass(frozen=True, slots=True)
class Statement:
    """The sentence of an executor about one task, and the events that it saw."""

    executor: str
    """Its process and host."""

    words: str
    events: tuple[Event, ...] = ()
    left_out: int = 0


@dataclass(slots=True)
class Schedulers:
    """The executors on one broker. Any thread may call a method. Answers are kept for a moment, for all viewers."""

    app: Celery
    timeout: float
    """Seconds for one operation on the broker."""

    _kept: dict[str, tuple[float, Statement | None]] = field(default_factory=dict)
    _quiet_until: float = float("-inf")
    _places: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(MAX_AT_ONCE))

    def explain(self, names: Collection[str]) -> Mapping[str, Statement]:
        """Return what executors say of tasks, by the names given. Those that none knows, or tells now, are missing."""
        now = time.monotonic()
        kept = {name: self._kept[name] for name in names if name in self._kept and self._kept[name][0] > now}
        found = {name: statement for name, (_, statement) in kept.items() if statement is not None}
        missing = [name for name in names if name not in kept][:MAX_NAMES]
        if not missing or now < self._quiet_until or not self._places.acquire(blocking=False):
            return found
        try:
            return found | self._ask(missing)
        finally:
            self._places.release()

    def _ask(self, names: list[str]) -> dict[str, Statement]:
        found: dict[str, Statement] = {}
        request = ExplainRequest(name=names[0], others=tuple(names[1:]))
        has_replied = False
        if not has_mailboxes(self.app):
            return found
        try:
            with BrokerSession(self.app, timeout=self.timeout).open() as connection:
                for reply in BrokerControlClient(connection).send_request(request, timeout=TIMEOUT):
                    has_replied = has_replied or reply.error is None
                    for explanation in reply.explanations():
                        found[str(explanation.key)] = statement_of(reply.executor, explanation)
                    if len(found) == len(names):
                        break  # no other executor has these tasks
        except BrokerUnavailable:
            pass  # the page shows what is wrong with the broker
        now = time.monotonic()
        if not has_replied:
            self._quiet_until = now + QUIET
        self._keep({name: found.get(name) for name in names}, now)
        return found

    def _keep(self, answers: Mapping[str, Statement | None], now: float) -> None:
        if len(self._kept) + len(answers) > MAX_KEPT:
            self._kept.clear()
        self._kept |= {name: (now + KEPT, statement) for name, statement in answers.items()}


def statement_of(executor: str, explanation: Explanation) -> Statement:
    return Statement(
        printable(executor),
        explanation.now.words[:MAX_WORDS],
        explanation.moves,
        explanation.left_out,
    )
