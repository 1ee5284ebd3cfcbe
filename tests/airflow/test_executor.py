"""The executor's contract with the scheduler.

Upstream's CeleryExecutor runs the same tests, but those of what only ours does.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
from airflow.executors import workloads as workload_types
from airflow.executors.base_executor import BaseExecutor
from airflow.utils.session import create_session
from airflow.utils.state import TaskInstanceState
from redis import Redis
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker

from celeriac.airflow import CeleryExecutor, adoption, versions
from celeriac.backend.claims import claims_for
from celeriac.backend.claims.claim import Lease
from celeriac.broker.app import make_app
from celeriac.config.signing import HEADER, SIGNATURE, SigningKeys
from tests.airflow import stored, workloads
from tests.support.cli_runner import until
from tests.support.servers import RedisServer

OURS, UPSTREAM = "ours", "upstream"
HAS_CALLBACKS = hasattr(workload_types, "ExecuteCallback")
HAS_CONNECTION_TESTS = hasattr(workload_types, "TestConnection")
PRE_ASSIGNS = hasattr(BaseExecutor, "pre_assigns_external_executor_id")

both = pytest.mark.parametrize("kind", [OURS, UPSTREAM])
ours = pytest.mark.parametrize("kind", [OURS])


@pytest.fixture
def redis(shared_redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> RedisServer:
    with Redis(port=shared_redis.port) as client:
        client.flushall()
    configure_servers(monkeypatch, shared_redis.url, shared_redis.url)
    return shared_redis


def configure_servers(monkeypatch: pytest.MonkeyPatch, broker: str, backend: str) -> None:
    monkeypatch.setenv("AIRFLOW__CELERY__BROKER_URL", broker)
    monkeypatch.setenv("AIRFLOW__CELERY__RESULT_BACKEND", backend)


@contextmanager
def executor_of(kind: str, parallelism: int = 8, **options: Any) -> Iterator[Any]:
    if kind == OURS:
        executor = CeleryExecutor(parallelism=parallelism, **options)
    else:
        if find_spec("airflow.providers.celery") is None:
            pytest.skip("upstream's Celery provider is not installed")
        from airflow.providers.celery.executors import celery_executor_utils
        from airflow.providers.celery.executors.celery_executor import CeleryExecutor as UpstreamExecutor

        celery_executor_utils._get_celery_app_for_workload.cache_clear()
        executor = UpstreamExecutor(parallelism=parallelism, **options)
    executor.start()
    try:
        yield executor
    finally:
        if kind == OURS:
            executor.end()


@pytest.fixture
def executor(kind: str, redis: RedisServer) -> Iterator[Any]:
    with executor_of(kind) as executor:
        yield executor


@pytest.fixture
def worker(redis: RedisServer, tmp_path: Path) -> Iterator[Path]:
    """The folder in which a plain Celery worker records the workloads that it starts."""
    script = Path(__file__).with_name("celery_worker.py")
    with subprocess.Popen([sys.executable, script, redis.url, redis.url, tmp_path], process_group=0) as process:
        yield tmp_path
        os.killpg(process.pid, signal.SIGKILL)


def queue(executor: Any, *tasks: Any) -> list[Any]:
    """Return the keys."""
    for task in tasks:
        executor.queue_workload(task, session=None)
    return [versions.workload_key(executor, task) for task in tasks]


def heartbeat_until(executor: Any, condition: Callable[[], Any], description: str) -> None:
    def is_met() -> Any:
        executor.heartbeat()
        return condition()

    until(is_met, description)


def end_events(executor: Any, keys: list[Any]) -> dict[Any, tuple[Any, Any]]:
    """Return the last event of each task, when all have ended."""
    events: dict[Any, Any] = {}

    def have_ended() -> bool:
        events.update(executor.get_event_buffer())
        return all(events.get(key, ("queued",))[0] in ("success", "failed") for key in keys)

    heartbeat_until(executor, have_ended, "the ends")
    return {key: events[key] for key in keys}


def started_names(folder: Path) -> list[str]:
    """Return the names of the workloads that a worker has started, in that order."""
    file = folder / "started"
    return [line.split()[0] for line in file.read_text().splitlines()] if file.exists() else []


def messages_in_broker(redis: RedisServer, queue: str = "default") -> list[dict[str, Any]]:
    """Return the messages, in the order in which a worker takes them: from the lists that every Celery knows."""
    names = [queue, *(f"{queue}\x06\x16{priority}" for priority in (3, 6, 9))]
    with Redis(port=redis.port) as client:
        return [json.loads(message) for name in names for message in reversed(client.lrange(name, 0, -1))]


def task_names(messages: list[dict[str, Any]]) -> list[str]:
    return [json.loads(json.loads(b64decode(message["body"]))[0][0])["ti"]["task_id"] for message in messages]


@both
def test_task_is_queued_sent_and_ended(executor, worker):
    good, bad = workloads.task("good"), workloads.task("fail", queue="gpu")
    keys = queue(executor, good, bad)
    assert executor.slots_available == 6
    assert executor.slots_occupied == 2
    assert not executor.running
    assert executor.has_task(good.ti)
    executor.heartbeat()
    assert executor.running == set(keys)
    assert sum(map(len, versions.executor_queues(executor))) == 0
    assert executor.slots_available == 6
    sent = executor.get_event_buffer()
    assert {state for state, _ in sent.values()} == {TaskInstanceState.QUEUED}
    ends = end_events(executor, keys)
    assert [ends[key][0] for key in keys] == [TaskInstanceState.SUCCESS, TaskInstanceState.FAILED]
    assert executor.slots_available == 8
    assert not executor.has_task(good.ti)
    assert sorted(started_names(worker)) == ["fail", "good"]


@both
def test_queued_event_has_the_assigned_celery_id(executor, redis):
    workload = workloads.task("one")
    (key,) = queue(executor, workload)
    executor.heartbeat()
    state, celery_id = executor.get_event_buffer()[key]
    assert state == TaskInstanceState.QUEUED
    assert [message["headers"]["id"] for message in messages_in_broker(redis)] == [celery_id]
    if hasattr(workload.ti, "external_executor_id"):
        assert celery_id == workload.ti.external_executor_id


@both
def test_messages_equal_those_of_upstream(kind, redis):
    """Compare all fields but those that differ for each message, `argsrepr`, where upstream shows the token, and the
    priority, which upstream does not carry into the broker."""
    workload = workloads.task("one", queue="gpu")
    bodies, envelopes = [], []
    for executor_kind in (OURS, kind):
        with executor_of(executor_kind) as executor:
            queue(executor, workload)
            executor.heartbeat()
        (message,) = messages_in_broker(redis, "gpu")
        with Redis(port=redis.port) as client:
            client.flushall()
        bodies.append(json.loads(b64decode(message.pop("body"))))
        for name in ("id", "root_id", "argsrepr", "origin"):
            message["headers"].pop(name)
        for name in ("correlation_id", "delivery_tag", "priority", "reply_to"):
            message["properties"].pop(name)
        envelopes.append(message)
    assert envelopes[0] == envelopes[1]
    assert bodies[0] == bodies[1]


@ours
def test_highest_priority_weight_is_sent_first_up_to_the_open_slots(kind, redis):
    with executor_of(kind, parallelism=3) as executor:
        queue(executor, *(workloads.task(f"t{n}", priority=n) for n in (2, 5, 1, 9, 3)))
        executor.heartbeat()
        assert task_names(messages_in_broker(redis)) == ["t9", "t5", "t3"]
        assert executor.slots_available == -2  # as the scheduler counts: three are running and two are queued
        executor.heartbeat()
        assert len(messages_in_broker(redis)) == 3


@both
def test_revoke_forgets_a_task_without_an_event(executor, redis, kind):
    sent, queued = workloads.task("sent"), workloads.task("queued")
    queue(executor, sent)
    executor.heartbeat()
    executor.get_event_buffer()
    queue(executor, queued)
    for task in (sent, queued):
        executor.revoke_task(ti=task.ti)
        assert not executor.has_task(task.ti)
    executor.revoke_task(ti=workloads.task("unknown").ti)
    executor.heartbeat()
    assert executor.get_event_buffer() == {}
    assert executor.slots_available == 8


@ours
def test_revoke_ends_a_running_task_on_a_plain_worker(executor, worker):
    slow = workloads.task("slow")
    queue(executor, slow)
    executor.heartbeat()
    until(lambda: started_names(worker) == ["slow"], "its start")
    executor.revoke_task(ti=slow.ti)
    keys = queue(executor, workloads.task("a"), workloads.task("slow2"), workloads.task("b"))
    until(lambda: executor.heartbeat() or "slow2" in started_names(worker), "the second slow one")
    end_events(executor, [keys[0], keys[2]])  # two processes: if the first task had not ended, nothing else could run
    (worker / "go").touch()
    end_events(executor, keys[1:2])


@both
def test_event_buffer_can_be_drained_by_dag(executor, redis):
    keys = queue(executor, workloads.task("a", dag_id="one"), workloads.task("b", dag_id="two"))
    executor.heartbeat()
    assert set(executor.get_event_buffer(["one"])) == {keys[0]}
    assert set(executor.get_event_buffer()) == {keys[1]}


@both
def test_scheduler_can_fail_a_running_task(executor, worker):
    slow = workloads.task("slow")
    (key,) = queue(executor, slow)
    executor.heartbeat()
    until(lambda: started_names(worker) == ["slow"], "its start")
    executor.get_event_buffer()
    executor.change_state(key, TaskInstanceState.FAILED, remove_running=True)
    assert executor.get_event_buffer() == {key: (TaskInstanceState.FAILED, None)}
    assert executor.slots_available == 8
    (worker / "go").touch()
    (other,) = queue(executor, workloads.task("other"))
    end_events(executor, [other])
    executor.heartbeat()
    assert executor.get_event_buffer() == {}


@both
def test_deferred_task_can_return_before_its_first_part_ends(executor, worker):
    first = workloads.task("slow")
    (key,) = queue(executor, first)
    executor.heartbeat()
    until(lambda: started_names(worker) == ["slow"], "its start")
    executor.get_event_buffer()
    again = first.model_copy(deep=True)
    if hasattr(again.ti, "external_executor_id"):
        again.ti.external_executor_id = "00000000-0000-0000-0000-000000000001"
    queue(executor, again)
    executor.heartbeat()
    assert executor.running == {key}
    (worker / "go").touch()
    assert end_events(executor, [key])[key][0] == TaskInstanceState.SUCCESS
    assert started_names(worker) == ["slow", "slow"]
    assert executor.slots_available == 8


@pytest.mark.skipif(not HAS_CALLBACKS, reason="this Airflow has no such workload")
@both
def test_callbacks_are_sent_before_tasks_and_end_in_states_of_callbacks(executor, worker):
    failing = workloads.callback("fail.path", queue="gpu")
    keys = queue(executor, workloads.task("a", priority=99), workloads.callback("good.path"), failing)
    ends = end_events(executor, keys)
    assert [ends[key][0] for key in keys] == ["success", "success", "failed"]
    assert executor.slots_available == 8


@pytest.mark.skipif(not HAS_CONNECTION_TESTS, reason="this Airflow has no such workload")
@ours
def test_connection_tests_run_and_free_their_slots(executor, worker):
    keys = queue(executor, workloads.connection_test("good"), workloads.connection_test("fail", queue="gpu"))
    assert executor.slots_available == 6
    ends = end_events(executor, keys)
    assert [ends[key][0] for key in keys] == ["success", "failed"]
    assert executor.slots_available == 8


@ours
def test_failure_event_has_the_reason(executor, worker):
    (key,) = queue(executor, workloads.task("fail"))
    _, info = end_events(executor, [key])[key]
    assert info == "worker_error: RuntimeError: fail fails, as its name asks"


@ours
def test_results_are_deleted_after_they_are_read(executor, worker, redis):
    keys = queue(executor, workloads.task("good"), workloads.task("fail"))
    end_events(executor, keys)
    with Redis(port=redis.port) as client:
        until(lambda: not client.keys("celery-task-meta-*"), "the end of the results")


@ours
def test_corrupt_result_affects_only_its_task(executor, worker, redis):
    """With upstream, one corrupt result ends the sync of all tasks, for as long as it is stored."""
    keys = queue(executor, workloads.task("slow"), *(workloads.task(f"t{n}") for n in range(3)))
    executor.heartbeat()
    celery_id = executor.get_event_buffer()[keys[0]][1]
    until(lambda: "slow" in started_names(worker), "its start")
    with Redis(port=redis.port) as client:
        client.set(f"celery-task-meta-{celery_id}", b"\x80 garbage")
        client.publish(f"celery-task-meta-{celery_id}", b"changed")
    ends = end_events(executor, keys[1:])
    assert {state for state, _ in ends.values()} == {TaskInstanceState.SUCCESS}
    assert executor.running == {keys[0]}


@ours
def test_tasks_wait_while_broker_and_backend_are_down(kind, redis, worker):
    with executor_of(kind) as executor:
        redis.kill()
        keys = queue(executor, *(workloads.task(f"t{n}") for n in range(5)))
        for _ in range(5):
            executor.heartbeat()
        assert executor.get_event_buffer() == {}
        assert all(len(queued) in (0, 5) for queued in versions.executor_queues(executor))
        redis.start()
        ends = end_events(executor, keys)
    assert {state for state, _ in ends.values()} == {TaskInstanceState.SUCCESS}
    assert sorted(started_names(worker)) == [f"t{n}" for n in range(5)]


@ours
def test_constructor_opens_no_connection_and_starts_no_thread(kind, redis):
    me = psutil.Process()
    threads, connections = threading.active_count(), len(me.net_connections())
    executor = CeleryExecutor(parallelism=4)
    assert executor.slots_available == 4
    assert executor.get_task_log(None, 1) == ([], [])
    executor.end()
    executor.terminate()
    assert threading.active_count() == threads
    assert len(me.net_connections()) == connections


@ours
def test_end_stops_all_threads_and_leaves_tasks_in_flight(kind, redis):
    before = set(threading.enumerate())
    with executor_of(kind) as executor:
        queue(executor, workloads.task("left"))
        executor.heartbeat()
        assert set(threading.enumerate()) > before
    until(lambda: set(threading.enumerate()) <= before, "the end of its threads")
    assert task_names(messages_in_broker(redis)) == ["left"]


def test_import_does_not_import_celery():
    program = "import sys; from celeriac.airflow import CeleryExecutor; print('celery' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.split()[-1] == "False"


def test_debug_dump_shows_slots_and_no_token(redis, capfd):
    with executor_of(OURS) as executor:
        queue(executor, workloads.task("one"))
        executor.heartbeat()
        executor.debug_dump()
    output = "".join(capfd.readouterr())
    assert "slots: 1 of 8 in use" in output
    assert "a-token" not in output


def test_executors_are_hashable_by_identity_and_take_attributes():
    one, other = CeleryExecutor(parallelism=1), CeleryExecutor(parallelism=1)
    assert {one, other} == {other, one}
    one.name = one.job_id = one.callback_sink = "set from outside"
    assert one != other
    assert not one.is_local
    assert not one.serve_logs
    assert one.supports_multi_team
    assert one.supports_sentry


def test_executor_loader_finds_it_by_alias():
    from airflow.executors.executor_loader import ExecutorLoader

    (executor,) = ExecutorLoader.init_executors()
    assert isinstance(executor, CeleryExecutor)
    assert executor.name.alias == "CeleryExecutor"


@pytest.mark.filterwarnings("ignore:Call to deprecated method")
@both
def test_cleanup_revokes_and_fails_stuck_tasks(executor, redis):
    workload = workloads.task("stuck")
    (key,) = queue(executor, workload)
    executor.heartbeat()
    executor.get_event_buffer()
    assert executor.cleanup_stuck_queued_tasks(tis=[workload.ti]) == [repr(workload.ti)]
    assert executor.get_event_buffer() == {key: (TaskInstanceState.FAILED, None)}
    assert executor.slots_available == 8


def adopt_tasks(executor: Any, celery_ids: list[str]) -> tuple[list[Any], list[Any]]:
    """Return the keys, and the task instances that were not adopted."""
    with create_session() as session:
        tis = stored.load(session, celery_ids)
        not_adopted = executor.try_adopt_task_instances(tis)
        return [versions.task_key(executor, ti) for ti in tis], list(not_adopted)


def store_result(redis: RedisServer, celery_id: str, status: str, value: Any = None) -> None:
    """Store and announce a result as Celery's backend does."""
    meta = {"status": status, "result": value, "traceback": None, "children": [], "task_id": celery_id}
    with Redis(port=redis.port) as client:
        client.set(f"celery-task-meta-{celery_id}", json.dumps(meta))
        client.publish(f"celery-task-meta-{celery_id}", json.dumps(meta))


