"""The cluster behind `run`, `retry` and `serve`: workers at a broker, or one in this process.

Both import Celery, so this module imports them late: bad input is reported before.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from celeriac.config.executor_config import Config
from celeriac.worker.output import OutputPolicy

if TYPE_CHECKING:
    from celeriac.config.settings import Connection
    from celeriac.runs import cluster


def cluster_for(
    connection: Connection | None, config: Config, policy: OutputPolicy, journal: Path | None
) -> cluster.Cluster:
    """Open a cluster. `policy` and `journal` are for a worker in this process."""
    if connection is None:
        from celeriac.cluster.local import LocalCluster

        return LocalCluster(config=config, output_policy=policy, control_channel=True, journal=journal)
    from celeriac.broker.app import app_for
    from celeriac.cluster.cluster import Cluster as RemoteCluster

    return RemoteCluster.from_app(app_for(connection), config=config, signing_key=connection.signing_key)
