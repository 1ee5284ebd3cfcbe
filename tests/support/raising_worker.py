"""`python -m tests.support.raising_worker`: `celeriac`, with a worker whose threads each meet a bug once."""

from __future__ import annotations

from typing import Any

from celeriac.backend.claims.redis import RedisClaims
from celeriac.cli import main
from celeriac.worker.lease_manager import LeaseManager
from celeriac.worker.shutdown import ShutdownCoordinator

PLACES = (
    (LeaseManager, "_carry_out", 5, ZeroDivisionError),
    (RedisClaims, "renew", 3, KeyError),
    (ShutdownCoordinator, "_wait_for_request", 2, IndexError),
    (LeaseManager, "_send_lease_end", 1, AttributeError),
)
"""The method that raises, at which of its calls, and what."""


def raise_once(owner: Any, name: str, at: int, error: type[Exception]) -> None:
    method, calls = getattr(owner, name), 0

    def raising(self: Any, *args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise error(f"the bug in {name}")
        return method(self, *args, **options)

    setattr(owner, name, raising)


if __name__ == "__main__":
    for place in PLACES:
        raise_once(*place)
    main()