@both
def test_adoption_applies_stored_results_and_tracks_the_rest(executor, redis, database):
    celery_ids = stored.store(["running", "running", "running", "queued"])
    store_result(redis, celery_ids[0], "SUCCESS")
    store_result(
        redis, celery_ids[1], "FAILURE", {"exc_type": "RuntimeError", "exc_message": ["no"], "exc_module": "builtins"}
    )
    keys, not_adopted = adopt_tasks(executor, celery_ids)
    assert not_adopted == []
    events = executor.get_event_buffer()
    assert {key: state for key, (state, _) in events.items()} == {keys[0]: "success", keys[1]: "failed"}
    assert executor.running == set(keys[2:])
    assert executor.slots_available == 6
    store_result(redis, celery_ids[2], "SUCCESS")
    assert end_events(executor, keys[2:3])[keys[2]][0] == "success"


@both
def test_task_without_celery_id_is_not_adopted(executor, redis, database):
    (celery_id,) = stored.store(["queued"])
    with create_session() as session:
        (ti,) = stored.load(session, [celery_id])
        ti.external_executor_id = None
        assert list(executor.try_adopt_task_instances([ti])) == [ti]
        session.rollback()
    assert executor.slots_available == 8


@ours
def test_adopted_task_without_a_message_is_sent_again_under_its_id(executor, worker, database):
    """The scheduler died between its commit and the broker. With upstream the task waits for `task_queued_timeout`."""
    keys, _ = adopt_tasks(executor, stored.store(["queued"]))
    assert end_events(executor, keys)[keys[0]][0] == "success"
    assert started_names(worker) == ["t0"]


