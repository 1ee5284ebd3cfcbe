"""`celeriac autoscale slurm` with a real Slurm of one node on this machine."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.integration.test_autoscale import autoscaling
from tests.integration.test_cancel import url
from tests.support.cli_runner import jobs, run, until
from tests.support.servers import START_TIMEOUT, free_port, program
from tests.support.workers import read_log

pytestmark = pytest.mark.celery

__all__ = ["url"]  # a fixture

SETTINGS = """ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SchedulerType=sched/builtin
ReturnToService=2
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs=1 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


class SlurmCluster:
    """Munge, Slurm's controller and one node, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder, host = folder, socket.gethostname().partition(".")[0]
        for name in ("munge", "state", "spool"):
            (folder / name).mkdir(parents=True, mode=0o700)
        self.settings = folder / "slurm.conf"
        ports = {"controller_port": free_port(), "node_port": free_port()}
        self.settings.write_text(SETTINGS.format(host=host, folder=folder, **ports))
        key = folder / "munge" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        munge = [f"--{option}={folder}/munge/{name}" for option, name in files.items()]
        configured = ("-D", "-f", str(self.settings))
        self._log = (folder / "log").open("wb")
        self._processes = [
            self._start(program("munged"), "--foreground", "--force", *munge),
            self._start(program("slurmctld"), *configured),
            self._start(program("slurmd"), *configured, "-N", host),
        ]
        until(lambda: "idle" in self.ask("sinfo", "--noheader"), "a node of Slurm", START_TIMEOUT)

    @property
    def environment(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.settings)}

    def ask(self, *command: str) -> str:
        environment = {**os.environ, **self.environment}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout

    def states(self) -> list[str]:
        return self.ask("squeue", "--noheader", "--format=%T").split()

    def close(self) -> None:
        self.ask("scancel", "--user=root")
        until(lambda: self.states() == [], "the end of all jobs of Slurm")
        for process in reversed(self._processes):
            process.terminate()
            process.wait()
        self._log.close()

    def _start(self, *command: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, stdout=self._log, stderr=self._log)


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[SlurmCluster]:
    for name in ("munged", "slurmctld", "slurmd", "sbatch"):
        program(name)
    if os.geteuid() != 0:
        pytest.skip("Slurm starts as root; run as root to run this test")
    with closing(SlurmCluster(tmp_path / "slurm")) as cluster:
        yield cluster


def test_a_real_slurm_runs_the_workers(url, tmp_path, slurm):
    lines = [{"key": f"k{n}", "command": "echo $CELERIAC_KEY >> log"} for n in range(4)]
    with autoscaling(tmp_path, slurm, "--max", "3", "--broker", url) as scaling:
        assert run("run", jobs(tmp_path, *lines), "--broker", url, "--json", cwd=tmp_path).summary["succeeded"] == 4
        assert scaling.events("failed") == []
        scaling.stop()
    assert sorted(read_log(tmp_path / "log")) == sorted(f"k{n}" for n in range(4))
    assert "PENDING" not in slurm.states()
