"""Run `celeriac worker` without claims and leases, to measure their cost against it."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

from celeriac.cli import main


def no_lease_manager(*_: Any, **__: Any) -> None:
    """Take the place of `lease_manager_for`: no lease manager."""


if __name__ == "__main__":
    with patch("celeriac.worker.build.lease_manager_for", no_lease_manager):
        main()
