"""Real servers on free loopback ports, in folders of their own, to be killed, frozen and filled at will."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import psutil
import psycopg
import pytest

from celeriac.broker.bundled_valkey import valkey_program
from tests.support.cli_runner import until

PLACES = [*map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), "/usr/lib/rabbitmq/bin"]
"""Where Debian puts what is not on everybody's path."""

ANYBODY = "postgres"
"""The user PostgreSQL runs as when the tests run as root, whom it refuses."""

SLOW_START = 60.0  # seconds: RabbitMQ on a busy machine


def program(name: str) -> str:
    """The path of a server's program. Without it the test is skipped, and in CI it fails."""
    path = shutil.which(name, path=os.pathsep.join([*PLACES, os.environ.get("PATH", "")]))
    return path or missing(name)


def missing(name: str) -> Any:
    message = f"{name} is not installed: what needs it was not tested"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def lives(process: psutil.Process) -> bool:
    """A zombie, which its parent is in no hurry to bury, does not."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Server:
    """What is done to it is done to all of its processes."""

    url: str
    """As Celery writes it."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="celeriac-test-"))
        self.port = free_port()
        self._prepare()
        self.start()

    def start(self) -> None:
        self._process = self._run(self._command())
        until(self._is_up, f"the start of {type(self).__name__}", SLOW_START)

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        children = self._signal(signal.SIGKILL)
        self._process.wait()
        until(lambda: not any(map(lives, children)), "the end of its processes")
        until(lambda: not self._is_up(), "the end of its connections")  # which a zombie's threads may still hold

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextlib.contextmanager
    def lent(self) -> Iterator[Self]:
        """To one module after another, to each with nothing of the others in it."""
        if self._is_used:
            self._make_room()
        self._is_used = True
        try:
            yield self
        finally:
            self.thaw()
            if not self._is_up():  # a test has failed in between
                self.kill()
                self.start()

    _is_used = False

    def _make_room(self) -> None:
        raise NotImplementedError

    def _signal(self, number: int) -> list[psutil.Process]:
        """Answers who got it, beside the first process."""
        if self._process.poll() is not None:
            return []
        children = psutil.Process(self._process.pid).children(recursive=True)
        os.killpg(self._process.pid, number)
        for child in children:  # PostgreSQL's have groups of their own
            with contextlib.suppress(psutil.NoSuchProcess):
                child.send_signal(number)
        return children

    def _run(self, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0, **options
        )

    def _prepare(self) -> None:
        """Once, before the first start."""

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _is_up(self) -> bool:
        raise NotImplementedError


class RedisServer(Server):
    def _prepare(self) -> None:
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.socket = self.folder / "socket"

    def empty(self) -> None:
        """Kill it, and start it again with nothing in it."""
        self.kill()
        for file in self.folder.iterdir():
            shutil.rmtree(file) if file.is_dir() else file.unlink()
        self.start()

    def _program(self) -> str:
        return program("redis-server")

    def _command(self) -> list[str]:
        options = {"port": self.port, "bind": "127.0.0.1", "dir": self.folder, "unixsocket": self.socket}
        words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        return [self._program(), *words, "--appendonly", "yes", "--save", ""]

    def _is_up(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(7) == b"+PONG\r\n"
        except OSError:
            return False


class ValkeyServer(RedisServer):
    """From the wheel that `celeriac[valkey]` brings."""

    def _program(self) -> str:
        return valkey_program() or str(missing("valkey-server"))


class RabbitServer(Server):
    _tls: dict[str, Any] | None = None
    vhost = "/"

    def _prepare(self) -> None:
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}//"
        self._epmd_port, name = free_port(), f"celeriac{self.port}@localhost"
        self._environment = {
            **os.environ,
            "HOME": str(self.folder),
            "RABBITMQ_NODENAME": name,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "none"),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "none"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "ERL_EPMD_PORT": str(self._epmd_port),
        }
        (self.folder / "plugins").write_text("[].\n")
        address = ["-address", "127.0.0.1", "-port", str(self._epmd_port)]
        self._epmd = self._run([program("epmd"), *address])  # else Erlang starts one that outlives it

    def _make_room(self) -> None:
        self.vhost = uuid4().hex
        self.control("add_vhost", self.vhost)
        self.control("set_permissions", "--vhost", self.vhost, "guest", ".*", ".*", ".*")
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}/{self.vhost}"

    def control(self, *arguments: str) -> str:
        """`rabbitmqctl`, and what it says."""
        command = [program("rabbitmqctl").replace("/sbin/", "/lib/rabbitmq/bin/"), *arguments]
        done = subprocess.run(command, env=self._environment, check=True, capture_output=True, timeout=SLOW_START)
        return done.stdout.decode()

    def close(self) -> None:
        super().close()
        self._epmd.kill()
        self._epmd.wait()

    def _run(self, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        return super()._run(command, env=self._environment, **options)

    def _command(self) -> list[str]:
        return [program("rabbitmq-server").replace("/sbin/", "/lib/rabbitmq/bin/")]

    def _is_up(self) -> bool:
        from amqp import Connection

        timeouts = {"connect_timeout": 2, "read_timeout": 5, "write_timeout": 5}  # seconds
        connection = Connection(f"127.0.0.1:{self.port}", ssl=self._tls, **timeouts)
        try:
            connection.connect()
            connection.channel()
            connection.close()
        except (OSError, *Connection.connection_errors):
            return False
        finally:
            connection.collect()
        return True


class PostgresServer(Server):
    def _prepare(self) -> None:
        self._name("postgres")
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:
            shutil.chown(self.folder, ANYBODY)
            self._user = {"user": ANYBODY, "cwd": "/"}
        initdb = [program("initdb"), "-D", str(self.folder / "data"), "-U", ANYBODY, "--auth=trust", "--no-sync"]
        subprocess.run(initdb, check=True, capture_output=True, **self._user)

    def _name(self, database: str) -> None:
        self.url = f"db+postgresql+psycopg://{ANYBODY}@127.0.0.1:{self.port}/{database}"
        self.ledger_url = self.url.removeprefix("db+")
        self.dsn = f"host=127.0.0.1 port={self.port} user={ANYBODY} dbname={database} connect_timeout=2"

    def _make_room(self) -> None:
        database = f"d{uuid4().hex}"
        self.sql(f"CREATE DATABASE {database}")
        self._name(database)

    def sql(self, statement: str) -> list[Any]:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            found = connection.execute(statement.encode())
            return found.fetchall() if found.description else []

    def _command(self) -> list[str]:
        settings = {"listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": "", "fsync": "off"}
        words = [f"--{name}={value}" for name, value in settings.items()]
        return [program("postgres"), "-D", str(self.folder / "data"), *words]

    def _run(self, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        return super()._run(command, **self._user, **options)

    def kill(self) -> None:
        super().kill()
        (self.folder / "data" / "postmaster.pid").unlink(missing_ok=True)

    def _is_up(self) -> bool:
        try:
            self.sql("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True