@ours
@pytest.mark.parametrize("database_state", ["queued", "running"])
def test_lost_task_that_another_scheduler_has_adopted_is_left_to_it(executor, redis, database, database_state):
    executor.job_id = 1
    _, celery_id = send_with_database_state(database_state, executor)
    with create_session() as session:
        (ti,) = stored.load(session, [celery_id])
        ti.queued_by_job_id = 2
    claim_by_dead_worker(redis, celery_id)
    heartbeat_until(executor, lambda: executor.slots_available == 8, "a free slot")
    assert executor.get_event_buffer() == {}
    assert len(messages_in_broker(redis, "gpu")) == 1


@ours
def test_task_that_starts_just_before_it_is_sent_again_does_not_fail(executor, redis, database, caplog):
    """Show what happens if its worker has the message, but neither its lease nor a result shows it yet."""
    (celery_id,) = stored.store(["queued"])
    adopt_tasks(executor, [celery_id])
    with create_session() as session:
        (ti,) = stored.load(session, [celery_id])
        ti.state = "running"
    heartbeat_until(executor, lambda: "re-sent 1 tasks that neither the broker" in caplog.text, "the end of a scan")
    executor.heartbeat()
    assert executor.get_event_buffer() == {}
    assert messages_in_broker(redis, "gpu") == []
    store_result(redis, celery_id, "SUCCESS")
    heartbeat_until(executor, lambda: executor.slots_available == 8, "a free slot")
    assert [state for state, _ in executor.get_event_buffer().values()] == ["success"]


