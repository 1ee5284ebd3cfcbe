"""`celeriac broker`: a Valkey of its own, its password, its end."""

from __future__ import annotations

import signal
import stat

import psutil
import pytest
from redis import AuthenticationError, Redis
from redis import ConnectionError as RedisConnectionError

from celeriac.broker.bundled_valkey import valkey_program
from tests.support.cli_runner import run, started, until
from tests.support.long import slow
from tests.support.servers import free_port, missing


@pytest.fixture(autouse=True)
def valkey() -> None:
    if valkey_program() is None:
        missing("valkey-server")


def is_up(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except RedisConnectionError as error:
        if isinstance(error, AuthenticationError):
            raise
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, slow(signal.SIGINT)])
def test_broker_keeps_its_data_and_its_password_which_only_its_owner_can_read(tmp_path, number):
    port = free_port()
    config = tmp_path / "data" / "valkey.conf"
    for value in (None, b"kept"):
        with started("broker", "--data", "data", "--port", str(port), cwd=tmp_path) as broker:
            until(config.exists, "the configuration")
            until(lambda: "requirepass" in config.read_text(), "the password")
            password = dict(line.split(" ", 1) for line in config.read_text().splitlines())["requirepass"]
            with Redis(port=port, password=password) as client:
                until(lambda: is_up(client), "the start of the server")
                assert client.get("k") == value
                client.set("k", "kept")
                assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
                assert client.config_get("append*")["appendonly"] == "yes"
            with pytest.raises(AuthenticationError), Redis(port=port) as client:
                client.ping()
            assert stat.S_IMODE(config.stat().st_mode) == 0o600
            (server,) = psutil.Process(broker.process.pid).children()
            assert password not in " ".join(server.cmdline())
            broker.signal(number)
            ended = broker.wait()
            assert broker.alive() == []
        assert ended.status == 0
        assert str(config) in ended.out
        assert password not in ended.out + ended.err


def test_show_url_prints_the_url_with_the_password(tmp_path):
    port = free_port()
    with started("broker", "--data", "data", "--port", str(port), "--show-url", cwd=tmp_path) as broker:
        config = tmp_path / "data" / "valkey.conf"
        until(lambda: config.exists() and "set-proc-title" in config.read_text(), "the configuration")
        password = dict(line.split(" ", 1) for line in config.read_text().splitlines())["requirepass"]
        with Redis(port=port, password=password) as client:
            until(lambda: is_up(client), "the start of the server")
        broker.signal(signal.SIGTERM)
        assert broker.wait().out.splitlines()[0] == f"redis://:{password}@127.0.0.1:{port}/0"


def test_unwritable_folder_is_an_error_of_one_line(tmp_path):
    ended = run("broker", "--data", "/proc/x", cwd=tmp_path)
    assert (ended.status, ended.err) == (
        2,
        "celeriac: --data: /proc/x: No such file or directory; name a folder to write in\n",
    )
