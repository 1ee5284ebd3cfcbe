"""The overview of the servers that options and settings name: for `status --watch` and `top`."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

from celeriac.cli.control_options import silence_logs
from celeriac.cli.ledger_options import open_ledger
from celeriac.config.settings import Settings

if TYPE_CHECKING:
    from celeriac.cluster.redis_status import RedisStatusReader
    from celeriac.cluster.status import StatusReader
    from celeriac.cluster.status_parts import Status
    from celeriac.runs.overview import OverviewReader


def open_overview(settings: Settings, *, with_ledger: bool) -> OverviewReader:
    """Return a reader of the settings' broker, if there is one, and of their ledger. Raises `InvalidConfig`."""
    from celeriac.runs.overview import OverviewReader  # imports SQLAlchemy

    silence_logs()
    has_broker = settings.values["broker"].value is not None
    return OverviewReader(
        broker=BrokerStatus(settings) if has_broker else None,
        ledger=partial(open_ledger, settings, read_only=True) if with_ledger else None,
        queues=settings.worker.queues,
    )


class BrokerStatus:
    """Reads the status of a broker: without Celery where that is possible, which it tries first at each read."""

    def __init__(self, settings: Settings) -> None:
        """Raise `InvalidConfig`."""
        self._connection = settings.connection
        self._direct: RedisStatusReader | None = None
        self._reader: StatusReader | None = None
        if find_spec("hiredis") is not None:  # it comes with celeriac[redis], not with redis itself
            from celeriac.cluster.redis_status import RedisStatusReader

            self._direct = RedisStatusReader(self._connection)

    def read(self, queues: Collection[str]) -> Status:
        """Raise `InvalidConfig` and `BrokerUnavailable`."""
        if self._direct is not None and (status := self._direct.read(queues)) is not None:
            return status
        if self._reader is None:
            from celeriac.broker.app import app_for
            from celeriac.cluster.status import StatusReader

            self._reader = StatusReader(app_for(self._connection), timeout=self._connection.operation_timeout)
        return self._reader.read(queues)

    def close(self) -> None:
        for reader in (self._direct, self._reader):
            if reader is not None:
                reader.close()