@pytest.mark.skipif(not PRE_ASSIGNS, reason="this Airflow takes the Celery id from the executor")
@ours
def test_adopted_task_with_a_message_in_the_broker_is_not_sent_again(executor, redis, database):
    """A second task, whose message is nowhere, shows when the scan of the broker has ended."""
    in_queue, lost = stored.store(["queued", "queued"])
    with executor_of(OURS) as other, create_session() as session:
        (ti,) = stored.load(session, [in_queue])
        other.queue_workload(versions.make_workload(other, ti), session)
        other.heartbeat()
    keys, _ = adopt_tasks(executor, [in_queue, lost])
    heartbeat_until(executor, lambda: len(messages_in_broker(redis, "gpu")) == 2, "the second message")
    assert [message["headers"]["id"] for message in messages_in_broker(redis, "gpu")] == [in_queue, lost]
    assert executor.running == set(keys)


@ours
def test_adopted_running_task_that_no_worker_has_fails_as_lost(executor, redis, database):
    keys, _ = adopt_tasks(executor, stored.store(["running"]))
    state, info = end_events(executor, keys)[keys[0]]
    assert state == "failed"
    assert info.startswith("lost: neither the broker nor a worker has it any more")


def claim_by_dead_worker(redis: RedisServer, celery_id: str) -> None:
    lease = Lease(holder="w", name="celery@there", host="there", pid=7, boot_id="", queues=("gpu",), slots=1)
    with closing(make_app(broker_url="memory://", result_backend=redis.url)) as app:
        claims = claims_for(app, timeout=2.0)
        assert claims is not None
        with closing(claims):
            claims.renew(lease)
            claims.claim(celery_id, holder="w", delivery="d")
            assert claims.declare_dead("w", claims.leases()["w"].heartbeat_count)


