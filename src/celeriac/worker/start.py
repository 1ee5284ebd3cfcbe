"""`celeriac worker`, once its settings are known: a Celery worker that takes nothing it cannot start.

    broker ─► Celery's consumer ─► CommandPool (or Celery's prefork) ─► duty ─► Runner ─► supervisor ─► command
    TERM, remote revoke ─► Warden, Revokes ─► Hands ─► Runner

Consumer, strategy, request, tracer, events and remote control are Celery's. Ours are the connection's defaults, the
watchdog, and the way to go: on TERM the worker takes nothing more and lets what runs finish, up to a deadline.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from amqp.exceptions import PreconditionFailed
from celery import Celery, bootsteps
from celery.app.trace import setup_worker_optimizations
from celery.concurrency.prefork import TaskPool as ProcessPool
from celery.concurrency.thread import TaskPool as ThreadPool
from celery.worker import WorkController
from celery.worker import state as worker_state
from celery.worker.consumer import Consumer
from celery.worker.consumer.control import Control

from celeriac.app import REDIS_PRIORITIES, app_for
from celeriac.errors import InvalidConfig, QueueRefused
from celeriac.settings import AMQP_SCHEMES, REDIS_SCHEMES, Connection, Settings, WorkerSettings, scheme_of
from celeriac.worker.duty import take_duty, tell_arrivals
from celeriac.worker.execute_command import HOST, OutputPolicy
from celeriac.worker.hands import ChildHands, Hands, ThreadHands
from celeriac.worker.log import begin_log, logger, tell
from celeriac.worker.watchdog import Watchdog

SOCKET_TIMEOUT = 5.0  # seconds; longer than Kombu lets Redis wait for a message, which is one
HEALTH_CHECK = 5.0  # seconds between two PINGs
HEARTBEAT = 10.0  # seconds, of AMQP
VISIBILITY_TIMEOUT = 24 * 3600  # seconds until Redis gives a message to another worker, whether it still runs or not
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
TICK = 1.0  # seconds between two looks at the connection
GOING_TICK = 0.1  # seconds between two looks whether all that ran has ended
LAST_PATIENCE = 10.0  # seconds for results and acknowledgements, once the commands have been ended

Waker = Callable[[], None]


def work(settings: Settings) -> None:
    """Work until a signal says otherwise. Raises `InvalidInput`."""
    worker_settings, connection = settings.worker, settings.connection
    begin_log(worker_settings.log_format, worker_settings.log_level)
    hands: Hands = ThreadHands() if worker_settings.pool == "threads" else ChildHands()
    try:
        app = worker_app(connection)
        warden = Warden(hands, worker_settings.grace)
        take_duty(app, hands.runner, output_policy(worker_settings), is_going=lambda: warden.is_going)
        tell_arrivals()
        worker = make_worker(app, worker_settings, hands, warden)
        with signals_to(warden):
            warden.watch(worker)
            worker.start()
    finally:
        hands.close()


def worker_app(connection: Connection) -> Celery:
    """With a connection that notices when it is dead, and results that are tried again until they are stored."""
    settings: dict[str, Any] = {
        "broker_connection_max_retries": None,
        "broker_heartbeat": HEARTBEAT,
        "result_backend_always_retry": True,
        "worker_send_task_events": True,
        "worker_deduplicate_successful_tasks": True,
        "broker_transport_options": transport_options(connection.broker),
    }
    return app_for(connection, **settings)


def transport_options(broker: str) -> dict[str, Any]:
    if scheme_of(broker) in REDIS_SCHEMES:
        return {
            **REDIS_PRIORITIES,
            "socket_timeout": SOCKET_TIMEOUT,
            "socket_connect_timeout": SOCKET_TIMEOUT,
            "socket_keepalive": True,
            "socket_keepalive_options": {
                getattr(socket, name): value for name, value in KEEPALIVE.items() if hasattr(socket, name)
            },
            "health_check_interval": HEALTH_CHECK,
            "visibility_timeout": VISIBILITY_TIMEOUT,
        }
    if scheme_of(broker) in AMQP_SCHEMES:
        return {"read_timeout": HEARTBEAT, "write_timeout": HEARTBEAT}
    return {}


def output_policy(settings: WorkerSettings) -> OutputPolicy:
    if settings.output is None:
        return OutputPolicy()
    folder = Path(settings.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InvalidConfig("output", f"{folder}: {error.strerror}", "name a folder to write in") from None
    return OutputPolicy(directory=folder.absolute())


def make_worker(app: Celery, settings: WorkerSettings, hands: Hands, warden: Warden) -> Worker:
    app.log.already_setup = True  # Celery's children would set up logs of their own
    app.steps["consumer"].add(Revokes)
    name = settings.name or f"celeriac-{os.getpid()}"
    hostname = name if "@" in name else f"{name}@{HOST}"
    setup_worker_optimizations(app, hostname)
    worker = Worker(
        app=app,
        hostname=hostname,
        hands=hands,
        warden=warden,
        pool=CommandPool if settings.pool == "threads" else ProcessPool,
        consumer_cls=WatchedConsumer,
        concurrency=settings.concurrency,
        autoscale=settings.autoscale,
        queues=list(settings.queues),
        without_gossip=True,
        without_mingle=True,
    )
    if worker.hub is None:
        kind = scheme_of(app.conf.broker_url)
        raise InvalidConfig("broker", f"no worker can wait on {kind!r}", "give Redis, Valkey or RabbitMQ")
    return worker


@contextmanager
def signals_to(warden: Warden) -> Iterator[None]:
    before = {n: signal.signal(n, lambda *_: warden.ask_to_go()) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Worker(WorkController):  # type: ignore[misc]
    """Raises what breaks it, where Celery's own would log it and stop."""

    def __init__(self, *, hands: Hands, warden: Warden, **options: Any) -> None:
        self.hands, self.warden, self.watchdog = hands, warden, Watchdog()
        self.pool: Any
        super().__init__(**options)

    def start(self) -> None:
        try:
            self.blueprint.start(self)
        except SystemExit:
            self.stop()
        except PreconditionFailed as error:
            self.stop()
            queue = re.search(r"queue '([^']*)'", error.reply_text)
            raise QueueRefused(queue[1] if queue else "?", error.reply_text) from None

    def on_consumer_ready(self, consumer: Any) -> None:
        tell("ready", worker=self.hostname, queues=",".join(self.app.amqp.queues.consume_from))

    @property
    def is_busy(self) -> bool:
        """Whether anything runs, or has run and is not yet acknowledged."""
        return bool(self.pool.out if isinstance(self.pool, CommandPool) else worker_state.reserved_requests)


