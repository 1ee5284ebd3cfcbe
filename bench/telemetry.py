"""Measure the cost of metrics: for a heartbeat with every sink, and for one who reads them all."""

from __future__ import annotations

import gc
import os
import socket
import statistics
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.support.servers import RedisServer

from bench.backends import OnRedis
from bench.table import Row, at_most
from bench.worker import REPORT
from celeriac import CeleryExecutor, Config, Task
from celeriac.backend.results import results_for
from celeriac.broker.app import make_app
from celeriac.broker.publishers import publisher_for
from celeriac.broker.task_message import task_message
from celeriac.cluster.revoker import ControlRevoker
from celeriac.sink_thread import Sink, sending
from celeriac.telemetry import Telemetry
from celeriac.telemetry.sinks.opentelemetry import OpenTelemetrySink
from celeriac.telemetry.sinks.prometheus import renderer_for
from celeriac.telemetry.sinks.statsd import StatsdSink
from celeriac.testing import InMemoryBroker, ManualClock

IN_FLIGHT = 10_000
WAITING = 1_000_000
CHANGES = 10  # ends between two heartbeats, each followed by another task
HEARTBEATS = 800
TURNS = 80
ROUNDS = 3
ARRIVAL = 0.005  # seconds for changes to arrive before a heartbeat
TIMEOUT = 60.0  # seconds for one operation
MOST_CPU = 1.05  # of the CPU time without sinks
MOST_SCRAPE = 0.050  # seconds
SCRAPES = 20


class InMemory:
    """A broker in memory: the harshest comparison, because all else of a heartbeat is cheap."""

    name = "broker in memory"

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.broker = InMemoryBroker(self.clock)
        broker = self.broker
        self.executor = CeleryExecutor(
            Config(parallelism=IN_FLIGHT),
            publisher=broker,
            results=broker,
            revoker=broker,
            clock=self.clock,
            wall_clock=self.clock,
        )

    def end(self, keys: Iterable[int]) -> None:
        for key in keys:
            self.broker.succeed(key)
        self.clock.advance(0.01)

    def close(self) -> None:
        pass


class OnARedis:
    """Broker and result backend on a Redis of its own, to which results come as from workers."""

    name = "Redis"

    def __init__(self) -> None:
        self._server = RedisServer()
        self._backend = OnRedis(self._server.url)
        self._app = make_app(broker_url=self._server.url, result_backend=self._server.url, operation_timeout=TIMEOUT)
        self._backend.learn(self._store)
        telemetry = Telemetry()
        message_factory = partial(task_message, telemetry=telemetry)
        self._publisher = publisher_for(self._app, message_factory=message_factory)
        self._reader = results_for(self._app, timeout=TIMEOUT)
        self._revoker = ControlRevoker(self._app, timeout=TIMEOUT)
        self.executor = CeleryExecutor(
            Config(parallelism=IN_FLIGHT, operation_timeout=TIMEOUT),
            publisher=self._publisher,
            results=self._reader,
            revoker=self._revoker,
            telemetry=telemetry,
        )

    def _store(self, task_id: str, state: str) -> None:
        value = {"pid": 1, "hostname": "celery@host"} if state == "STARTED" else REPORT
        self._app.backend.store_result(task_id, value, state)

    def end(self, keys: Iterable[int]) -> None:
        self._backend.change([f"task-{key}" for key in keys])
        time.sleep(ARRIVAL)

    def close(self) -> None:
        for each in (self._reader, self._publisher, self._revoker, self._server):
            each.close()


class Site:
    """An executor with many tasks in flight."""

    def __init__(self, kind: type[InMemory] | type[OnARedis], waiting: int = 0) -> None:
        self.place = kind()
        self.executor = self.place.executor
        self._next = 0
        self.queue(IN_FLIGHT)
        self.executor.heartbeat()
        self.executor.get_event_buffer()
        self.queue(waiting)

    def queue(self, number: int) -> None:
        for key in range(self._next, self._next + number):
            self.executor.queue_task(
                Task(key=key, command="true", queue=f"q{key % 10}", priority=key % 7, id=f"task-{key}")
            )
        self._next += number

    def beat(self, heartbeats: int, oldest: int) -> float:
        """Return the CPU seconds of this thread in heartbeats, between which some tasks end and as many are queued."""
        cpu = 0.0
        for each in range(heartbeats):
            self.place.end(range(oldest + each * CHANGES, oldest + (each + 1) * CHANGES))
            self.queue(CHANGES)
            began = time.thread_time()
            self.executor.heartbeat()
            cpu += time.thread_time() - began
            self.executor.get_event_buffer()
        return cpu


