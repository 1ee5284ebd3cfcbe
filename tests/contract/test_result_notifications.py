"""PostgreSQL announces stored results by a trigger and NOTIFY, with real servers. No worker sends task events here."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from celery import Celery, states
from sqlalchemy.exc import DBAPIError

from celeriac import Cluster, Config
from celeriac.backend.results import notifications, results_for
from celeriac.backend.results.database import make_engine
from celeriac.backend.results.reader import BackendResults
from celeriac.backend.results.trigger import LOCKS, NOTIFY_LOCK, TRIGGER, ResultTrigger
from celeriac.broker.app import make_app
from celeriac.doctor.database import read_backend
from tests.support.cli_runner import until
from tests.support.servers import PgBouncer, PostgresServer

pytestmark = pytest.mark.celery

TIMEOUT = 2.0  # seconds that one read may take
NO_BROKER = "memory://"  # it has no task events
REPORT = {"reason": None, "detail": None, "execution": {"host": "h", "exit_code": 0}}


@pytest.fixture
def server(postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> PostgresServer:
    """A PostgreSQL without tables. The listener looks at its trigger again soon."""
    monkeypatch.setattr(notifications, "CHECK_INTERVAL", 0.2)
    postgres.sql(f"DROP TABLE IF EXISTS celery_taskmeta, celery_tasksetmeta; DROP FUNCTION IF EXISTS {TRIGGER} CASCADE")
    return postgres


@pytest.fixture
def open_reader() -> Iterator[Callable[[str], BackendResults]]:
    with ExitStack() as stack:
        yield lambda url: stack.enter_context(results_for(app_on(url), timeout=TIMEOUT, trigger=True))


def app_on(url: str, **settings: Any) -> Celery:
    return make_app(broker_url=NO_BROKER, result_backend=url, operation_timeout=TIMEOUT, **settings)


def store(app: Celery, task_id: str = "") -> str:
    """Store a result as a worker does. Return the task's id."""
    task_id = task_id or uuid4().hex
    app.backend.store_result(task_id, REPORT, states.SUCCESS)
    return task_id


def until_announced(app: Celery, *readers: BackendResults) -> None:
    """Store results until each reader was told of one."""
    for reader in readers:

        def is_announced(reader: BackendResults = reader) -> bool:
            task_id = store(app)
            reader.wait(0.5)
            return task_id in reader.changed()

        until(is_announced, "a notification")


def triggers(server: PostgresServer) -> list[str]:
    rows = server.sql(f"SELECT tgrelid::regclass::text FROM pg_trigger WHERE tgname = '{TRIGGER}' ORDER BY 1")
    return [table for (table,) in rows]


def is_stored(server: PostgresServer, task_id: str) -> bool:
    return server.sql(f"SELECT status FROM celery_taskmeta WHERE task_id = '{task_id}'") == [("SUCCESS",)]


def test_a_stored_result_is_announced(server, open_reader):
    reader, app = open_reader(server.url), app_on(server.url)
    until_announced(app, reader)
    task_id = store(app)
    assert reader.read([task_id]).keys() == {task_id}
    assert not reader.pushes


def test_the_trigger_is_on_the_table_that_celery_is_told_to_use(server):
    server.sql('CREATE SCHEMA IF NOT EXISTS "Team 1"')
    names = {"task": "the % results", "group": "the groups"}
    schemas = {"task": "Team 1", "group": "Team 1"}
    app = app_on(server.url, database_table_names=names, database_table_schemas=schemas)
    try:
        with results_for(app, timeout=TIMEOUT, trigger=True) as reader:
            until_announced(app, reader)
        assert triggers(server) == ['"Team 1"."the % results"']
    finally:
        app.backend.task_cls.configure()  # the table's name belongs to Celery's class, not to the app
        app.backend.taskset_cls.configure()
        server.sql('DROP SCHEMA "Team 1" CASCADE')


