"""The two ways to an executor at work, each with both of its ends in this process: a Unix socket, and a broker."""

from __future__ import annotations

import json
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
from celeriac.control import broker_client, broker_server, unix_client
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


class Served:
    """An executor behind a desk, with a task that waits, driven by a thread."""

    def __init__(self) -> None:
        self._woken, self._closed = Event(), False
        self._thread: Thread | None = None

    def wake(self) -> None:
        self._woken.set()

    def serve(self, tray: RequestQueue) -> None:
        broker = InMemoryBroker()
        executor = CeleryExecutor(
            Config(parallelism=1), publisher=broker, results=broker, revoker=broker, control_channel=tray
        )
        executor.queue_command("k", "true", env={"TOKEN": "hunter2"})

        def run() -> None:
            while not self._closed:
                self._woken.wait()
                self._woken.clear()
                executor.sync()

        self._thread = Thread(target=run)
        self._thread.start()

    def close(self) -> None:
        self._closed = True
        self.wake()
        if self._thread is not None:
            self._thread.join()


@pytest.fixture
def served() -> Iterator[Served]:
    with closing(Served()) as one:
        yield one


# — a Unix socket —


def sockets(runtime: Path) -> list[Path]:
    return sorted(runtime.glob("**/*.sock"))


def test_a_socket_is_its_users_alone_and_goes_with_its_desk(runtime, served):
    with closing(UnixControlServer(wake=served.wake)) as desk:
        served.serve(desk.tray)
        (path,) = sockets(runtime)
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        (answer,) = UnixControlClient().send_request(ExplainRequest(name="k"))
        assert answer.encoded_explanations is not None
        assert answer.explanations()[0].now.words.startswith("waiting: place 1 of queue 'default'")
    assert sockets(runtime) == []
    assert list(UnixControlClient().send_request(ExplainRequest(name="k"))) == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"hello\n", "JSON is malformed"),
        (b"{}\n", "the request holds neither cancel nor explain"),
        (b'{"explain": {"name": 5}}\n', "Expected `str`, got `int`"),
        (b'{"cancel": {"wait": 1}}\n', "neither a key nor a queue is named"),
        (b'{"cancel": {"names": ["k"], "wait": -1}}\n', "is no number of seconds to wait"),
    ],
)
def test_nonsense_is_answered_and_the_desk_stays_open(runtime, served, line, said):
    with closing(UnixControlServer(wake=served.wake)) as desk:
        served.serve(desk.tray)
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(sockets(runtime)[0]))
            caller.sendall(line)
            answer = json.loads(caller.makefile().readline())
        assert said in answer["error"]
        (explained,) = UnixControlClient().send_request(ExplainRequest(name="k"))
    assert explained.explanations()


def test_a_caller_that_hangs_up_costs_nothing(runtime, served):
    with closing(UnixControlServer(wake=served.wake)) as desk:
        served.serve(desk.tray)
        for said in (b"", b'{"explain"', b'{"explain": {"name": "k"}}\n'):
            with socket.socket(socket.AF_UNIX) as caller:
                caller.connect(str(sockets(runtime)[0]))
                caller.sendall(said)
        assert len(list(UnixControlClient().send_request(ExplainRequest(name="k")))) == 1


def test_an_executor_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr(unix_client, "PATIENCE", 0.05)
    with closing(UnixControlServer(wake=lambda: None)):
        (answer,) = UnixControlClient().send_request(ExplainRequest(name="k"))
    assert answer.error == "does not answer in 0.05 s"


def test_a_path_that_is_too_long_for_a_socket_is_not_taken(runtime, monkeypatch, served):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime / ("x" * 80)))
    with closing(UnixControlServer(wake=served.wake)) as desk:
        served.serve(desk.tray)
        assert sockets(runtime)[0].parent.name.startswith("celeriac-")
        assert len(list(UnixControlClient().send_request(ExplainRequest(name="k")))) == 1


@pytest.mark.parametrize("kind", ["link", "others may write", "file"])
def test_a_folder_that_is_not_this_users_alone_is_refused(runtime, kind):
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


def desk_at(url: str, served: Served) -> closing[BrokerControlServer]:
    app = make_app(broker_url=url, result_backend="cache+memory://")
    return closing(BrokerControlServer(app, wake=served.wake, timeout=1.0))


def test_each_executor_on_a_broker_answers(redis):
    with (
        closing(Served()) as one,
        closing(Served()) as other,
        desk_at(redis.url, one) as first,
        desk_at(redis.url, other) as second,
    ):
        for served, desk in ((one, first), (other, second)):
            served.serve(desk.tray)
        until(lambda: len(ask(redis.url, ExplainRequest(name="k"))) == 2, "two answers")
        answers = ask(redis.url, CancelRequest(names=("k",), wait=5))
    assert [[fate.outcome for fate in said.cancelled.fates] for said in answers if said.cancelled] == [["revoked"]] * 2
    assert "hunter2" not in repr(answers)


def test_who_is_there_and_does_not_answer_is_named(redis, monkeypatch, served):
    monkeypatch.setattr(broker_client, "PATIENCE", 1.5)
    with desk_at(redis.url, served):
        until(lambda: ask(redis.url, ExplainRequest(name="k")), "its presence")
        (answer,) = ask(redis.url, ExplainRequest(name="k"))
    assert answer.error == "does not answer in 1.5 s"


@pytest.mark.parametrize("kind", ["redis", slow("rabbit")])
def test_an_executor_whose_connection_died_in_silence_is_reached_again(request, monkeypatch, served, kind):
    server = request.getfixturevalue(kind)
    monkeypatch.setattr(broker_server, "ECHO_INTERVAL", 0.2)
    monkeypatch.setattr(broker_server, "DEAF", 1.0)
    with Proxy(server.port) as proxy, desk_at(server.url.replace(str(server.port), str(proxy.port)), served) as desk:
        served.serve(desk.tray)
        until(lambda: ask(server.url, ExplainRequest(name="k")), "its answer")
        proxy.mute()
        until(lambda: ask(server.url, ExplainRequest(name="k")), "its answer over a new connection")
