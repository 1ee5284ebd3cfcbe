"""The sentences of the scheduler's executor about waiting tasks: for the page, for `explain`, and in the log."""

from __future__ import annotations

import json
import logging
import os
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow.executors.base_executor import ExecutorConf
from airflow.utils.session import create_session
from redis import Redis

from celeriac.airflow import CeleryExecutor
from celeriac.airflow.explanations import MAX_ANSWERS, place_status, slots_status
from celeriac.airflow.options import InvalidAirflowConfig
from celeriac.airflow.page.schedulers import QUIET, Schedulers
from celeriac.airflow.queued_watch import MAX_LINES, REPEAT_AFTER, QueuedWatch, queued_limit
from celeriac.broker.app import make_app
from celeriac.broker.session import BrokerSession
from celeriac.control.broker_client import BrokerControlClient
from celeriac.executor.requests import (
    CancelOutcome,
    CancelRequest,
    CurrentStatus,
    ExplainRequest,
    PriorityRequest,
    WaitReason,
)
from tests.airflow import stored, workloads
from tests.airflow.test_worker import airflow
from tests.support.cli_runner import until
from tests.support.servers import RedisServer, free_port

SENT = CurrentStatus(waits_for=WaitReason.START, words="queued")


@pytest.fixture
def redis(shared_redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> RedisServer:
    with Redis(port=shared_redis.port) as client:
        client.flushall()
    monkeypatch.setenv("AIRFLOW__CELERY__BROKER_URL", shared_redis.url)
    monkeypatch.setenv("AIRFLOW__CELERY__RESULT_BACKEND", shared_redis.url)
    return shared_redis


@contextmanager
def executor_of(parallelism: int = 8) -> Any:
    executor = CeleryExecutor(parallelism=parallelism)
    executor.start()
    try:
        yield executor
    finally:
        executor.end()


@contextmanager
def beating(executor: CeleryExecutor) -> Any:
    """Make heartbeats in a thread, while the test asks."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(0.1):
            executor.heartbeat()

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def ask(redis: RedisServer, request: Any) -> list[Any]:
    app = make_app(broker_url=redis.url, result_backend=redis.url)
    with BrokerSession(app, timeout=2.0).open() as connection:
        return list(BrokerControlClient(connection).send_request(request))


def queue(executor: CeleryExecutor, *names: str) -> list[str]:
    """Return the ids of the rows."""
    tasks = [workloads.task(name, queue="gpu") for name in names]
    for task in tasks:
        executor.queue_workload(task, session=None)
    return [str(task.ti.id) for task in tasks]


def test_words_for_a_slot_and_for_workers():
    full = slots_status(parallelism=4, in_use=4, ahead=2)
    assert full.words == "waiting: all 4 slots of [core] parallelism are in use; 2 more urgent before it"
    assert slots_status(parallelism=4, in_use=3, ahead=9).waits_for is WaitReason.HEARTBEAT
    assert slots_status(parallelism=0, in_use=99, ahead=0).waits_for is WaitReason.HEARTBEAT
    assert place_status(SENT, "gpu", None, None) is SENT
    assert place_status(SENT, "gpu", None, 0).words == "queued; no live worker serves queue 'gpu'"
    assert place_status(SENT, "gpu", None, 1).words == "queued; the live workers of its queue have 1 slot"
    assert "worker celery@h has received it" in place_status(SENT, "gpu", "celery@h", 4).words


def test_a_task_is_named_once_and_again_after_ten_minutes():
    watch = QueuedWatch(60.0)
    assert watch.is_time(0.0)
    assert watch.due(["a"], 0.0) == []
    assert not watch.is_time(1.0)
    assert watch.due(["a", "b"], 60.0) == ["a"]
    assert watch.due(["a", "b"], 70.0) == []
    assert watch.due(["a", "b"], 120.0) == ["b"]
    assert watch.due(["a", "b"], 60.0 + REPEAT_AFTER) == ["a"]
    assert watch.due(["b"], 61.0 + REPEAT_AFTER) == []  # "a" has started
    assert watch.due(["a"], 62.0 + REPEAT_AFTER) == []  # and is queued again


def test_many_tasks_are_named_in_parts():
    watch, names = QueuedWatch(1.0), [f"{n:02}" for n in range(2 * MAX_LINES)]
    watch.due(names, 0.0)
    assert [*watch.due(names, 1.0), *watch.due(names, 2.0), *watch.due(names, 3.0)] == names
    assert not QueuedWatch(0.0).is_time(1e9)


def test_a_scheduler_explains_what_is_sent_and_what_is_not(database, redis):
    app = make_app(broker_url=redis.url, result_backend=redis.url)
    with executor_of(parallelism=1) as executor:
        sent, unsent = queue(executor, "one", "two")
        with beating(executor):
            said: dict[str, Any] = {}

            def knows_both() -> bool:
                said.update(Schedulers(app, 2.0).explain([sent, unsent, "another"]))  # one waits after no answer
                return set(said) == {sent, unsent} and "no live worker" in said[sent].words

            until(knows_both, "the sentences")
    assert said[sent].words.endswith("0 of this executor's tasks before it; no live worker serves queue 'gpu'")
    assert said[unsent].words == "waiting: all 1 slots of [core] parallelism are in use"
    assert [event.state.value for event in said[sent].events][-1] == "queued"
    assert "a-token" not in repr(said)


def test_other_processes_can_change_nothing_and_ask_no_more_than_a_heartbeat_can_bear(database, redis):
    with executor_of() as executor, beating(executor):
        (name,) = queue(executor, "one")
        until(lambda: executor.running, "the message")
        (cancelled,) = (each.cancelled for each in ask(redis, CancelRequest(names=(name,), queues=("gpu",))))
        assert [fate.outcome for fate in cancelled.fates] == [CancelOutcome.UNKNOWN]
        assert cancelled.emptied == {"gpu": 0}
        (reply,) = ask(redis, PriorityRequest(name=name, priority=5))
        assert reply.priority == "unknown"
        (reply,) = ask(redis, ExplainRequest(name="x", others=(*"y" * MAX_ANSWERS, name)))
        assert reply.explanations() == []
        assert executor.running


def test_without_a_scheduler_viewers_do_not_wait_again(redis, monkeypatch):
    monkeypatch.setenv("AIRFLOW__CELERIAC__EXPLAIN_CHANNEL", "False")
    with executor_of() as executor, beating(executor):
        (name,) = queue(executor, "one")
        schedulers = Schedulers(make_app(broker_url=redis.url, result_backend=redis.url), 2.0)
        assert schedulers.explain([name]) == {}
        assert schedulers.explain(["another"]) == {}
        assert list(schedulers._kept) == [name]  # the second one was not asked
        assert QUIET > 0
    dead = make_app(broker_url=f"redis://127.0.0.1:{free_port()}/0", result_backend=redis.url)
    assert Schedulers(dead, 1.0).explain(["x"]) == {}


def test_the_log_says_why_a_task_is_queued(database, redis, monkeypatch, caplog):
    monkeypatch.setenv("AIRFLOW__CELERIAC__EXPLAIN_QUEUED_AFTER", "0.2")
    ids = stored.store(["queued", "running", "queued"], queue="gpu")
    with executor_of() as executor, create_session() as session, caplog.at_level(logging.WARNING):
        loaded = stored.load(session, ids)
        loaded[0].queued_dttm = datetime.now(UTC) - timedelta(hours=3, seconds=10)
        executor.try_adopt_task_instances(loaded)
        session.commit()

        def lines() -> list[str]:
            executor.heartbeat()
            return sorted(text for each in caplog.records if "queued: at the broker" in (text := each.getMessage()))

        until(lambda: len(lines()) == 2, "the lines")
        with_time, without = lines()
        assert ".t0, run run, try 2, has been queued for 3 h 0 min: queued: at the broker for" in with_time
        assert ".t2, run run, try 2, is queued, since a time that is not stored: queued: at the broker for" in without
        assert executor.get_event_buffer() == {} or all(
            state == "queued" for state, _ in executor.get_event_buffer().values()
        )


@pytest.mark.parametrize("value", ["-1", "inf", "soon"])
def test_a_wrong_limit_is_named(monkeypatch, value):
    monkeypatch.setenv("AIRFLOW__CELERIAC__EXPLAIN_QUEUED_AFTER", value)
    with pytest.raises(InvalidAirflowConfig, match=r"^\[celeriac\] explain_queued_after: "):
        queued_limit(ExecutorConf())


def test_the_command(database, redis, tmp_path, monkeypatch):
    environment = {**os.environ, "COLUMNS": "200"}
    (celery_id,) = stored.store(["queued"], queue="gpu")
    with executor_of() as executor, create_session() as session:
        (ti,) = stored.load(session, [celery_id])
        names = (ti.dag_id, ti.task_id, ti.run_id)
        executor.try_adopt_task_instances([ti])
        session.commit()
        with beating(executor):
            text = airflow("celeriac", "explain", *names, environment=environment).stdout
            done = airflow("celeriac", "explain", *names, "-o", "json", environment=environment)
    assert text.startswith(f"{ti.dag_id}.t0, run run, try 2: queued")
    assert "No worker with a lease serves the queue 'gpu'" in text
    assert "says: queued: at the broker for" in text
    content = json.loads(done.stdout)
    assert (content["state"], content["celery_id"], content["map_index"]) == ("queued", celery_id, -1)
    assert content["executor"]["now"].startswith("queued: at the broker for")
    failed = airflow("celeriac", "explain", ti.dag_id, "nothing", "run", environment=environment, status=1)
    assert "there is no such task instance" in failed.stderr
