"""`celeriac worker --ssh`. The workers are in `celeriac.ssh`."""

from __future__ import annotations

import shutil

from celeriac.cli.messages import print_line
from celeriac.config.settings import Settings
from celeriac.config.worker_values import worker_values
from celeriac.errors import InvalidConfig
from celeriac.ssh.hosts import read_hosts
from celeriac.ssh.starter import SshStarter
from celeriac.worker.signals import signals_to


def run_on_hosts(path: str, settings: Settings) -> None:
    """Run a worker on each host of a file until all have ended. Raises `InvalidConfig`."""
    hosts, values = read_hosts(path), worker_values(settings)
    if settings.worker.name is not None:
        raise InvalidConfig("name", "each worker of --ssh needs its own", "leave it out")
    if shutil.which("ssh") is None:
        raise InvalidConfig("--ssh", "ssh cannot be found on the PATH", "install it")
    starter = SshStarter(hosts, values, lambda host, line: print_line(f"{host}: {line}"))
    with signals_to(starter.stop):
        starter.run()
