"""The protocol of a cluster: the executor's broker, result backend and workers, as runs and services use them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from celeriac.executor.executor import CeleryExecutor
from celeriac.executor.interfaces import Ledger


class Cluster(AbstractContextManager["Cluster"], Protocol):
    """A `celeriac.cluster.cluster.Cluster` or a `LocalCluster`."""

    def executor(self, *, ledger: Ledger | None = None) -> CeleryExecutor:
        """Return the executor, which stores its tasks in the ledger, if one is given."""
        ...

    def stop_commands(self) -> None:
        """Stop the commands that run in this process, with the clocks of their timeouts."""
        ...

    def continue_commands(self) -> None:
        """Let the stopped commands go on."""
        ...

    def wake(self) -> None:
        """End the executor's current `wait`. May be called from a signal handler or another thread."""
        ...
