"""Brokers and backends over TLS, a Unix socket and Sentinel: commands run from end to end."""

from __future__ import annotations

import json
import ssl
from contextlib import closing
from pathlib import Path

import pytest
import trustme
from redis import Redis
from redis.exceptions import RedisError

from celeriac.cluster.redis_status import RedisStatusReader
from celeriac.config.settings import read_settings
from tests.support.cli_runner import jobs, run
from tests.support.load import workers
from tests.support.servers import RabbitServer, RedisServer

pytestmark = [pytest.mark.celery, pytest.mark.usefixtures("collect_cut_sockets")]

TASKS = 20


class Certificates:
    """Certificates of a server on this machine, from an authority that only this test trusts."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        server = authority.issue_cert("127.0.0.1", "localhost")
        self.ca, self.cert, self.key = folder / "ca.pem", folder / "cert.pem", folder / "key.pem"
        authority.cert_pem.write_to_path(self.ca)
        server.private_key_pem.write_to_path(self.key)
        server.cert_chain_pems[0].write_to_path(self.cert)


class TlsRedisServer(RedisServer):
    def _prepare(self) -> None:
        super()._prepare()
        self.certificates = Certificates(self.folder)
        self.url = f"rediss://127.0.0.1:{self.port}/0"

    def _command(self) -> list[str]:
        one = self.certificates
        files = {"cert-file": one.cert, "key-file": one.key, "ca-cert-file": one.ca, "auth-clients": "no"}
        words = [str(word) for name, value in files.items() for word in (f"--tls-{name}", value)]
        return [*super()._command(), "--port", "0", "--tls-port", str(self.port), *words]

    def _is_up(self) -> bool:
        with Redis(port=self.port, ssl=True, ssl_ca_certs=str(self.certificates.ca)) as client:
            return is_up(client)


class SentinelServer(RedisServer):
    """A Sentinel that watches another server."""

    def __init__(self, watched: RedisServer) -> None:
        self._watched = watched
        super().__init__()

    def _prepare(self) -> None:
        self.url = f"sentinel://127.0.0.1:{self.port}/0"
        self._file = self.folder / "sentinel.conf"
        lines = [f"port {self.port}", "bind 127.0.0.1", f"dir {self.folder}"]
        self._file.write_text("\n".join([*lines, f"sentinel monitor main 127.0.0.1 {self._watched.port} 1", ""]))

    def _command(self) -> list[str]:
        return [self._program(), str(self._file), "--sentinel"]


class TlsRabbitServer(RabbitServer):
    def _prepare(self) -> None:
        super()._prepare()
        self.certificates = Certificates(self.folder)
        self.url = f"amqps://guest:guest@127.0.0.1:{self.port}//"
        files = {
            "cacertfile": self.certificates.ca,
            "certfile": self.certificates.cert,
            "keyfile": self.certificates.key,
        }
        lines = [f"ssl_options.{name} = {path}" for name, path in files.items()]
        listeners = ["listeners.tcp = none", f"listeners.ssl.1 = 127.0.0.1:{self.port}"]
        (self.folder / "tls.conf").write_text("\n".join([*listeners, *lines, ""]))
        self._environment["RABBITMQ_CONFIG_FILE"] = str(self.folder / "tls.conf")
        self._tls = {"ca_certs": str(self.certificates.ca), "cert_reqs": ssl.CERT_REQUIRED}


def is_up(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except (RedisError, OSError):
        return False


def run_commands(folder: Path, *options: str) -> None:
    file = jobs(folder, *({"command": f"echo {n} >> begun", "priority": n % 10} for n in range(TASKS)))
    with workers(folder, 1, *options, "--concurrency", "2"):
        ended = run("run", *options, "--json", file, cwd=folder)
    assert ended.err == ""
    assert json.loads(ended.out)["succeeded"] == TASKS
    assert sorted(map(int, (folder / "begun").read_text().split())) == list(range(TASKS))


def test_redis_over_tls(tmp_path):
    with closing(TlsRedisServer()) as server:
        trusting = {"broker": server.url, "tls_ca": str(server.certificates.ca)}
        run_commands(tmp_path, "--broker", server.url, "--tls-ca", trusting["tls_ca"])
        for options, is_read in ((trusting, True), ({"broker": server.url}, False)):
            with closing(RedisStatusReader(read_settings(options, environment={}).connection)) as reader:
                assert (reader.read(("default",)) is not None) is is_read


def test_rabbitmq_over_tls(redis, tmp_path):
    with closing(TlsRabbitServer()) as server:
        options = "--broker", server.url, "--backend", redis.url
        run_commands(tmp_path, *options, "--tls-ca", str(server.certificates.ca))
        untrusted = run("status", *options, cwd=tmp_path)
    assert untrusted.status == 2
    assert "certificate verify failed" in untrusted.err


def test_redis_over_a_unix_socket(redis, tmp_path):
    run_commands(tmp_path, "--broker", f"redis+socket://{redis.socket}")


def test_redis_behind_sentinel(redis, tmp_path):
    with closing(SentinelServer(redis)) as sentinel:
        unnamed = run("run", "--broker", sentinel.url, "--", "true", cwd=tmp_path)
        (tmp_path / "celeriac.toml").write_text(f'broker = "{sentinel.url}"\nsentinel_master = "main"\n')
        run_commands(tmp_path)
    assert unnamed.status == 2
    assert unnamed.err.startswith(
        "celeriac: sentinel_master: is missing, and sentinel:// needs it; give Sentinel's name"
    )
