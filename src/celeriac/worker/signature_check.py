"""What a worker that has keys does not run: messages that nobody with a key has signed, for this id and as they are."""

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
    """Made before a worker has children, who share the count."""

    def __init__(self, keys: SigningKeys | None, task_name: str = TASK_NAME) -> None:
        """Without keys everything is admitted."""
        self._keys, self._task_name = keys, task_name
        self._tally = None if keys is None else shared_counter()

    @property
    def rejected(self) -> int | None:
        """How many messages, up to now; None if all are admitted."""
        return None if self._tally is None else os.fstat(self._tally).st_size

    def reject_reason(self, message: Any, task_id: str | None) -> str | None:
        """Why a message is not to be run, if it is not. `task_id` is what Celery calls it."""
        if self._keys is None or self._tally is None:
            return None
        why = self._wrong(self._keys, message, task_id)
        if why is not None:
            os.write(self._tally, b".")  # no lock that a child could die with
            key = message.get("key") if isinstance(message, Mapping) else None
            log_event("refused", level=logging.WARNING, key=key, id=task_id, why=why)
        return why

    def _wrong(self, keys: SigningKeys, message: Any, task_id: str | None) -> str | None:
        if not isinstance(message, Mapping) or SIGNATURE not in message:
            return "its message is not signed"
        if not keys.verify(self._task_name, message):
            return "its message was altered, or signed with another key"
        if message["id"] != task_id:
            return "its message was signed for another id"
        return None


def shared_counter() -> int:
    """A file that has no name, as long as what it counts."""
    with tempfile.TemporaryFile("ab") as file:
        return os.dup(file.fileno())
