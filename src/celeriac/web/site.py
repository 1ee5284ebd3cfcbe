"""One web server: its sources, its checks, and its rules of access."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from celeriac.errors import InvalidConfig
from celeriac.web.access import AccessRules
from celeriac.web.address import Address
from celeriac.web.errors import NotFound
from celeriac.web.health import HealthCheck
from celeriac.web.tokens import read_tokens

if TYPE_CHECKING:
    from celeriac.config.settings import Connection
    from celeriac.ledger.database import Database

RenderMetrics: TypeAlias = Callable[[str], tuple[bytes, str]]
"""Take the media types that a client accepts. Return the metrics of this process, and their media type."""

WITHOUT_TOKENS = (
    "make a file with a line such as `operator $(openssl rand -hex 32)`, and name it in CELERIAC_WEB_TOKEN_FILE; or"
    " listen on 127.0.0.1"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where a server reads. A probe of a worker has none."""

    ledger: Database | None = None
    """Opened to read."""

    connection: Connection | None = None
    queues: Sequence[str] = ()
    """The queues to show besides those that workers serve."""

    @property
    def some_ledger(self) -> Database:
        """The ledger. Raises `NotFound` if the server has none."""
        if self.ledger is None:
            raise NotFound("this server has no ledger; start it with --ledger")
        return self.ledger

    @property
    def some_connection(self) -> Connection:
        """The broker and the result backend. Raises `NotFound` if the server has none."""
        if self.connection is None:
            raise NotFound("this server has no broker; start it with --broker-file")
        return self.connection


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Everything that a server needs."""

    rules: AccessRules
    checks: Sequence[HealthCheck] = ()
    sources: Sources = field(default_factory=Sources)
    shows_runs: bool = True
    """Whether it has the REST interface and the page. A worker has only its probes and its metrics."""

    render_metrics: RenderMetrics | None = None
    """None for a process that measures nothing."""


def access_rules(address: Address, token_file: str | None) -> AccessRules:
    """Return who may use a server. Raises `InvalidConfig` for an address beyond this machine without tokens."""
    if token_file is None and not address.is_loopback:
        raise InvalidConfig("--listen", f"{address} can be reached from other machines without a token", WITHOUT_TOKENS)
    return AccessRules(address, None if token_file is None else read_tokens(token_file))
