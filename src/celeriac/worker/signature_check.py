"""Refuse messages without a valid signature. A message must be signed for its id, with a known key, and unmodified."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celeriac.broker.command_message import TASK_NAME
from celeriac.config.signing import SIGNATURE, SigningKeys
from celeriac.worker.gate import REFUSED_HEADER
from celeriac.worker.refusals import Refusals


class SignatureVerifier:
    """Checks the signatures of messages that have passed the gate."""

    def __init__(self, keys: SigningKeys | None, task_name: str = TASK_NAME, refusals: Refusals | None = None) -> None:
        """Without keys, every message is accepted. `refusals` takes the messages with a bad signature."""
        self._keys, self._task_name = keys, task_name
        self._refusals = refusals or Refusals()

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """The fingerprints of the keys; none if every message is accepted."""
        return () if self._keys is None else self._keys.fingerprints

    def reject_reason(self, message: Any, request: Any) -> str | None:
        """Return why a message must not run; None if it may. `request` is Celery's context of the task."""
        if (reason := request.get(REFUSED_HEADER)) is not None:
            return str(reason)  # the gate has refused it, and counted it
        problem = None if self._keys is None else self._problem_with(self._keys, message, request.id)
        if problem is not None:
            self._refusals.record(
                problem,
                queue=str((request.delivery_info or {}).get("routing_key")),
                worker=str(request.hostname),
                id=request.id,
                key=message.get("key") if isinstance(message, Mapping) else None,
                about="a message with the right form",
            )
        return problem

    def _problem_with(self, keys: SigningKeys, message: Any, task_id: str | None) -> str | None:
        if not isinstance(message, Mapping) or SIGNATURE not in message:
            return "its message is not signed"
        if not keys.verify(self._task_name, message):
            return "its message was altered, or signed with another key"
        if message["id"] != task_id:
            return "its message was signed for another id"
        return None
