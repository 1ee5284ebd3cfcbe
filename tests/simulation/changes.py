"""Changes of the code that break the protocol. Histories must find each of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from celeriac.backend.claims import failure_detector
from celeriac.backend.claims.claim import Granted
from celeriac.backend.claims.memory import MemoryClaims
from celeriac.worker.supervisor import lease_policy


def grant_all(claims: MemoryClaims, task_id: str, **_: Any) -> Granted:
    return Granted(next(claims._tokens))


CHANGES: dict[str, tuple[Any, str, Any]] = {
    "no-claim": (MemoryClaims, "claim", grant_all),
    "patient-supervisor": (lease_policy, "SILENCE_LIMIT", 30.0),
    "hasty-detector": (failure_detector, "LEASE_DURATION", 2.5),
}
NAMES = tuple(CHANGES)


@contextmanager
def changed(name: str | None) -> Iterator[None]:
    """Make a change, if one is named."""
    if name is None:
        yield
        return
    target, attribute, value = CHANGES[name]
    with patch.object(target, attribute, value):
        yield
