"""`celeriac broker`: a Valkey of its own, its password, its end."""

from __future__ import annotations

import random
import re
import signal
import socket
import stat
import sys
import time

import psutil
import pytest
from redis import AuthenticationError, Redis
from redis import ConnectionError as RedisConnectionError

from celeriac.broker.bundled_valkey import valkey_program
from tests.support.cli_runner import END_TIMEOUT, run, started, until
from tests.support.long import LONG, slow
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
            assert f"give --broker-file {config.with_name('broker.url')}; " in broker.wait_for_stderr(
                "--bind 0.0.0.0\n"
            )
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
        assert str(config.with_name("broker.url")) in ended.out
        assert password not in ended.out + ended.err


def test_show_url_prints_the_url_with_the_password(tmp_path):
    port = free_port()
    with started("broker", "--data", "data", "--port", str(port), "--show-url", cwd=tmp_path) as broker:
        broker.wait_for_stderr("celeriac: ready; ")
        file = tmp_path / "data" / "broker.url"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        url = file.read_text().strip()
        assert re.fullmatch(rf"redis://:[\w-]{{32}}@127\.0\.0\.1:{port}/0", url)
        with Redis.from_url(url) as client:
            assert client.ping()
        assert run("broker", "--data", "data", "--show-url", cwd=tmp_path).out == f"{url}\n"
        again = run("broker", "--data", "data", "--port", str(free_port()), cwd=tmp_path)
        assert (again.status, again.out) == (2, "")
        assert f"--data: the broker in {tmp_path}/data runs already; its URL is in {file};" in again.err
        assert file.read_text().strip() == url
        broker.signal(signal.SIGTERM)
        assert broker.wait().out.splitlines()[0] == url


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--port: another program listens at port {port}; name a free port, for example --port 6380"),
        (["--bind", "192.0.2.1"], "--bind: '192.0.2.1' port {port} cannot be used: Cannot assign requested address; "),
    ],
)
def test_an_address_that_cannot_be_used_is_an_error_of_one_line(tmp_path, options, message):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ended = run("broker", "--port", str(port), *options, cwd=tmp_path)
    assert ended.status == 2
    assert ended.err.startswith("celeriac: " + message.format(port=port))
    assert not (tmp_path / "celeriac-broker").exists()


@pytest.mark.parametrize("moments", [60 if LONG else 6])
def test_a_broker_that_is_stopped_at_a_random_moment_ends_well_and_leaves_no_server(tmp_path, moments):
    """Before it has printed its URL, Python may end it as any program. A second TERM may follow."""
    for _ in range(moments):
        with started("broker", "--data", "data", "--port", str(free_port()), "--show-url", cwd=tmp_path) as broker:
            expected = {0, -signal.SIGTERM}
            if random.random() < 0.7:
                assert broker.process.stdout is not None
                broker.process.stdout.readline()
                expected = {0}
            time.sleep(random.choice([0.0, random.uniform(0, 0.1), random.uniform(0, 0.5)]))  # the random moment
            for _ in range(random.choice([1, 2])):
                broker.signal(signal.SIGTERM)
            ended = broker.wait()
            assert ended.status in expected, ended
            assert broker.alive() == []


def test_unwritable_folder_is_an_error_of_one_line(tmp_path):
    ended = run("broker", "--data", "/proc/x", "--port", str(free_port()), cwd=tmp_path)
    assert (ended.status, ended.err) == (
        2,
        "celeriac: --data: /proc/x: No such file or directory; name a folder to write in\n",
    )


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of the end of its parent")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_the_server_ends_with_a_broker_command_that_is_killed(tmp_path, number):
    with started("broker", "--port", str(free_port()), cwd=tmp_path) as broker:
        until(psutil.Process(broker.process.pid).children, "the start of the server")
        broker.signal(number)
        assert broker.process.wait(END_TIMEOUT) == -number
        broker.wait_until_nothing_is_alive()


def test_the_server_outlives_the_reader_of_its_log(tmp_path):
    with started("broker", "--port", str(free_port()), cwd=tmp_path) as broker:
        assert broker.process.stdout is not None
        assert broker.process.stdout.readline().startswith(b"redis://")
        broker.process.stdout.close()  # before the server writes its first line
        broker.wait_for_stderr("ready")
        broker.signal(signal.SIGTERM)
        assert broker.process.wait(END_TIMEOUT) == 0
