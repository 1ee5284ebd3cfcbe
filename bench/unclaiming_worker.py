"""`celeriac worker` without claims and without a lease: what these cost is measured against it."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

from celeriac.cli import main


def nobody(*_: Any, **__: Any) -> None:
    """The keeper of such a worker."""


if __name__ == "__main__":
    with patch("celeriac.worker.start.keeper_for", nobody):
        main()