def all_parts() -> list[Row]:
    return [heartbeat(OnARedis), heartbeat(InMemory), *scrape()]


def heartbeat(kind: type[InMemory] | type[OnARedis]) -> Row:
    pairs = [heartbeats_of(kind) for _ in range(ROUNDS)]
    ratios = [with_ / without for with_, without in pairs]
    ratio = statistics.median(ratios)
    with_, without = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))
    what = f"CPU of a heartbeat, {IN_FLIGHT:,} tasks in flight, {CHANGES} ends, {kind.name}: every sink, against none"
    scatter = f"{ratio:.3f} ({min(ratios):.3f} to {max(ratios):.3f} in {ROUNDS} rounds)"
    bar = f"{MOST_CPU:g}" if kind is OnARedis else ""
    return Row(what, micro(with_), micro(without), scatter, bar, at_most(ratio, MOST_CPU) if bar else None)


def heartbeats_of(kind: type[InMemory] | type[OnARedis]) -> tuple[float, float]:
    """Return the CPU seconds of a heartbeat with every sink, and with none, in short turns of changing order."""
    with_, without = Site(kind), Site(kind)
    cpu = {with_: 0.0, without: 0.0}
    with closing(with_.place), closing(without.place), every_sink(with_.executor):
        gc.collect()
        gc.freeze()
        for turn in range(TURNS):
            for site in (with_, without) if turn % 2 else (without, with_):
                cpu[site] += site.beat(HEARTBEATS // TURNS, turn * (HEARTBEATS // TURNS) * CHANGES)
        gc.unfreeze()
    return cpu[with_] / HEARTBEATS, cpu[without] / HEARTBEATS


def scrape() -> list[Row]:
    site = Site(InMemory, waiting=WAITING)
    render = renderer_for(site.executor.telemetry)
    times, done = [], threading.Event()

    def beats() -> None:
        while not done.is_set():
            site.executor.heartbeat()
            site.executor.wait(0.01)

    thread = threading.Thread(target=beats)
    thread.start()
    try:
        for _ in range(SCRAPES):
            began = time.perf_counter()
            render("")
            times.append(time.perf_counter() - began)
    finally:
        done.set()
        thread.join()
    what = f"a scrape of {WAITING:,} tasks waiting and {IN_FLIGHT:,} in flight, during heartbeats"
    ours = f"{statistics.median(times) * 1e3:.1f} ms (longest {max(times) * 1e3:.1f})"
    return [Row(what, ours, "", "", f"{MOST_SCRAPE * 1e3:.0f} ms", at_most(max(times), MOST_SCRAPE))]


@contextmanager
def every_sink(executor: CeleryExecutor) -> Iterator[None]:
    """Send metrics and traces to StatsD and to OpenTelemetry, and be scraped once a second, until the block ends."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as statsd, collector() as endpoint:
        statsd.bind(("127.0.0.1", 0))
        sinks: list[Sink] = [
            StatsdSink("127.0.0.1", statsd.getsockname()[1]),
            opentelemetry(endpoint),
            ScrapeSink(),
        ]
        with sending(sinks, executor.telemetry):
            yield


def opentelemetry(endpoint: str) -> OpenTelemetrySink:
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = endpoint
    os.environ["OTEL_METRIC_EXPORT_INTERVAL"] = "1000"
    return OpenTelemetrySink()


class ScrapeSink:
    """Reads everything as Prometheus does."""

    interval = 1.0

    def begin(self, telemetry: Telemetry) -> None:
        self._render = renderer_for(telemetry)

    def send(self, *, is_last: bool) -> None:
        self._render("")

    def close(self) -> None:
        pass


class Collector(BaseHTTPRequestHandler):
    """Accepts all that OpenTelemetry sends."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def collector() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def micro(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f} µs"