def send_with_database_state(database_state: str, executor: Any) -> tuple[Any, str]:
    """Return the key and the Celery id of a sent task. Airflow's database then shows it in this state."""
    with create_session() as session:
        (ti,) = stored.load(session, stored.store(["queued"]))
        (key,) = queue(executor, versions.make_workload(executor, ti))
        executor.heartbeat()
        celery_id = executor.get_event_buffer()[key][1]
        ti.state, ti.external_executor_id = database_state, celery_id
    return key, celery_id


@ours
def test_failure_of_a_lost_task_names_the_worker_and_its_last_heartbeat(executor, redis, database):
    key, celery_id = send_with_database_state("running", executor)
    claim_by_dead_worker(redis, celery_id)
    state, info = end_events(executor, [key])[key]
    assert state == "failed"
    assert re.match(r"lost: worker celery@there \(pid 7\) is gone, last heartbeat \d", info)
    assert executor.slots_available == 8


@ours
def test_claimed_but_not_started_task_is_sent_again_under_another_id(executor, redis, database):
    key, celery_id = send_with_database_state("queued", executor)
    claim_by_dead_worker(redis, celery_id)
    heartbeat_until(executor, lambda: len(messages_in_broker(redis, "gpu")) == 2, "the second message")
    first, second = (message["headers"]["id"] for message in messages_in_broker(redis, "gpu"))
    assert first == celery_id
    assert second.startswith(versions.OWN_ID_PREFIX)
    assert executor.get_event_buffer() == {key: (TaskInstanceState.QUEUED, second)}
    assert executor.running == {key}
    assert executor.slots_available == 7


