"""The private names of Celery, Kombu and billiard that Celeriac uses exist in the installed versions."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from operator import attrgetter
from typing import Any

import billiard
import celery
import kombu
import pytest
from celery.worker import state
from celery.worker.consumer.control import Control

from celeriac.broker import celery_internals
from celeriac.broker.app import make_app
from celeriac.worker import celery_internals as worker_internals

pytestmark = pytest.mark.celery

VERSIONS = f"Celery {celery.__version__}, Kombu {kombu.__version__}, billiard {billiard.__version__}"

CLASS_NAMES = [
    ("kombu.transport.redis", "Channel", "_q_for_pri"),
    ("kombu.transport.redis", "Channel", "unacked_key"),
    ("kombu.transport.redis", "Channel", "conn_or_acquire"),
    ("kombu.transport.redis", "Channel", "keyprefix_queue"),
    ("kombu.transport.redis", "Channel", "priority_steps"),
    ("kombu.transport.redis", "Channel", "global_keyprefix"),
    ("kombu.transport.redis", "GlobalKeyPrefixMixin", "_prefix_args"),
    ("kombu.transport.redis", "Channel", "_do_restore_message"),
    ("kombu.transport.redis", "QoS", "_remove_from_indices"),
    ("kombu.transport.redis", "QoS", "append"),
    ("kombu.transport.redis", "QoS", "restore_by_tag"),
    ("kombu.transport.redis", "Transport", "on_readable"),
    ("kombu.transport.redis", "Channel", "_brpop_read"),
    ("kombu.transport.redis", "Channel", "_receive"),
    ("kombu.transport.redis", "Channel", "_create_client"),
    ("kombu.transport.virtual", "Transport", "_callbacks"),
    ("kombu.transport.pyamqp", "Transport", "Connection"),
    ("kombu.message", "Message", "_decoded_cache"),
    ("kombu.transport.virtual", "Channel", "do_restore"),
    ("kombu", "Connection", "declared_entities"),
    ("kombu", "Connection", "create_transport"),
    ("celery.backends.base", "Backend", "_get_result_meta"),
    ("celery.backends.base", "KeyValueStoreBackend", "_store_result"),
    ("celery.backends.base", "KeyValueStoreBackend", "_get_task_meta_for"),
    ("celery.backends.database", "DatabaseBackend", "_store_result"),
    ("celery.backends.database", "DatabaseBackend", "_get_task_meta_for"),
    ("celery.backends.redis", "RedisBackend", "_create_client"),
    ("celery.backends.database.session", "SessionManager", "create_session"),
    ("celery", "Celery", "_get_backend"),
    ("celery.worker.consumer", "Consumer", "_restore_prefetch_count_after_connection_restart"),
    ("celery.worker.consumer", "Consumer", "create_task_handler"),
    ("celery.worker.consumer", "Consumer", "on_decode_error"),
    ("celery.worker.consumer", "Consumer", "on_invalid_task"),
    ("celery.worker.consumer", "Consumer", "on_unknown_message"),
    ("celery.worker.consumer", "Consumer", "on_unknown_task"),
    ("celery.worker.consumer", "Consumer", "on_connection_error_after_connected"),
    ("celery.worker.consumer", "Consumer", "max_prefetch_count"),
    ("celery.worker.consumer.control", "Control", "name"),
    ("celery.app.amqp", "AMQP", "queues_cls"),
    ("celery.app.amqp", "Queues", "new_missing"),
    ("celery.app.amqp", "Queues", "add_compat"),
    ("kombu", "Connection", "failover_strategies"),
    ("kombu", "Connection", "cycle"),
    ("celery.concurrency.thread", "TaskPool", "on_apply"),
    ("celery.concurrency.prefork", "TaskPool", "terminate_job"),
    ("celery.concurrency.prefork", "TaskPool", "on_start"),
]
MODULE_NAMES = [
    ("amqp.method_framing", "frame_handler"),
    ("celery.worker.strategy", "default"),
    ("celery.app.trace", "setup_worker_optimizations"),
    ("celery.concurrency.base", "apply_target"),
    ("celery.worker.state", "should_stop"),
    ("celery.worker.state", "maybe_shutdown"),
    ("celery.worker.state", "active_requests"),
    ("celery.worker.state", "reserved_requests"),
    ("celery.worker.state", "revoked"),
    ("celery.utils.quorum_queues", "detect_quorum_queues"),
    ("billiard.util", "set_pdeathsig"),
]


def missing(name: str) -> str:
    return f"{name} does not exist in {VERSIONS}: adapt the function of celery_internals that uses it"


@pytest.mark.parametrize(("module", "cls", "name"), CLASS_NAMES)
def test_the_class_has_the_private_name(module, cls, name):
    assert hasattr(getattr(import_module(module), cls), name), missing(f"{module}.{cls}.{name}")


@pytest.mark.parametrize(("module", "name"), MODULE_NAMES)
def test_the_module_has_the_private_name(module, name):
    assert hasattr(import_module(module), name), missing(f"{module}.{name}")


@pytest.mark.parametrize(
    ("module", "function", "parameters"),
    [
        ("kombu.transport.redis", "Channel._q_for_pri", ["queue", "pri"]),
        ("kombu.transport.redis", "QoS.restore_by_tag", ["tag", "leftmost"]),
        ("kombu.transport.redis", "QoS._remove_from_indices", ["delivery_tag"]),
        ("celery.backends.base", "Backend._get_result_meta", ["result", "state", "traceback", "request"]),
        ("celery.app.trace", "setup_worker_optimizations", ["app", "hostname"]),
    ],
)
def test_the_private_function_takes_the_arguments(module, function, parameters):
    signature = inspect.signature(attrgetter(function)(import_module(module)))
    for parameter in parameters:
        assert parameter in signature.parameters, missing(f"parameter {parameter} of {module}.{function}")


@pytest.fixture
def app():
    with make_app(broker_url="memory://", result_backend="cache+memory://") as app:
        yield app


def test_each_new_backend_of_an_app_is_wrapped(app):
    old, wrapped = app.backend, []

    def wrap(backend: Any) -> Any:
        wrapped.append(backend)
        return backend

    celery_internals.wrap_backend(app, wrap)
    assert app.backend is not old, missing("celery.Celery._local")
    assert wrapped == [app.backend]


def test_a_database_backend_decodes_its_results_with_the_given_functions(tmp_path, monkeypatch):
    app = make_app(broker_url="memory://", result_backend=f"db+sqlite:///{tmp_path}/results.db")
    backend = app.backend
    decode: Callable[[Any], Any] = repr
    column = backend.task_cls.__table__.c.result.type
    if hasattr(column, "pickler"):
        monkeypatch.setattr(column, "pickler", column.pickler)  # all backends share it: restore it afterwards
    pickler = object()
    celery_internals.set_result_decoder(backend, decode, pickler=pickler)
    if hasattr(column, "pickler"):
        assert column.pickler is pickler, missing("the pickler of celery.backends.database.models.Task.result")
    else:
        assert celery_internals.decode_stored_result(backend, b"x") == "b'x'"
        assert hasattr(type(backend), "_decode_stored_result"), missing("DatabaseBackend._decode_stored_result")


def test_a_session_manager_can_be_told_to_keep_its_connections():
    manager = import_module("celery.backends.database.session").SessionManager()
    assert hasattr(manager, "forked"), missing("celery.backends.database.session.SessionManager.forked")
    celery_internals.keep_connections(manager)
    first, _ = manager.create_session("sqlite://")
    again, _ = manager.create_session("sqlite://")
    assert first is again


def test_a_worker_has_the_private_attributes(app):
    class Node:
        handlers = {"revoke": print, "ping": print}  # noqa: RUF012

    worker = app.WorkController(pool="solo", hostname="w@h")
    consumer = import_module("celery.worker.consumer").Consumer(
        lambda _: None, app=app, controller=worker, hostname="w@h", pool=worker.pool
    )
    assert worker_internals.worker_of(consumer) is worker, missing("celery.worker.consumer.Consumer.controller")
    control = consumer.blueprint[Control.name]
    assert hasattr(control.box, "node"), missing("celery.worker.pidbox.Pidbox.node")
    control.box.node = Node()
    worker_internals.set_control_handlers(consumer, revoke=repr)
    assert control.box.node.handlers == {"revoke": repr, "ping": print}


def test_the_event_loop_can_be_stopped(monkeypatch):
    monkeypatch.setattr(state, "should_stop", None)
    worker_internals.stop_event_loop()
    with pytest.raises(SystemExit) as ended:
        state.maybe_shutdown()
    assert ended.value.code == 0
