"""The cluster behind `run`, `retry` and `serve`: workers at a broker, or one in this process.

Both import Celery, so this module imports them late: bad input is reported before.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from celeriac.cli.messages import print_message
from celeriac.cli.waiting import wait_while_refused
from celeriac.config.executor_config import Config
from celeriac.errors import BackendUnavailable, BrokerUnavailable
from celeriac.server_errors import ServerProblem, is_wrong_address, problem_of
from celeriac.worker.output import OutputPolicy
from celeriac.worker.supervisor_start import discard_early

if TYPE_CHECKING:
    from celeriac.config.settings import Connection
    from celeriac.runs import cluster
    from celeriac.telemetry import Telemetry


def cluster_for(
    connection: Connection | None,
    config: Config,
    policy: OutputPolicy,
    journal: Path | None,
    folder: Path | None = None,
    telemetry: Telemetry | None = None,
) -> cluster.Cluster:
    """Open a cluster. `journal` and `folder`, the working folder, are for a worker in this process. With a folder in
    `policy`, output comes here from workers elsewhere, too."""
    if connection is None:
        from celeriac.cluster.local import LocalCluster

        return LocalCluster(
            config=config,
            output_policy=policy,
            control_channel=True,
            journal=journal,
            folder=folder,
            telemetry=telemetry,
        )
    discard_early()
    from celeriac.broker.app import app_for
    from celeriac.cluster.cluster import Cluster as RemoteCluster

    app = app_for(connection)
    return RemoteCluster.from_app(
        app, config=config, signing_key=connection.signing_key, telemetry=telemetry, output=policy
    )


def wait_for_servers(connection: Connection, queues: Collection[str]) -> None:
    """Check the servers of a run. Wait while one refuses for now, with one line at the start and one at the end.

    Raises `BrokerUnavailable`, `BackendUnavailable` and `QueueRefused` if waiting cannot help. A server that does not
    reply is left to the run, which waits for it.
    """
    _, seconds = wait_while_refused(
        lambda: check_servers_of(connection, queues), lambda error: problem_of(error) is ServerProblem.REFUSING
    )
    if seconds is not None:
        print_message(f"the servers can be used after {seconds:.1f} s")


def check_servers_of(connection: Connection, queues: Collection[str]) -> None:
    """Check the servers of a run. Raise the error of one that refuses, or that has a wrong address."""
    from celeriac.broker.app import app_for
    from celeriac.cluster.preflight import check_servers

    try:
        check_servers(app_for(connection), queues, timeout=connection.operation_timeout)
    except (BrokerUnavailable, BackendUnavailable) as error:
        if problem_of(error) is not ServerProblem.UNREACHABLE or is_wrong_address(error):
            raise