@ours
@pytest.mark.parametrize("database_state", ["queued", "running"])
def test_lost_task_waits_for_the_database(executor, redis, database, monkeypatch, database_state):
    key, celery_id = send_with_database_state(database_state, executor)
    states = record_reads(monkeypatch, "read_state")
    with monkeypatch.context() as patch:
        patch.setattr("airflow.settings.NonScopedSession", sessionmaker(create_engine("sqlite:////nowhere/at/all")))
        claim_by_dead_worker(redis, celery_id)
        heartbeat_until(executor, lambda: states == [None, None], "two attempts to read the state")
        assert executor.get_event_buffer() == {}
        assert executor.running == {key}
    if database_state == "running":
        assert end_events(executor, [key])[key][0] == "failed"
    else:
        heartbeat_until(executor, lambda: len(messages_in_broker(redis, "gpu")) == 2, "the second message")


@ours
@pytest.mark.parametrize("database_state", ["success", "scheduled"], ids=["ended", "scheduled after deferral"])
def test_lost_task_that_airflow_has_moved_on_gets_no_event(executor, redis, database, database_state):
    _, celery_id = send_with_database_state(database_state, executor)
    claim_by_dead_worker(redis, celery_id)
    heartbeat_until(executor, lambda: executor.slots_available == 8, "a free slot")
    assert executor.get_event_buffer() == {}
    assert len(messages_in_broker(redis, "gpu")) == 1


@pytest.mark.skipif(not PRE_ASSIGNS, reason="this Airflow takes the Celery id from the executor")
@ours
def test_celery_id_made_by_the_executor_is_used_once(executor, redis):
    """Beside an executor of another kind, the scheduler may pass the id of an earlier try."""
    first = workloads.task("first", external_executor_id=None)
    (key,) = queue(executor, first)
    executor.heartbeat()
    own = executor.get_event_buffer()[key][1]
    queue(executor, workloads.task("second", external_executor_id=own))
    executor.heartbeat()
    assert len({message["headers"]["id"] for message in messages_in_broker(redis)}) == 2


