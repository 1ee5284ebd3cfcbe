"""`celeriac worker --ssh`: workers that ssh runs, with a program of that name, and with a real server of OpenSSH."""

from __future__ import annotations

import getpass
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest

from celeriac.errors import InvalidConfig
from celeriac.ssh.hosts import Host, parse_hosts
from tests.integration.test_cancel import url
from tests.support.cli_runner import Celeriac, jobs, run, started, until
from tests.support.servers import PostgresServer, RabbitServer, Server, program
from tests.support.workers import GATED, read_log

pytestmark = pytest.mark.celery

__all__ = ["url"]  # a fixture

FAKE_SSH = """#!/bin/sh
for word in "$@"; do echo "$word" >> {calls}; last=$word; done
exec sh -c "$last"
"""


@pytest.fixture
def fake_ssh(tmp_path: Path) -> dict[str, str]:
    """Return an environment whose ssh runs the command on this machine."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "ssh").write_text(FAKE_SSH.format(calls=shlex.quote(str(tmp_path / "calls"))))
    (folder / "ssh").chmod(0o755)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def hosts(folder: Path, *lines: str) -> Path:
    (folder / "hosts.txt").write_text("\n".join(lines))
    return folder / "hosts.txt"


def with_python(name: str, slots: int = 1) -> str:
    return f"{name} slots={slots} python={sys.executable}"


def wait_for_log(log: Path, text: str, number: int = 1) -> None:
    until(lambda: log.exists() and log.read_text().count(text) >= number, f"{text!r} in the output")


def check_runs_and_ends(folder: Path, environment: dict[str, str], servers: tuple[str, ...], *names: str) -> None:
    """Start workers on hosts, run tasks on them, and end them as Ctrl-C does."""
    file, log = hosts(folder, *map(with_python, names)), folder / "ssh.log"
    with (
        log.open("wb") as output,
        started("worker", "--ssh", file, *servers, cwd=folder, env=environment, log=output) as starter,
    ):
        wait_for_log(log, " ready ", len(names))
        lines = [{"key": f"k{n}", "command": "true"} for n in range(6)]
        assert run("run", jobs(folder, *lines), *servers, "--json", cwd=folder).summary["succeeded"] == 6
        starter.signal(signal.SIGINT)
        assert starter.process.wait() == 0
    said = log.read_text()
    for name in names:
        assert f"{name}: starting with slots=1\n" in said
        assert f"{name}: ended with status 0\n" in said


def test_workers_start_and_end_on_redis(url, tmp_path, fake_ssh):
    check_runs_and_ends(tmp_path, fake_ssh, ("--broker", url), "one", "me@two")
    assert url not in (tmp_path / "calls").read_text()


def test_workers_start_and_end_on_rabbitmq(rabbit: RabbitServer, postgres: PostgresServer, tmp_path, fake_ssh):
    check_runs_and_ends(tmp_path, fake_ssh, ("--broker", rabbit.url, "--backend", postgres.url), "one")


@contextmanager
def starting(folder: Path, servers: tuple[str, ...], environment: dict[str, str], log: Path) -> Iterator[Celeriac]:
    file = hosts(folder, with_python("one"))
    with (
        log.open("wb") as output,
        started("worker", "--ssh", file, *servers, cwd=folder, env=environment, log=output) as starter,
    ):
        yield starter


def check_killed_worker(folder: Path, environment: dict[str, str], servers: tuple[str, ...]) -> None:
    """Kill a worker with a task: both start again."""
    log, file = folder / "ssh.log", jobs(folder, {"key": "k", "command": GATED})
    with (
        started("run", file, *servers, "--json", cwd=folder) as executor,
        starting(folder, servers, environment, log) as starter,
    ):
        until(lambda: read_log(folder / "log") == ["k"], "the start of the task")
        (ssh,) = psutil.Process(starter.process.pid).children()
        ssh.kill()  # the shell has become the worker
        wait_for_log(log, "one: ended with status -9; starting again in ")
        until(lambda: read_log(folder / "log") == ["k", "k"], "the second start")
        (folder / "go").touch()
        assert executor.wait().summary["succeeded"] == 1
        starter.signal(signal.SIGTERM)
        assert starter.process.wait() == 0


def test_a_killed_worker_is_started_again_and_its_task_too(url, tmp_path, fake_ssh):
    check_killed_worker(tmp_path, fake_ssh, ("--broker", url))


def test_a_killed_worker_is_started_again_on_rabbitmq(
    rabbit: RabbitServer, postgres: PostgresServer, tmp_path, fake_ssh
):
    check_killed_worker(tmp_path, fake_ssh, ("--broker", rabbit.url, "--backend", postgres.url))


def test_the_second_signal_ends_commands(url, tmp_path, fake_ssh):
    file, log = jobs(tmp_path, {"key": "k", "command": GATED}), tmp_path / "ssh.log"
    with (
        started("run", file, "--broker", url, "--json", cwd=tmp_path),
        starting(tmp_path, ("--broker", url), fake_ssh, log) as starter,
    ):
        until(lambda: read_log(tmp_path / "log") == ["k"], "the start of the task")
        starter.signal(signal.SIGINT)
        wait_for_log(log, "shutting down: no more messages")
        starter.signal(signal.SIGINT)
        assert starter.process.wait() == 0
        starter.wait_until_nothing_is_alive()


def test_a_killed_command_leaves_no_worker(url, tmp_path, fake_ssh):
    with starting(tmp_path, ("--broker", url), fake_ssh, tmp_path / "ssh.log") as starter:
        wait_for_log(tmp_path / "ssh.log", " ready ")
        starter.process.kill()
        starter.process.wait()
        starter.wait_until_nothing_is_alive()


def test_the_lines_of_a_file_of_hosts():
    text = "# ours\none\n\nme@two slots=4 # big\nthree python=/opt/py/bin/python slots=2\n"
    assert [*parse_hosts(text, "hosts.txt")] == [
        Host("one"),
        Host("me@two", 4),
        Host("three", 2, "/opt/py/bin/python"),
    ]


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("-oProxyCommand=x", "hosts.txt:1: '-oProxyCommand=x' is not a host; "),
        ("a\n\na", "hosts.txt:3: 'a' is there twice; "),
        ("a slots=0", "hosts.txt:1: slots: '0' is not a number from 1; "),
        ("a cores=1", "hosts.txt:1: 'cores=1' is not known; "),
    ],
)
def test_a_wrong_line_is_named(text, start):
    with pytest.raises(InvalidConfig) as caught:
        list(parse_hosts(text, "hosts.txt"))
    assert str(caught.value).startswith(start)


def test_wrong_input_is_one_line(tmp_path):
    for options, start in ((("--ssh", "nowhere"), "--ssh: 'nowhere' cannot be read; "), (("--stdin",), "--stdin: ")):
        ended = run("worker", *options, "--broker", "redis://127.0.0.1:1/0", cwd=tmp_path)
        assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
        assert ended.err.startswith(f"celeriac: {start}")


class SshServer(Server):
    """OpenSSH's server on a free port, for this user with a key of its own."""

    def _prepare(self) -> None:
        for name in ("host", "user"):
            key = self.folder / name
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        Path("/run/sshd").mkdir(exist_ok=True)
        settings = ("StrictModes no", "UsePAM no", "PasswordAuthentication no", f"PidFile {self.folder}/pid")
        keys = (f"HostKey {self.folder}/host", f"AuthorizedKeysFile {self.folder}/user.pub")
        (self.folder / "config").write_text("\n".join((*settings, *keys)))

    def _command(self) -> list[str]:
        place = ["-o", f"ListenAddress=127.0.0.1:{self.port}"]
        return [program("sshd"), "-D", "-e", "-f", str(self.folder / "config"), *place]

    def _is_up(self) -> bool:
        done = subprocess.run([*self.client(), "localhost", "true"], capture_output=True, check=False)
        return done.returncode == 0

    def client(self) -> list[str]:
        options = (f"IdentityFile={self.folder}/user", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null")
        words = [word for option in (*options, "LogLevel=ERROR", f"Port={self.port}") for word in ("-o", option)]
        return ["/usr/bin/ssh", *words]


@pytest.fixture
def ssh_server() -> Iterator[SshServer]:
    program("sshd")
    if os.geteuid() != 0:
        pytest.skip("the server of OpenSSH starts as root; run as root to run this test")
    with closing(SshServer()) as server:
        yield server


def test_workers_start_and_end_over_a_real_ssh(ssh_server, url, tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "ssh").write_text(f'#!/bin/sh\nexec {shlex.join(ssh_server.client())} "$@"\n')
    (folder / "ssh").chmod(0o755)
    environment = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    check_runs_and_ends(tmp_path, environment, ("--broker", url), "localhost", f"{getpass.getuser()}@127.0.0.1")
