"""The two kinds of control channel, each with server and client in this process: a Unix socket, and a broker."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from threading import Event, Thread

import pytest

from celeriac.broker.app import make_app
from celeriac.broker.session import BrokerSession
from celeriac.config.executor_config import Config
from celeriac.control import broker_client, connection_monitor, unix_client
from celeriac.control.broker_client import BrokerControlClient
from celeriac.control.broker_server import BrokerControlServer
from celeriac.control.folder import ensure_folder
from celeriac.control.request_queue import RequestQueue
from celeriac.control.unix_client import UnixControlClient
from celeriac.control.unix_server import UnixControlServer
from celeriac.control.wire import ReplyMessage
from celeriac.executor.executor import CeleryExecutor
from celeriac.executor.requests import CancelRequest, ExplainRequest
from celeriac.testing import InMemoryBroker
from tests.support.cli_runner import until
from tests.support.long import slow
from tests.support.proxy import Proxy

pytestmark = pytest.mark.celery


@pytest.fixture(autouse=True)
def runtime(monkeypatch) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="celeriac-"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr("celeriac.control.folder.LAST_RESORT", str(folder))
    yield folder
    shutil.rmtree(folder)


class ExecutorThread:
    """A thread that runs an executor with a control channel and one waiting task."""

    def __init__(self) -> None:
        self._wakeup, self._closed = Event(), False
        self._thread: Thread | None = None

    def wake(self) -> None:
        self._wakeup.set()

    def serve(self, requests: RequestQueue) -> None:
        broker = InMemoryBroker()
        executor = CeleryExecutor(
            Config(parallelism=1), publisher=broker, results=broker, revoker=broker, control_channel=requests
        )
        executor.queue_command("k", "true", env={"TOKEN": "hunter2"})

        def run() -> None:
            while not self._closed:
                self._wakeup.wait()
                self._wakeup.clear()
                executor.sync()

        self._thread = Thread(target=run)
        self._thread.start()

    def close(self) -> None:
        self._closed = True
        self.wake()
        if self._thread is not None:
            self._thread.join()


@pytest.fixture
def executor() -> Iterator[ExecutorThread]:
    with closing(ExecutorThread()) as thread:
        yield thread


# — a Unix socket —


def sockets(runtime: Path) -> list[Path]:
    return sorted(runtime.glob("**/*.sock"))


def test_a_socket_is_private_and_is_removed_with_its_server(runtime, executor):
    with closing(UnixControlServer(wake=executor.wake)) as server:
        executor.serve(server.requests)
        (path,) = sockets(runtime)
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        (reply,) = UnixControlClient().send_request(ExplainRequest(name="k"))
        (explanation,) = reply.explanations()
        assert explanation.now.words.startswith("waiting: place 1 of queue 'default'")
    assert sockets(runtime) == []
    assert list(UnixControlClient().send_request(ExplainRequest(name="k"))) == []


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"hello\n", "JSON is malformed"),
        (b"{}\n", "the request holds nothing that this version knows"),
        (b'{"explain": {"name": 5}}\n', "Expected `str`, got `int`"),
        (b'{"cancel": {"wait": 1}}\n', "the request has neither a key nor a queue"),
        (b'{"cancel": {"names": ["k"], "wait": -1}}\n', "is not a number of seconds, 0 or more"),
    ],
)
def test_a_malformed_request_gets_an_error_and_the_server_goes_on(runtime, executor, line, error):
    with closing(UnixControlServer(wake=executor.wake)) as server:
        executor.serve(server.requests)
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(sockets(runtime)[0]))
            caller.sendall(line)
            reply = json.loads(caller.makefile().readline())
        assert error in reply["error"]
        (explained,) = UnixControlClient().send_request(ExplainRequest(name="k"))
    assert explained.explanations()


def test_a_caller_that_hangs_up_does_not_disturb_the_next_one(runtime, executor):
    with closing(UnixControlServer(wake=executor.wake)) as server:
        executor.serve(server.requests)
        for data in (b"", b'{"explain"', b'{"explain": {"name": "k"}}\n'):
            with socket.socket(socket.AF_UNIX) as caller:
                caller.connect(str(sockets(runtime)[0]))
                caller.sendall(data)
        assert len(list(UnixControlClient().send_request(ExplainRequest(name="k")))) == 1


def test_the_unix_client_names_an_executor_that_does_not_reply(monkeypatch):
    monkeypatch.setattr(unix_client, "REPLY_TIMEOUT", 0.05)
    with closing(UnixControlServer(wake=lambda: None)):
        (reply,) = UnixControlClient().send_request(ExplainRequest(name="k"))
    assert reply.error == "did not reply within 0.05 s"
    assert reply.executor == f"{os.getpid()}@{socket.gethostname()}"


def test_a_folder_whose_path_is_too_long_for_a_socket_is_not_used(runtime, monkeypatch, executor):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime / ("x" * 80)))
    with closing(UnixControlServer(wake=executor.wake)) as server:
        executor.serve(server.requests)
        assert sockets(runtime)[0].parent.name.startswith("celeriac-")
        assert len(list(UnixControlClient().send_request(ExplainRequest(name="k")))) == 1


def test_a_folder_that_another_executor_has_just_removed_is_made_again(runtime, monkeypatch):
    make, removed = Path.mkdir, list[Path]()

    def make_and_remove(folder, *args, **kwargs):
        make(folder, *args, **kwargs)
        if len(removed) < 2:
            folder.rmdir()
            removed.append(folder)

    monkeypatch.setattr(Path, "mkdir", make_and_remove)
    with closing(UnixControlServer(wake=lambda: None)):
        assert len(sockets(runtime)) == 1
    assert removed == [runtime / "celeriac"] * 2


@pytest.mark.parametrize("kind", ["link", "others may write", "file"])
def test_a_folder_that_is_not_private_is_refused(runtime, kind):
    folder = runtime / "celeriac"
    match kind:
        case "link":
            (runtime / "elsewhere").mkdir(mode=0o700)
            folder.symlink_to(runtime / "elsewhere")
        case "others may write":
            folder.mkdir()
            folder.chmod(0o770)
        case "file":
            folder.touch()
    with pytest.raises(OSError, match="celeriac"):
        ensure_folder()


# — a broker —


def ask(url: str, request: CancelRequest | ExplainRequest) -> list[ReplyMessage]:
    app = make_app(broker_url=url, result_backend="cache+memory://")
    with BrokerSession(app, timeout=5).open() as connection:
        return list(BrokerControlClient(connection).send_request(request))


def server_at(url: str, executor: ExecutorThread) -> closing[BrokerControlServer]:
    app = make_app(broker_url=url, result_backend="cache+memory://")
    return closing(BrokerControlServer(app, wake=executor.wake, timeout=1.0))


def test_each_executor_on_a_broker_replies(redis):
    with (
        closing(ExecutorThread()) as one,
        closing(ExecutorThread()) as other,
        server_at(redis.url, one) as first,
        server_at(redis.url, other) as second,
    ):
        one.serve(first.requests)
        other.serve(second.requests)
        until(lambda: len(ask(redis.url, ExplainRequest(name="k"))) == 2, "two replies")
        replies = ask(redis.url, CancelRequest(names=("k",), wait=5))
    outcomes = [[fate.outcome for fate in reply.cancelled.fates] for reply in replies if reply.cancelled]
    assert outcomes == [["revoked"]] * 2
    assert "hunter2" not in repr(replies)


def test_the_broker_client_names_an_executor_that_does_not_reply(redis, monkeypatch, executor):
    monkeypatch.setattr(broker_client, "REPLY_TIMEOUT", 1.5)
    with server_at(redis.url, executor):
        until(lambda: ask(redis.url, ExplainRequest(name="k")), "an acknowledgement")
        (reply,) = ask(redis.url, ExplainRequest(name="k"))
    assert reply.error == "did not reply within 1.5 s"


@pytest.mark.parametrize("kind", ["redis", slow("rabbit")])
def test_a_server_replaces_a_connection_that_died_without_an_error(request, monkeypatch, executor, kind):
    broker = request.getfixturevalue(kind)
    monkeypatch.setattr(connection_monitor, "ECHO_INTERVAL", 0.2)
    monkeypatch.setattr(connection_monitor, "MAX_SILENCE", 1.0)
    with (
        Proxy(broker.port) as proxy,
        server_at(broker.url.replace(str(broker.port), str(proxy.port)), executor) as server,
    ):
        executor.serve(server.requests)
        until(lambda: ask(broker.url, ExplainRequest(name="k")), "a reply")
        proxy.mute()
        until(lambda: ask(broker.url, ExplainRequest(name="k")), "a reply over a new connection")
