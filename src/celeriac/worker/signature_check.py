"""Reject messages without a valid signature. A message must be signed for its id, with a known key, and unmodified."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping
from typing import Any

from celeriac.broker.app import TASK_NAME
from celeriac.config.signing import SIGNATURE, SigningKeys
from celeriac.worker.log import log_event


class SignatureVerifier:
    """Checks signatures and counts rejected messages. Make it before the worker forks: the children share the count."""

    def __init__(self, keys: SigningKeys | None, task_name: str = TASK_NAME) -> None:
        """Without keys, every message is accepted."""
        self._keys, self._task_name = keys, task_name
        self._counter = None if keys is None else shared_counter()

    @property
    def rejected(self) -> int | None:
        """The number of rejected messages; None without keys."""
        return None if self._counter is None else os.fstat(self._counter).st_size

    def reject_reason(self, message: Any, task_id: str | None) -> str | None:
        """Return why a message must not run; None if it may. `task_id` is Celery's id of the message."""
        if self._keys is None or self._counter is None:
            return None
        problem = self._problem_with(self._keys, message, task_id)
        if problem is not None:
            os.write(self._counter, b".")  # a lock could stay locked when a child is killed
            key = message.get("key") if isinstance(message, Mapping) else None
            log_event("refused", level=logging.WARNING, key=key, id=task_id, why=problem)
        return problem

    def _problem_with(self, keys: SigningKeys, message: Any, task_id: str | None) -> str | None:
        if not isinstance(message, Mapping) or SIGNATURE not in message:
            return "its message is not signed"
        if not keys.verify(self._task_name, message):
            return "its message was altered, or signed with another key"
        if message["id"] != task_id:
            return "its message was signed for another id"
        return None


def shared_counter() -> int:
    """Return the descriptor of a nameless file. Its size is the count: an appended byte adds one."""
    with tempfile.TemporaryFile("ab") as file:
        return os.dup(file.fileno())