class WatchedConsumer(Consumer):  # type: ignore[misc]
    def connection_for_read(self, heartbeat: Any = None) -> Any:
        connection = super().connection_for_read(heartbeat)
        self.controller.watchdog.listen_to(connection.transport)
        return connection


class CommandPool(ThreadPool):  # type: ignore[misc]
    """Celery's threads; with each end of a task the event loop is woken, for its acknowledgement waits there."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.out: set[object] = set()
        self.wake: Waker = lambda: None

    def on_apply(self, target: Any, args: Any = None, kwargs: Any = None, callback: Any = None, **options: Any) -> Any:
        token = object()
        self.out.add(token)

        def run(*args: Any, **kwargs: Any) -> Any:
            try:
                return target(*args, **kwargs)
            except BaseException:
                self._ended(token)
                raise

        def on_end(*args: Any, **kwargs: Any) -> None:
            try:
                callback(*args, **kwargs)
            finally:
                self._ended(token)

        return super().on_apply(run, args, kwargs, on_end, **options)

    def _ended(self, token: object) -> None:
        self.out.discard(token)
        self.wake()


class Revokes(bootsteps.StartStopStep):  # type: ignore[misc]
    """Lets a remote revoke end what runs, where Celery's own reaches only what has not started."""

    requires = (Control,)

    def start(self, consumer: Any) -> None:
        node = consumer.blueprint[Control.name].box.node
        celerys = node.handlers["revoke"]

        def revoke(state: Any, task_id: Any, **_: Any) -> Any:
            answer = celerys(state, task_id=task_id)
            ids = {task_id} if isinstance(task_id, str) else set(task_id)
            for request in list(worker_state.reserved_requests):
                if request.id in ids:
                    consumer.controller.hands.revoke(request.id, request.worker_pid)
            return answer

        node.handlers = {**node.handlers, "revoke": revoke, "terminate": revoke}

    def register_with_event_loop(self, consumer: Any, hub: Any) -> None:
        consumer.controller.warden.register_with(hub)

    def info(self, consumer: Any) -> dict[str, Any]:
        return {"celeriac": {"running": len(worker_state.active_requests)}}


class Warden:
    """A thread beside the event loop: looks whether the broker lives, and sees the worker out when it must go."""

    def __init__(self, hands: Hands, grace: float) -> None:
        self._hands, self._grace = hands, grace
        self._asked: SimpleQueue[None] = SimpleQueue()
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)
        self._woken.setblocking(False)
        self.is_going = False

    def ask_to_go(self) -> None:
        """Once: finish what runs. Twice: at once. Safe in a signal handler."""
        self._asked.put(None)

    def watch(self, worker: Worker) -> None:
        if isinstance(worker.pool, CommandPool):
            worker.pool.wake = self.wake
        threading.Thread(target=self._run, args=(worker,), name="celeriac-warden", daemon=True).start()

    def wake(self) -> None:
        """Make the event loop look at what waits for it."""
        with contextlib.suppress(BlockingIOError):  # woken often enough already
            self._waker.send(b"!")

    def register_with(self, hub: Any) -> None:
        hub.add_reader(self._woken.fileno(), self._on_wake)

    def _on_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(4096)

    def _run(self, worker: Worker) -> None:
        while not self._was_asked(TICK):
            worker.watchdog.look(worker.hub)
        self.is_going = True
        deadline = time.monotonic() + self._grace
        while time.monotonic() < deadline and not self._was_asked(GOING_TICK):
            self._see_out(worker)
        tell("going: what runs is ended")
        self._hands.end()
        deadline = time.monotonic() + LAST_PATIENCE
        while time.monotonic() < deadline:
            self._see_out(worker)
            time.sleep(GOING_TICK)
        logger.error("the worker could not hand back its last messages: the broker will deliver them again")
        self._hands.close()
        os._exit(0)  # threads that wait for a result backend that is away cannot be ended otherwise

    def _was_asked(self, timeout: float) -> bool:
        try:
            self._asked.get(timeout=timeout)
        except Empty:
            return False
        return True

    def _see_out(self, worker: Worker) -> None:
        """Take no more messages; stop once nothing runs. What is left to acknowledge comes first."""
        if worker.consumer.connection is None:
            if not worker.is_busy:
                worker_state.should_stop = 0
            return
        worker.hub.call_soon(partial(self._step_out, worker))
        self.wake()

    def _step_out(self, worker: Worker) -> None:
        consumer = worker.consumer
        if queues := list(consumer.app.amqp.queues.consume_from):
            for queue in queues:
                consumer.cancel_task_queue(queue)
            tell("going: nothing more is taken", running=len(worker_state.active_requests))
        if not worker.is_busy:
            worker.hub.call_soon(stop)
            self.wake()


def stop() -> None:
    worker_state.should_stop = 0
