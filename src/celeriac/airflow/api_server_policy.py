"""How long a request to Airflow's API server is repeated while the server is unavailable: a pure decision.

request fails ─► the task has not started ─► for `patience`, unless the worker shuts down or the task was told to end
              ├─► a heartbeat ─────────────► not at all: the supervisor soon sends the next one
              ├─► the end of a task ───────► for `patience`
              └─► any other ───────────────► for `max_silence` since the server's last answer
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from enum import Enum, auto

REPORT_TIMEOUT = 10.0  # seconds for a supervisor to report to Airflow after its task was told to end
UNAVAILABLE_STATUSES = (408, 429)
"""Answers below 500 that ask for a later attempt. Proxies and rate limits send them."""

AUTHENTICATION_STATUSES = (401, 403)


class RequestKind(Enum):
    START = auto()
    """Sent before any code of the user runs."""

    HEARTBEAT = auto()
    END = auto()
    """The report that a task has ended, and how."""

    OTHER = auto()
    """Sent for a running task, such as the request for a connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiServerPolicy:
    patience: float
    """Seconds that a workload waits for the API server before it starts, and to report its end."""

    max_silence: float
    """Seconds that a running task may live without an answer of the API server. Airflow's scheduler fails it later."""

    limits_heartbeats: bool = True
    """Whether a running task ends after `max_silence`. If not, Airflow's own number of failed heartbeats limits it."""

    heartbeat_attempts: int = 1
    max_attempts: int | None = None
    """Attempts of each other request of a running task, if the user has set Airflow's own limit."""

    min_delay: float = 1.0
    max_delay: float = 5.0
    """Bounds of the delay, in seconds, before a request is repeated."""

    def may_repeat(
        self,
        kind: RequestKind,
        *,
        attempts: int,
        waited: float,
        silence: float,
        must_end: bool = False,
        is_shutting_down: bool = False,
    ) -> bool:
        """Return whether a request that has failed is sent again.

        `waited` is the time, in seconds, since its first failure, or since the first failure of the workload if that
        has not started. `silence` is the time since the last answer.
        """
        match kind:
            case RequestKind.HEARTBEAT:
                return attempts < self.heartbeat_attempts and not must_end
            case RequestKind.START:
                return waited < self.patience and not (must_end or is_shutting_down)
            case _ if must_end:
                return waited < REPORT_TIMEOUT
            case _ if self.max_attempts is not None:
                return attempts < self.max_attempts
            case RequestKind.END:
                return waited < self.patience
            case _:
                return silence < self.max_silence

    def must_end_task(self, silence: float) -> bool:
        """Return whether a running task must end now, before the scheduler declares it dead and starts its next try."""
        return self.limits_heartbeats and silence >= self.max_silence


def kind_of(path: str, *, has_started: bool) -> RequestKind:
    """Return the kind of a request to this path, which is relative to the execution API."""
    if not has_started:
        return RequestKind.START
    if path.endswith("/heartbeat"):
        return RequestKind.HEARTBEAT
    return RequestKind.END if path.endswith("/state") else RequestKind.OTHER


def is_start(path: str) -> bool:
    """Return whether the success of this request lets the supervisor start the code of the user."""
    return path.endswith("/run")


def is_unavailable(status: int) -> bool:
    """Return whether an answer with this status comes from a server that cannot serve the request for now."""
    return status >= 500 or status in UNAVAILABLE_STATUSES


def token_expiry(token: str) -> float | None:
    """Return the time at which a JSON Web Token expires, in seconds since the epoch; None if it cannot be read.

    The signature is not checked: only the server can do that.
    """
    try:
        payload = token.split(".")[1]
        return float(json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["exp"])
    except (IndexError, KeyError, TypeError, ValueError, binascii.Error):
        return None