def test_several_executors_create_one_trigger(server, open_reader, caplog):
    caplog.set_level(logging.INFO, logger="celeriac")
    app = app_on(server.url)
    store(app)
    readers = [open_reader(server.url) for _ in range(8)]
    until_announced(app, *readers)
    assert triggers(server) == ["celery_taskmeta"]
    assert caplog.messages == []


def test_a_table_that_is_created_again_gets_the_trigger_again(server, open_reader):
    reader, app = open_reader(server.url), app_on(server.url)
    until_announced(app, reader)
    server.sql("DROP TABLE celery_taskmeta")
    until_announced(app_on(server.url), reader)


def test_a_role_without_the_right_leaves_it_to_task_events(server, open_reader, caplog):
    caplog.set_level(logging.INFO, logger="celeriac")
    app = app_on(server.url)
    store(app)
    role, url = server.role()
    server.sql(f"GRANT SELECT, INSERT, UPDATE, DELETE ON celery_taskmeta TO {role}")
    reader = open_reader(f"db+{url}")
    until(lambda: caplog.messages, "the line about it")
    task_id = store(app)
    assert reader.read([task_id]).keys() == {task_id}
    open_reader(server.url)  # of the owner, who creates it
    until_announced(app, reader)
    assert [line.partition(":")[0] for line in caplog.messages] == [
        "PostgreSQL announces no results, so only Celery's task events do"
    ]
    assert [record.levelname for record in caplog.records] == ["INFO"]


def test_a_disabled_trigger_stays_disabled(server, open_reader, caplog):
    caplog.set_level(logging.INFO, logger="celeriac")
    app = app_on(server.url)
    until_announced(app, open_reader(server.url))
    server.sql(f"ALTER TABLE celery_taskmeta DISABLE TRIGGER {TRIGGER}")
    open_reader(server.url)
    until(lambda: "is disabled" in caplog.text, "the line about it")
    assert server.sql(f"SELECT tgenabled FROM pg_trigger WHERE tgname = '{TRIGGER}'") == [("D",)]


def test_no_trigger_is_created_if_the_setting_says_so(server):
    app = app_on(server.url)
    store(app)
    with Cluster(NO_BROKER, server.url, config=Config(result_trigger=False), control_channel=False) as cluster:
        assert len(cluster._results._change_feeds) == 0
    with Cluster(NO_BROKER, server.url, control_channel=False):
        until(lambda: triggers(server), "the trigger")


def test_the_docs_show_the_statements():
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    statements = ResultTrigger(app_on("db+sqlite://").backend.task_cls.__table__).statements("public")
    assert ";\n".join(statements) in re.sub("^  ", "", page, flags=re.M)


def test_the_doctor_says_whether_results_are_announced(server, open_reader):
    def changes(url: str) -> str:
        return read_backend(app_on(url), TIMEOUT).changes

    assert "when Celery has created its table" in changes(server.url)
    app = app_on(server.url)
    store(app)
    assert "the next executor creates the trigger" in changes(server.url)
    role, url = server.role()
    server.sql(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}")
    server.sql(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role}")
    assert "may not create the trigger" in changes(f"db+{url}")
    until_announced(app, open_reader(server.url))
    assert changes(server.url) == changes(f"db+{url}") == f"the trigger {TRIGGER} announces stored results"
    with closing(PgBouncer(server)) as bouncer:
        assert "a pooler is before the server" in changes(bouncer.url)
    server.sql(f"ALTER TABLE celery_taskmeta DISABLE TRIGGER {TRIGGER}")
    assert "is disabled" in changes(server.url)


# — faults —


def test_the_listener_connects_again_when_its_connection_is_killed(server, open_reader):
    reader, app = open_reader(server.url), app_on(server.url)
    until_announced(app, reader)
    others = "datname = current_database() AND pid <> pg_backend_pid()"
    server.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}")
    until_announced(app, reader)


@pytest.mark.parametrize("fault", ["kill", "freeze"])
def test_the_listener_connects_again_after_an_outage(server, open_reader, fault):
    reader, app = open_reader(server.url), app_on(server.url)
    until_announced(app, reader)
    getattr(server, fault)()
    assert reader.read(["a"]) == {}
    server.start() if fault == "kill" else server.thaw()
    until_announced(app_on(server.url), reader)