@ours
def test_adoption_works_while_the_backend_is_down(kind, redis, database, monkeypatch):
    celery_ids = stored.store(["running", "queued"])
    with executor_of(kind) as executor:
        redis.kill()
        keys, not_adopted = adopt_tasks(executor, celery_ids)
        assert not_adopted == []
        assert executor.running == set(keys)
        executor.heartbeat()
        redis.start()
        for celery_id in celery_ids:
            store_result(redis, celery_id, "SUCCESS")
        ends = end_events(executor, keys)
    assert {state for state, _ in ends.values()} == {"success"}


@pytest.mark.skipif(not hasattr(BaseExecutor, "supports_multi_team"), reason="this Airflow has no teams")
@ours
def test_team_uses_its_own_broker_and_backend(kind, redis, monkeypatch, tmp_path):
    address = f"redis://127.0.0.1:{redis.port}"
    monkeypatch.setenv("AIRFLOW__CORE__MULTI_TEAM", "True")
    monkeypatch.setenv("AIRFLOW__TEAM_A___CELERY__BROKER_URL", f"{address}/1")
    monkeypatch.setenv("AIRFLOW__TEAM_A___CELERY__RESULT_BACKEND", f"{address}/2")
    with executor_of(kind) as shared, executor_of(kind, team_name="team_a") as team:
        queue(shared, workloads.task("shared"))
        (key,) = queue(team, workloads.task("of the team"))
        shared.heartbeat()
        team.heartbeat()
        celery_id = team.get_event_buffer()[key][1]
        assert task_names(messages_in_broker(redis)) == ["shared"]
        with Redis(port=redis.port, db=1) as client:
            assert client.llen("default\x06\x166") == 1  # a weight of 1
        with Redis(port=redis.port, db=2) as client:
            meta = {"status": "SUCCESS", "result": None, "traceback": None, "children": [], "task_id": celery_id}
            client.set(f"celery-task-meta-{celery_id}", json.dumps(meta))
        assert end_events(team, [key])[key][0] == "success"


@pytest.mark.skipif(not hasattr(BaseExecutor, "_drain_events_with_task_ids"), reason="this Airflow reads events by key")
@ours
def test_events_map_to_task_instance_keys(executor, worker):
    workload = workloads.task("good")
    (key,) = queue(executor, workload)
    executor.heartbeat()
    events, task_keys = executor._drain_events_with_task_ids()
    assert events[key][0] == TaskInstanceState.QUEUED
    assert task_keys == {key: workload.ti.key}
    assert end_events(executor, [key])[key][0] == TaskInstanceState.SUCCESS


@ours
def test_invalid_task_fails_alone_with_the_reason(executor, worker):
    keys = queue(executor, workloads.task("bad", queue="no\0queue"), workloads.task("good"))
    ends = end_events(executor, keys)
    assert ends[keys[0]][0] == "failed"
    assert "queue: 'no\\x00queue' is not a name" in ends[keys[0]][1]
    assert ends[keys[1]] == ("success", None)
    assert executor.slots_available == 8


@ours
def test_slot_is_freed_when_the_database_shows_the_task_ended(executor, redis, database, monkeypatch):
    monkeypatch.setattr("celeriac.airflow.executor.DATABASE_POLL_INTERVAL", 0.1)
    celery_ids = stored.store(["running", "running"])
    keys, _ = adopt_tasks(executor, celery_ids)
    for celery_id in celery_ids:
        store_result(redis, celery_id, "STARTED", {"pid": 1, "hostname": "celery@gone"})
    with create_session() as session:
        (ended, _) = stored.load(session, celery_ids)
        ended.state = "success"
    heartbeat_until(executor, lambda: executor.slots_available == 7, "a free slot")
    polls = record_polls(monkeypatch)
    heartbeat_until(executor, lambda: len(polls) >= 3, "more polls")
    assert executor.running == {keys[1]}
    assert executor.get_event_buffer() == {}


@ours
def test_task_queued_in_the_database_keeps_its_slot(executor, redis, database, monkeypatch):
    monkeypatch.setattr("celeriac.airflow.executor.DATABASE_POLL_INTERVAL", 0.1)
    with create_session() as session:
        (ti,) = stored.load(session, stored.store(["queued"]))
        (key,) = queue(executor, versions.make_workload(executor, ti))
    executor.heartbeat()
    polls = record_polls(monkeypatch)
    heartbeat_until(executor, lambda: len(polls) >= 3, "polls of the database")
    assert executor.running == {key}


