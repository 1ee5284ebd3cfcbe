"""Renew a lease in threads, so that a call without an end delays no other one.

Renew ─► a thread, over the connections of the worker's claims or over a new one ─► reply or error ─► the lease's thread
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from celeriac.backend.claims.claim import Claims, DeclaredDead, Lease, Renewed
from celeriac.surviving_loop import Survivor
from celeriac.worker.lease_state_machine import Decision
from celeriac.worker.probe import Reach, Server, probe

MAX_PENDING = 4  # renewals without a reply, until their connections are cut

OnReply = Callable[[int, Renewed | DeclaredDead, str, float], Sequence[Decision]]
OnError = Callable[[int, Exception], Sequence[Decision]]


class Renewals:
    """Makes renewals and probes, and passes their results to one thread. For use by that thread."""

    def __init__(self, claims: Claims, server: Server | None, *, on_reply: OnReply, on_error: OnError) -> None:
        """`server` stores the claims; None if it cannot be probed.

        `on_reply` gets the number of a renewal, the reply, the holder, and the time of sending.
        """
        self._claims, self._server = claims, server
        self._on_reply, self._on_error = on_reply, on_error
        self._events: SimpleQueue[Callable[[], Sequence[Decision]]] = SimpleQueue()
        self._pending: dict[int, Claims] = {}
        """The renewals without a reply, by number; each with the claims whose connections it uses."""

        self._prober = Survivor("celeriac-lease-probe")

    def begin(self, number: int, lease: Lease, *, over_new_connection: bool) -> None:
        """Begin a renewal."""
        if len(self._pending) >= MAX_PENDING:
            for claims in list(self._pending.values()):  # their threads get an error at once, and end
                claims.cut()
        claims = self._claims.anew() if over_new_connection else self._claims
        self._pending[number] = claims
        in_thread("celeriac-renewal", self._renew, number, lease, claims)

    def begin_probe(self, number: int, on_probe: Callable[..., Sequence[Decision]]) -> None:
        """Begin a probe of the server. `on_probe` gets the number, and the result."""
        in_thread(self._prober.name, self._probe, number, on_probe)

    def wake(self, event: Callable[[], Sequence[Decision]]) -> None:
        """Make `wait` call an event. Safe in any thread."""
        self._events.put(event)

    def wait(self, timeout: float) -> Sequence[Decision]:
        """Wait for the next result or event, at most `timeout` seconds. Return what follows from it."""
        try:
            event = self._events.get(timeout=timeout)
        except Empty:
            return ()
        return event()

    def _renew(self, number: int, lease: Lease, claims: Claims) -> None:
        sent_at = time.monotonic()
        try:
            reply = claims.renew(lease)
        except Exception as error:  # noqa: BLE001 - whatever it is, the lease's thread handles it
            self._events.put(partial(self._on_error, number, error))
        else:
            self._events.put(partial(self._on_reply, number, reply, lease.holder, sent_at))
        finally:
            del self._pending[number]
            if claims is not self._claims:
                with contextlib.suppress(Exception):
                    claims.close()

    def _probe(self, number: int, on_probe: Callable[..., Sequence[Decision]]) -> None:
        reach = Reach.NO_CONNECTION  # as for a probe without a result in time: no heartbeat follows from a bug
        with self._prober.guard():
            reach = probe(self._server)
        self._events.put(partial(on_probe, number, reach))


def in_thread(name: str, function: Callable[..., None], *args: Any) -> None:
    """Call a function in a thread of its own. It must end by itself."""
    threading.Thread(target=function, args=args, name=name, daemon=True).start()
