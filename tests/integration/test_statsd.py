"""The processes that send their metrics to StatsD, over a real socket."""

from __future__ import annotations

import signal
import socket

import pytest

from tests.support.cli_runner import END_TIMEOUT, jobs, run, started, until
from tests.support.service_host import submit


class Server:
    """A StatsD server: the sum of each counter, the last value of each gauge, and the number of each timer's values."""

    def __init__(self, listening):
        self._socket, self.numbers = listening, {}
        self.address = f"127.0.0.1:{listening.getsockname()[1]}"

    def read(self):
        """Read all that has come. Return the numbers."""
        while True:
            try:
                datagram = self._socket.recv(65_536)
            except BlockingIOError:
                return self.numbers
            for line in datagram.decode("ascii").split("\n"):
                name, _, rest = line.partition(":")
                value, kind = rest.split("|")[:2]
                before = self.numbers.get(name, 0)
                self.numbers[name] = {"g": float(value), "c": before + float(value), "ms": before + 1}[kind]


@pytest.fixture
def server():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.setblocking(False)
        yield Server(listening)


def test_a_run_sends_all_that_it_counted_by_its_end(server, tmp_path):
    file = jobs(tmp_path, *({"key": str(n), "command": "exit 1" if n == 3 else "true"} for n in range(10)))
    ended = run("run", "-q", file, cwd=tmp_path, env={"CELERIAC_STATSD": server.address})
    assert ended.status == 1
    numbers = server.read()
    assert numbers["celeriac.tasks_queued_total.default"] == 10
    assert numbers["celeriac.task_ends_total.default.success.none"] == 9
    assert numbers["celeriac.task_ends_total.default.failed.exit_code"] == 1
    assert numbers["celeriac.task_run_seconds.default.success"] == 9
    assert numbers["celeriac.task_wait_seconds.default"] == 10
    assert numbers["celeriac.tasks_in_flight.default"] == 0


def test_a_service_and_its_worker_send_theirs(server, shared_redis, tmp_path):
    (tmp_path / "celeriac.toml").write_text(f'statsd = "{server.address}"\nbroker = "{shared_redis.url}"\n')
    ledger = str(tmp_path / "ledger.db")
    submit(tmp_path, ledger, {"key": "a", "command": "true"})
    with (
        started("worker", "--log-level", "error", cwd=tmp_path) as worker,
        started("serve", "--ledger", ledger, "--log-level", "error", cwd=tmp_path) as service,
    ):
        until(lambda: server.read().get("celeriac.task_ends_total.default.success.none"), "the task's end", END_TIMEOUT)
        until(lambda: server.read().get("celeriac.worker_ends_total.success"), "the end in the worker")
        until(lambda: server.read().get("celeriac.workers.live"), "the live worker")
        for process in (service, worker):
            process.signal(signal.SIGTERM)
            assert process.process.wait(END_TIMEOUT) == 0
    numbers = server.read()
    assert numbers["celeriac.worker_started_total"] == numbers["celeriac.worker_run_seconds.success"] == 1


def test_a_library_that_is_missing_is_named(tmp_path):
    (tmp_path / "statsd").mkdir()  # a folder without a module hides the library
    file = jobs(tmp_path, {"key": "a", "command": "true"})
    hide = "import sys; sys.modules['statsd'] = None"
    (tmp_path / "sitecustomize.py").write_text(hide)
    ended = run("run", file, cwd=tmp_path, env={"CELERIAC_STATSD": "localhost:8125", "PYTHONPATH": str(tmp_path)})
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert "CELERIAC_STATSD" in ended.err
    assert "pip install 'celeriac[metrics]'" in ended.err


@pytest.mark.parametrize("settings", [{}, {"CELERIAC_STATSD": "127.0.0.1:9"}])
def test_a_run_imports_no_library_that_it_does_not_use(tmp_path, settings):
    file = jobs(tmp_path, {"key": "a", "command": "true"})
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, sys\n"
        "known = ('statsd', 'opentelemetry', 'prometheus_client', 'starlette', 'requests')\n"
        "show = lambda: open('imported', 'w').write(' '.join(name for name in known if name in sys.modules))\n"
        "sys.argv[1:2] == ['run'] and atexit.register(show)\n"
    )
    assert run("run", "-q", file, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path), **settings}).status == 0
    assert (tmp_path / "imported").read_text() == ("statsd" if settings else "")