@ours
def test_unavailable_database_frees_no_slot(executor, redis, database, monkeypatch):
    monkeypatch.setattr("celeriac.airflow.executor.DATABASE_POLL_INTERVAL", 0.1)
    (key,), _ = adopt_tasks(executor, stored.store(["running"]))
    polls = record_polls(monkeypatch)
    engine = create_engine("sqlite:////nowhere/at/all")
    monkeypatch.setattr("airflow.settings.NonScopedSession", sessionmaker(engine))
    heartbeat_until(executor, lambda: polls.count(None) >= 3, "polls of the database")
    assert executor.running == {key}


def record_polls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list that gets the result of each poll of the database."""
    return record_reads(monkeypatch, "read_active_ids")


def record_reads(monkeypatch: pytest.MonkeyPatch, name: str) -> list[Any]:
    """Return a list that gets each result of a function of `adoption`."""
    results: list[Any] = []
    read = getattr(adoption, name)

    def recorded(*arguments: Any) -> Any:
        results.append(read(*arguments))
        return results[-1]

    monkeypatch.setattr(adoption, name, recorded)
    return results


@ours
def test_broker_priority_carries_priority_weight_into_the_broker(kind, redis, monkeypatch):
    monkeypatch.setenv("AIRFLOW__CELERIAC__BROKER_PRIORITY", "True")
    with executor_of(kind) as executor:
        send_in_turn(executor, low=2, high=3)
    with Redis(port=redis.port) as client:
        assert [client.llen(f"default\x06\x16{priority}") for priority in (6, 7)] == [1, 1]


@ours
def test_urgent_tasks_overtake_others_on_redis(kind, redis):
    with executor_of(kind) as executor:
        send_in_turn(executor, low=1, high=9)
    assert task_names(messages_in_broker(redis)) == ["high", "low"]


@ours
def test_messages_have_no_priority_if_it_is_turned_off(kind, redis, monkeypatch):
    monkeypatch.setenv("AIRFLOW__CELERIAC__BROKER_PRIORITY", "False")
    with executor_of(kind) as executor:
        send_in_turn(executor, low=1, high=9)
    assert task_names(messages_in_broker(redis)) == ["low", "high"]


def send_in_turn(executor: Any, **weights: int) -> None:
    for name, weight in weights.items():
        queue(executor, workloads.task(name, priority=weight))
        executor.heartbeat()


METRICS_PROGRAM = """
import sys
from tests.airflow import workloads
from celeriac.airflow import CeleryExecutor
executor = CeleryExecutor(parallelism=4)
executor.start()
executor.queue_workload(workloads.task("queued"), session=None)
executor.heartbeat()
executor.heartbeat()
executor.end()
"""


def test_metrics_have_airflows_names(redis):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(30)
        metrics = {"STATSD_ON": "True", "STATSD_HOST": "127.0.0.1", "STATSD_PORT": str(server.getsockname()[1])}
        environment = {**os.environ, **{f"AIRFLOW__METRICS__{name}": value for name, value in metrics.items()}}
        redis.kill()
        try:
            subprocess.run([sys.executable, "-c", METRICS_PROGRAM], env=environment, check=True, capture_output=True)
        finally:
            redis.start()
        names = ("executor.open_slots:4", "executor.queued_tasks:1", "celery.task_timeout_error:1")
        expected = {f"airflow.{name}" for name in names}
        while expected:
            expected.discard(server.recv(4096).decode().partition("|")[0])


def test_workloads_are_signed_in_a_header(redis, monkeypatch):
    monkeypatch.setenv("AIRFLOW__CELERIAC__SIGNING_KEY", "correct horse battery")
    with executor_of(OURS) as executor:
        queue(executor, *(workloads.task(f"t{n}") for n in range(3)))
        heartbeat_until(executor, lambda: len(messages_in_broker(redis)) == 3, "the messages")
    for message in messages_in_broker(redis):
        content = {"id": message["headers"]["id"], "workload": json.loads(b64decode(message["body"]))[0][0]}
        signed = {**content, SIGNATURE: message["headers"][HEADER]}
        assert SigningKeys(["correct horse battery"]).verify("execute_workload", signed)