def test_nothing_is_listened_for_behind_a_pooler(server, open_reader, caplog):
    caplog.set_level(logging.INFO, logger="celeriac")
    app = app_on(server.url)
    with closing(PgBouncer(server)) as bouncer:
        reader = open_reader(bouncer.url)
        until(lambda: caplog.messages, "the line about it")
        task_id = store(app_on(bouncer.url))
        assert reader.read([task_id]).keys() == {task_id}
        reader.close()
    assert caplog.text.count("a pooler is before the server, which loses notifications") == 1
    assert server.sql("SELECT 1 FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND state = 'idle'") == []
    until_announced(app, open_reader(server.url))  # the executor beside it has a connection to the server


def test_a_store_waits_for_no_other_commit_with_a_notification(server, open_reader):
    reader, app = open_reader(server.url), app_on(server.url)
    until_announced(app, reader)
    reader.changed()
    with psycopg.connect(server.dsn, autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(%s, %s)", (LOCKS, NOTIFY_LOCK))
        silent = [store(app) for _ in range(3)]
    until_announced(app, reader)
    assert [is_stored(server, task_id) for task_id in silent] == [True] * 3
    assert not set(silent) & reader.changed()


def test_results_are_stored_while_the_queue_of_notifications_is_too_full(server, open_reader):
    app = app_on(server.url)
    store(app)
    with closing(app):
        engine = make_engine(app.backend, TIMEOUT)
        trigger = ResultTrigger(app.backend.task_cls.__table__, max_queue_usage=0.0)
        trigger.create(engine)
        reader = open_reader(server.url)
        silent = [store(app) for _ in range(3)]
        server.sql("NOTIFY celeriac_result, 'sign'")
        until(lambda: "sign" in reader.changed(), "a notification")
        engine.dispose()
    assert [is_stored(server, task_id) for task_id in silent] == [True] * 3


def test_an_id_that_no_notification_can_carry_is_stored(server, open_reader):
    reader, app = open_reader(server.url), app_on(server.url)
    until_announced(app, reader)
    server.sql("ALTER TABLE celery_taskmeta ALTER task_id TYPE text")
    assert is_stored(server, store(app, "x" * 9_000))
    until_announced(app, reader)


def test_a_role_that_may_not_notify_stores_its_results(server, open_reader):
    app = app_on(server.url)
    until_announced(app, open_reader(server.url))
    role, url = server.role()
    server.sql(f"GRANT SELECT, INSERT, UPDATE ON celery_taskmeta TO {role}")
    server.sql(f"GRANT USAGE ON SEQUENCE task_id_sequence TO {role}")
    server.sql("REVOKE EXECUTE ON FUNCTION pg_notify(text, text) FROM public")
    try:
        assert is_stored(server, store(app_on(f"db+{url}")))
    finally:
        server.sql("GRANT EXECUTE ON FUNCTION pg_notify(text, text) TO public")


def test_the_trigger_waits_for_no_long_transaction(server, open_reader, caplog):
    """CREATE TRIGGER needs a lock for which later stores would wait, too."""
    caplog.set_level(logging.INFO, logger="celeriac")
    app = app_on(server.url)
    first = store(app)
    with psycopg.connect(server.dsn) as other:
        other.execute("DELETE FROM celery_taskmeta WHERE task_id = %s", (first,))
        reader = open_reader(server.url)
        until(lambda: "lock timeout" in caplog.text, "the line about it")
        assert is_stored(server, store(app))
    until_announced(app, reader)


def test_create_raises_the_errors_of_the_server(server):
    app = app_on(server.url)
    store(app)
    _, url = server.role()
    engine = make_engine(app_on(f"db+{url}").backend, TIMEOUT)
    with pytest.raises(DBAPIError, match="permission denied"):
        ResultTrigger(app.backend.task_cls.__table__).create(engine)
    engine.dispose()
