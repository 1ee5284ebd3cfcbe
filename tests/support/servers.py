"""Start real servers on free loopback ports, in folders of their own. Tests may kill, freeze and fill them."""

from __future__ import annotations

import contextlib
import os
import random
import re
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
from tests.support.refusals import SECONDS_PER_KEY, PostgresRefusals, RabbitRefusals, RedisRefusals

PROGRAM_FOLDERS = [
    *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)),
    "/usr/lib/rabbitmq/bin",
    "/usr/sbin",
]
"""Folders where Debian installs servers that are not on the path."""

UNPRIVILEGED_USER = "postgres"
"""The user that PostgreSQL runs as if the tests run as root, because it refuses to run as root."""

START_TIMEOUT = 120.0  # seconds: RabbitMQ on a slow and busy machine

STOP_TIMEOUT = 10.0  # seconds: then it is killed

PORTS = (10_000, 32_000)


def program(name: str) -> str:
    """Return the path of a server's program. If it is missing, skip the test; in CI, fail it."""
    path = shutil.which(name, path=os.pathsep.join([*PROGRAM_FOLDERS, os.environ.get("PATH", "")]))
    return path or missing(name)


def missing(name: str) -> Any:
    message = f"{name} is not installed; install it to run this test"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def free_port() -> int:
    """Return a free port below those that systems give to outgoing connections. None of these takes it while a server
    of the tests is down."""
    while True:
        port = random.SystemRandom().randrange(*PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port


def lives(process: psutil.Process) -> bool:
    """Return whether a process lives. A zombie does not."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def is_stopped(pid: int) -> bool:
    """Return whether all threads of a process are stopped, or have ended."""
    states = []
    for thread in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError):
            states.append(thread.read_text().rpartition(")")[2].split()[0])
    return set(states) <= {"T", "Z", "X"}


class Server:
    """A server with all its processes: each signal goes to all of them."""

    url: str
    """The address, as Celery writes it."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="celeriac-test-"))
        self.port = free_port()
        self._output = self.folder / "output"
        self._prepare()
        self.start()

    def start(self) -> None:
        self._process = self._run(self._command())
        name = type(self).__name__
        until(lambda: self._is_up() or self._process.poll() is not None, f"the start of {name}", START_TIMEOUT)
        if (status := self._process.poll()) is not None:
            raise RuntimeError(f"{name} ended with status {status}: {self._output.read_text()[-2000:]}")

    def freeze(self) -> None:
        children = self._signal(signal.SIGSTOP)
        # A thread on another CPU runs on for a moment.
        until(lambda: all(map(is_stopped, [self._process.pid, *(child.pid for child in children)])), "its stop")

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        children = self._signal(signal.SIGKILL)
        self._process.wait()
        until(lambda: not any(map(lives, children)), "the end of its processes")
        until(lambda: not self._is_up(), "the end of its connections")  # which threads of a zombie may still hold

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextlib.contextmanager
    def lent(self) -> Iterator[Self]:
        """Lend it to one module after another; each finds it empty."""
        if self._is_used:
            self._make_empty()
        self._is_used = True
        try:
            yield self
        finally:
            self.thaw()
            if not self._is_up():  # a failed test left it so
                self.kill()
                self.start()

    _is_used = False

    def _make_empty(self) -> None:
        raise NotImplementedError

    def _signal(self, number: int) -> list[psutil.Process]:
        """Send a signal to all processes. Return those below the first one."""
        if self._process.poll() is not None:
            return []
        children = psutil.Process(self._process.pid).children(recursive=True)
        os.killpg(self._process.pid, number)
        for child in children:  # PostgreSQL's children have process groups of their own
            with contextlib.suppress(psutil.NoSuchProcess):
                child.send_signal(number)
        return children

    def _run(self, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        with self._output.open("ab") as output:
            return subprocess.Popen(command, stdout=output, stderr=output, process_group=0, **options)

    def _prepare(self) -> None:
        """Prepare the folder, once, before the first start."""

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _is_up(self) -> bool:
        raise NotImplementedError


class RedisServer(Server, RedisRefusals):
    fsync = "everysec"
    """When what is written is safe. While the disk is busy, a server that is killed loses up to 2 s of it."""

    def _prepare(self) -> None:
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.socket = self.folder / "socket"

    def empty(self) -> None:
        """Kill it, and start it again empty."""
        self.kill()
        for file in self.folder.iterdir():
            shutil.rmtree(file) if file.is_dir() else file.unlink()
        self.start()

    def _program(self) -> str:
        return program("redis-server")

    def _command(self) -> list[str]:
        options = {"port": self.port, "bind": "127.0.0.1", "dir": self.folder, "unixsocket": self.socket}
        words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        return [self._program(), *words, "--appendonly", "yes", "--appendfsync", self.fsync, "--save", ""]

    def _start_loading(self) -> None:
        delay = ["--key-load-delay", str(int(SECONDS_PER_KEY * 1e6)), "--loading-process-events-interval-bytes", "4096"]
        self._process = self._run([*self._command(), *delay])
        until(lambda: "loading" in self._reply("PING").lower(), "a server that loads", START_TIMEOUT)

    def _is_up(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(7) == b"+PONG\r\n"
        except OSError:
            return False


class DurableRedisServer(RedisServer):
    """A server that confirms nothing that it would lose when it is killed."""

    fsync = "always"


class ValkeyServer(RedisServer):
    """The Valkey of the wheel that `celeriac[valkey]` brings."""

    def _program(self) -> str:
        return valkey_program() or str(missing("valkey-server"))


class RedisClusterNode(RedisServer):
    """One node of a Redis Cluster. It has no slots at first."""

    def _prepare(self) -> None:
        super()._prepare()
        self.bus_port = free_port()

    def _command(self) -> list[str]:
        return [*super()._command(), "--cluster-enabled", "yes", "--cluster-port", str(self.bus_port)]


class RedisCluster:
    """A Redis Cluster of two nodes. The URL names the first: it serves the lower half of the slots, and replies `MOVED`
    to requests for the others."""

    def __init__(self) -> None:
        self.nodes = [RedisClusterNode(), RedisClusterNode()]
        self.url, self.port = self.nodes[0].url, self.nodes[0].port
        for node, slots in zip(self.nodes, ((0, 8191), (8192, 16383)), strict=True):
            node.command("CLUSTER", "ADDSLOTSRANGE", *slots)
        other = self.nodes[1]
        self.nodes[0].command("CLUSTER", "MEET", "127.0.0.1", other.port, other.bus_port)
        until(lambda: all(map(self._is_whole, self.nodes)), "a cluster of two nodes", START_TIMEOUT)

    @contextlib.contextmanager
    def down(self) -> Iterator[None]:
        """Refuse everything by `CLUSTERDOWN`: a slot is without a node."""
        for node in self.nodes:
            node.command("CLUSTER", "DELSLOTS", 8192)
        yield
        for node in reversed(self.nodes):
            node.command("CLUSTER", "SETSLOT", 8192, "NODE", self.nodes[1].command("CLUSTER MYID").decode())

    def close(self) -> None:
        for node in self.nodes:
            node.close()

    @staticmethod
    def _is_whole(node: RedisClusterNode) -> bool:
        found = node.command("CLUSTER INFO")
        return bool(found["cluster_state"] == "ok" and found["cluster_known_nodes"] == "2")


class RabbitServer(Server, RabbitRefusals):
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
        self._epmd = self._run([program("epmd"), *address])  # otherwise Erlang starts one that outlives the server

    def _make_empty(self) -> None:
        self.vhost = uuid4().hex
        self.control("add_vhost", self.vhost)
        self.control("set_permissions", "--vhost", self.vhost, "guest", ".*", ".*", ".*")
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}/{self.vhost}"

    def control(self, *arguments: str) -> str:
        """Run `rabbitmqctl` and return its output."""
        command = [program("rabbitmqctl").replace("/sbin/", "/lib/rabbitmq/bin/"), *arguments]
        done = subprocess.run(command, env=self._environment, check=True, capture_output=True, timeout=START_TIMEOUT)
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


def unprivileged(folder: Path) -> dict[str, Any]:
    """Return the options of a process that refuses to run as root, and give it its folder."""
    if os.geteuid() != 0:
        return {}
    shutil.chown(folder, UNPRIVILEGED_USER)
    return {"user": UNPRIVILEGED_USER, "cwd": "/"}


class PostgresServer(Server, PostgresRefusals):
    def _prepare(self) -> None:
        self._name("postgres")
        self._user = unprivileged(self.folder)
        initdb = [
            program("initdb"),
            "-D",
            str(self.folder / "data"),
            "-U",
            UNPRIVILEGED_USER,
            "--auth=trust",
            "--no-sync",
        ]
        subprocess.run(initdb, check=True, capture_output=True, **self._user)

    def _name(self, database: str) -> None:
        self.url = f"db+postgresql+psycopg://{UNPRIVILEGED_USER}@127.0.0.1:{self.port}/{database}"
        self.ledger_url = self.url.removeprefix("db+")
        self.dsn = f"host=127.0.0.1 port={self.port} user={UNPRIVILEGED_USER} dbname={database} connect_timeout=2"

    def _make_empty(self) -> None:
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

    def close(self) -> None:
        """Stop it by a signal that lets it remove its shared memory, which outlives a killed server."""
        self.thaw()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_TIMEOUT)
        super().close()

    def _is_up(self) -> bool:
        try:
            self.sql("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True


class PgBouncer(Server):
    """A PgBouncer with transaction pooling, in front of a PostgreSQL and the database that it has now."""

    def __init__(self, postgres: PostgresServer) -> None:
        self._postgres = postgres
        super().__init__()

    def _prepare(self) -> None:
        ours, theirs = f":{self.port}/", f":{self._postgres.port}/"
        self.url, self.ledger_url = (
            url.replace(theirs, ours) for url in (self._postgres.url, self._postgres.ledger_url)
        )
        self.dsn = self._postgres.dsn.replace(f"port={self._postgres.port}", f"port={self.port}")
        self._user = unprivileged(self.folder)
        (self.folder / "pgbouncer.ini").write_text(
            f"""
            [databases]
            * = host=127.0.0.1 port={self._postgres.port} user={UNPRIVILEGED_USER}
            [pgbouncer]
            listen_addr = 127.0.0.1
            listen_port = {self.port}
            unix_socket_dir =
            logfile = {self.folder}/log
            auth_type = any
            admin_users = {UNPRIVILEGED_USER}
            pool_mode = transaction
            default_pool_size = 10
            max_client_conn = 500
            server_login_retry = 1
            query_wait_timeout = 10
            """.replace(" " * 12, "")
        )

    def sql(self, statement: str) -> list[Any]:
        """Run a statement through it, in a transaction of its own."""
        with psycopg.connect(self.dsn, autocommit=True, prepare_threshold=None) as connection:
            found = connection.execute(statement.encode())
            return found.fetchall() if found.description else []

    def _command(self) -> list[str]:
        return [program("pgbouncer"), str(self.folder / "pgbouncer.ini")]

    def _run(self, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        return super()._run(command, **self._user, **options)

    def _is_up(self) -> bool:
        """Return whether it answers, even if its PostgreSQL does not: by its console."""
        console = re.sub(r"dbname=\S+", "dbname=pgbouncer", self.dsn)
        try:
            with psycopg.connect(console, autocommit=True, prepare_threshold=None) as connection:
                psycopg.ClientCursor(connection).execute("SHOW VERSION")
        except psycopg.OperationalError:
            return False
        return True


class HAProxy(Server):
    """An HAProxy in TCP mode in front of a server. It accepts connections while that is down, and closes
    them."""

    def __init__(self, server: RedisServer | PostgresServer | RabbitServer) -> None:
        self._server = server
        super().__init__()

    def _prepare(self) -> None:
        self.url = self._server.url.replace(f":{self._server.port}/", f":{self.port}/")
        self.ledger_url = self.url.removeprefix("db+")
        (self.folder / "haproxy.cfg").write_text(
            f"""
            defaults
                mode tcp
                timeout connect 2s
                timeout client 1h
                timeout server 1h
            frontend ours
                bind 127.0.0.1:{self.port}
                default_backend theirs
            backend theirs
                default-server inter 500ms fall 1 rise 1 on-marked-down shutdown-sessions
                server one 127.0.0.1:{self._server.port} check
            """.rstrip(" ")
        )

    def _command(self) -> list[str]:
        return [program("haproxy"), "-db", "-q", "-f", str(self.folder / "haproxy.cfg")]

    def _is_up(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True
