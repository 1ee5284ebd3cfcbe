"""What the scheduler may rely on: driven on Celeriac's executor and, where that is right, on the incumbent's too."""

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
from airflow.executors import workloads as kinds
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

OURS, INCUMBENT = "ours", "incumbent"
HAS_CALLBACKS = hasattr(kinds, "ExecuteCallback")
HAS_CONNECTION_TESTS = hasattr(kinds, "TestConnection")
PRE_ASSIGNS = hasattr(BaseExecutor, "pre_assigns_external_executor_id")

both = pytest.mark.parametrize("kind", [OURS, INCUMBENT])
ours = pytest.mark.parametrize("kind", [OURS])


@pytest.fixture
def redis(shared_redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> RedisServer:
    with Redis(port=shared_redis.port) as client:
        client.flushall()
    use(monkeypatch, shared_redis.url, shared_redis.url)
    return shared_redis


def use(monkeypatch: pytest.MonkeyPatch, broker: str, backend: str) -> None:
    monkeypatch.setenv("AIRFLOW__CELERY__BROKER_URL", broker)
    monkeypatch.setenv("AIRFLOW__CELERY__RESULT_BACKEND", backend)


@contextmanager
def executor_of(kind: str, parallelism: int = 8, **options: Any) -> Iterator[Any]:
    if kind == OURS:
        executor = CeleryExecutor(parallelism=parallelism, **options)
    else:
        if find_spec("airflow.providers.celery") is None:
            pytest.skip("the incumbent is not installed")
        from airflow.providers.celery.executors import celery_executor_utils
        from airflow.providers.celery.executors.celery_executor import CeleryExecutor as Incumbent

        celery_executor_utils._get_celery_app_for_workload.cache_clear()
        executor = Incumbent(parallelism=parallelism, **options)
    executor.start()
    try:
        yield executor
    finally:
        if kind == OURS:
            executor.end()


@pytest.fixture
def executor(kind: str, redis: RedisServer) -> Iterator[Any]:
    with executor_of(kind) as made:
        yield made


@pytest.fixture
def worker(redis: RedisServer, tmp_path: Path) -> Iterator[Path]:
    """The folder that tells what began."""
    script = Path(__file__).with_name("celery_worker.py")
    with subprocess.Popen([sys.executable, script, redis.url, redis.url, tmp_path], process_group=0) as process:
        yield tmp_path
        os.killpg(process.pid, signal.SIGKILL)


def queue(executor: Any, *tasks: Any) -> list[Any]:
    """Answers their keys."""
    for one in tasks:
        executor.queue_workload(one, session=None)
    return [versions.key_of(executor, one) for one in tasks]


def beat_until(executor: Any, condition: Callable[[], Any], what: str) -> None:
    def reached() -> Any:
        executor.heartbeat()
        return condition()

    until(reached, what)


def ends_of(executor: Any, keys: list[Any]) -> dict[Any, tuple[Any, Any]]:
    """The last event of each, once all have ended."""
    events: dict[Any, Any] = {}

    def ended() -> bool:
        events.update(executor.get_event_buffer())
        return all(events.get(key, ("queued",))[0] in ("success", "failed") for key in keys)

    beat_until(executor, ended, "the ends")
    return {key: events[key] for key in keys}


def begun(folder: Path) -> list[str]:
    """The names of what a worker has begun, in that order."""
    file = folder / "begun"
    return [line.split()[0] for line in file.read_text().splitlines()] if file.exists() else []


def in_broker(redis: RedisServer, queue: str = "default") -> list[dict[str, Any]]:
    """Messages, next one first."""
    with Redis(port=redis.port) as client:
        return [json.loads(message) for message in reversed(client.lrange(queue, 0, -1))]


def names_in(messages: list[dict[str, Any]]) -> list[str]:
    return [json.loads(json.loads(b64decode(message["body"]))[0][0])["ti"]["task_id"] for message in messages]


@both
def test_a_task_waits_is_sent_and_ends(executor, worker):
    good, bad = workloads.task("good"), workloads.task("fail", queue="gpu")
    keys = queue(executor, good, bad)
    assert executor.slots_available == 6
    assert executor.slots_occupied == 2
    assert not executor.running
    assert executor.has_task(good.ti)
    executor.heartbeat()
    assert executor.running == set(keys)
    assert sum(map(len, versions.queues_of(executor))) == 0
    assert executor.slots_available == 6
    sent = executor.get_event_buffer()
    assert {state for state, _ in sent.values()} == {TaskInstanceState.QUEUED}
    ends = ends_of(executor, keys)
    assert [ends[key][0] for key in keys] == [TaskInstanceState.SUCCESS, TaskInstanceState.FAILED]
    assert executor.slots_available == 8
    assert not executor.has_task(good.ti)
    assert sorted(begun(worker)) == ["fail", "good"]


@both
def test_the_event_of_a_sent_task_has_its_celery_id_and_that_is_the_pre_assigned_one(executor, redis):
    workload = workloads.task("one")
    (key,) = queue(executor, workload)
    executor.heartbeat()
    state, celery_id = executor.get_event_buffer()[key]
    assert state == TaskInstanceState.QUEUED
    assert [message["headers"]["id"] for message in in_broker(redis)] == [celery_id]
    if hasattr(workload.ti, "external_executor_id"):
        assert celery_id == workload.ti.external_executor_id


@both
def test_messages_are_the_same_field_by_field(kind, redis):
    """Besides what differs for each message, and what the logs show for the arguments: there the incumbent shows the
    token."""
    workload = workloads.task("one", queue="gpu")
    bodies, rest = [], []
    for each in (OURS, kind):
        with executor_of(each) as executor:
            queue(executor, workload)
            executor.heartbeat()
        (message,) = in_broker(redis, "gpu")
        with Redis(port=redis.port) as client:
            client.flushall()
        bodies.append(json.loads(b64decode(message.pop("body"))))
        for name in ("id", "root_id", "argsrepr", "origin"):
            message["headers"].pop(name)
        for name in ("correlation_id", "delivery_tag", "reply_to"):
            message["properties"].pop(name)
        rest.append(message)
    assert rest[0] == rest[1]
    assert bodies[0] == bodies[1]


@ours
def test_the_highest_priority_weight_goes_first_and_no_more_than_slots_are_open(kind, redis):
    with executor_of(kind, parallelism=3) as executor:
        queue(executor, *(workloads.task(f"t{n}", priority=n) for n in (2, 5, 1, 9, 3)))
        executor.heartbeat()
        assert names_in(in_broker(redis)) == ["t9", "t5", "t3"]
        assert executor.slots_available == -2  # as the scheduler counts: three run and two wait
        executor.heartbeat()
        assert len(in_broker(redis)) == 3


@both
def test_revoking_forgets_a_task_without_a_word(executor, redis, kind):
    out, waiting = workloads.task("out"), workloads.task("waiting")
    queue(executor, out)
    executor.heartbeat()
    executor.get_event_buffer()
    queue(executor, waiting)
    for one in (out, waiting):
        executor.revoke_task(ti=one.ti)
        assert not executor.has_task(one.ti)
    executor.revoke_task(ti=workloads.task("unknown").ti)
    executor.heartbeat()
    assert executor.get_event_buffer() == {}
    assert executor.slots_available == 8


@ours
def test_revoking_ends_what_runs_on_a_plain_worker(executor, worker):
    slow = workloads.task("slow")
    queue(executor, slow)
    executor.heartbeat()
    until(lambda: begun(worker) == ["slow"], "its start")
    executor.revoke_task(ti=slow.ti)
    keys = queue(executor, workloads.task("a"), workloads.task("slow2"), workloads.task("b"))
    until(lambda: executor.heartbeat() or "slow2" in begun(worker), "the second slow one")
    ends_of(executor, [keys[0], keys[2]])  # two processes: without the first one's end nothing else would get through
    (worker / "go").touch()
    ends_of(executor, keys[1:2])


@both
def test_events_can_be_taken_by_dag(executor, redis):
    keys = queue(executor, workloads.task("a", dag_id="one"), workloads.task("b", dag_id="two"))
    executor.heartbeat()
    assert set(executor.get_event_buffer(["one"])) == {keys[0]}
    assert set(executor.get_event_buffer()) == {keys[1]}


@both
def test_the_scheduler_may_end_a_task_by_itself(executor, worker):
    slow = workloads.task("slow")
    (key,) = queue(executor, slow)
    executor.heartbeat()
    until(lambda: begun(worker) == ["slow"], "its start")
    executor.get_event_buffer()
    executor.change_state(key, TaskInstanceState.FAILED, remove_running=True)
    assert executor.get_event_buffer() == {key: (TaskInstanceState.FAILED, None)}
    assert executor.slots_available == 8
    (worker / "go").touch()
    (other,) = queue(executor, workloads.task("other"))
    ends_of(executor, [other])
    executor.heartbeat()
    assert executor.get_event_buffer() == {}


@both
def test_a_deferred_task_may_be_back_before_its_first_part_was_seen_to_end(executor, worker):
    first = workloads.task("slow")
    (key,) = queue(executor, first)
    executor.heartbeat()
    until(lambda: begun(worker) == ["slow"], "its start")
    executor.get_event_buffer()
    again = first.model_copy(deep=True)
    if hasattr(again.ti, "external_executor_id"):
        again.ti.external_executor_id = "00000000-0000-0000-0000-000000000001"
    queue(executor, again)
    executor.heartbeat()
    assert executor.running == {key}
    (worker / "go").touch()
    assert ends_of(executor, [key])[key][0] == TaskInstanceState.SUCCESS
    assert begun(worker) == ["slow", "slow"]
    assert executor.slots_available == 8


@pytest.mark.skipif(not HAS_CALLBACKS, reason="Airflow has no such workload")
@both
def test_callbacks_go_before_tasks_and_end_as_callbacks_do(executor, worker):
    told = workloads.callback("fail.told", queue="gpu")
    keys = queue(executor, workloads.task("a", priority=99), workloads.callback("good.told"), told)
    ends = ends_of(executor, keys)
    assert [ends[key][0] for key in keys] == ["success", "success", "failed"]
    assert executor.slots_available == 8


@pytest.mark.skipif(not HAS_CONNECTION_TESTS, reason="Airflow has no such workload")
@ours
def test_connection_tests_run_and_free_their_slot(executor, worker):
    keys = queue(executor, workloads.connection_test("good"), workloads.connection_test("fail", queue="gpu"))
    assert executor.slots_available == 6
    ends = ends_of(executor, keys)
    assert [ends[key][0] for key in keys] == ["success", "failed"]
    assert executor.slots_available == 8


@ours
def test_the_reason_of_a_failure_is_in_its_event(executor, worker):
    (key,) = queue(executor, workloads.task("fail"))
    _, info = ends_of(executor, [key])[key]
    assert info == "worker_error: RuntimeError: fail was to fail"


@ours
def test_results_are_deleted_once_their_event_was_taken(executor, worker, redis):
    keys = queue(executor, workloads.task("good"), workloads.task("fail"))
    ends_of(executor, keys)
    with Redis(port=redis.port) as client:
        until(lambda: not client.keys("celery-task-meta-*"), "the end of the results")


@ours
def test_a_corrupt_value_concerns_one_task(executor, worker, redis):
    """Of the incumbent, one ends the sync of all, for as long as it is there."""
    keys = queue(executor, workloads.task("slow"), *(workloads.task(f"t{n}") for n in range(3)))
    executor.heartbeat()
    celery_id = executor.get_event_buffer()[keys[0]][1]
    until(lambda: "slow" in begun(worker), "its start")
    with Redis(port=redis.port) as client:
        client.set(f"celery-task-meta-{celery_id}", b"\x80 garbage")
        client.publish(f"celery-task-meta-{celery_id}", b"moved")
    ends = ends_of(executor, keys[1:])
    assert {state for state, _ in ends.values()} == {TaskInstanceState.SUCCESS}
    assert executor.running == {keys[0]}


@ours
def test_an_outage_means_wait(kind, redis, worker):
    with executor_of(kind) as executor:
        redis.kill()
        keys = queue(executor, *(workloads.task(f"t{n}") for n in range(5)))
        for _ in range(5):
            executor.heartbeat()
        assert executor.get_event_buffer() == {}
        assert all(len(waiting) in (0, 5) for waiting in versions.queues_of(executor))
        redis.start()
        ends = ends_of(executor, keys)
    assert {state for state, _ in ends.values()} == {TaskInstanceState.SUCCESS}
    assert sorted(begun(worker)) == [f"t{n}" for n in range(5)]


@ours
def test_making_one_opens_nothing_and_starts_nothing(kind, redis):
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
def test_ending_lets_go_of_everything_and_leaves_tasks_out(kind, redis):
    before = set(threading.enumerate())
    with executor_of(kind) as executor:
        queue(executor, workloads.task("left"))
        executor.heartbeat()
        assert set(threading.enumerate()) > before
    until(lambda: set(threading.enumerate()) <= before, "the end of its threads")
    assert names_in(in_broker(redis)) == ["left"]


def test_importing_it_imports_no_celery():
    program = "import sys; from celeriac.airflow import CeleryExecutor; print('celery' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.split()[-1] == "False"


def test_the_dump_has_what_is_out_and_no_token(redis, capfd):
    with executor_of(OURS) as executor:
        queue(executor, workloads.task("one"))
        executor.heartbeat()
        executor.debug_dump()
    said = "".join(capfd.readouterr())
    assert "slots: 1 in use of 8" in said
    assert "a-token" not in said


def test_it_can_be_named_and_told_apart():
    one, other = CeleryExecutor(parallelism=1), CeleryExecutor(parallelism=1)
    assert {one, other} == {other, one}
    one.name = one.job_id = one.callback_sink = "set from outside"
    assert one != other
    assert not one.is_local
    assert not one.serve_logs
    assert one.supports_multi_team
    assert one.supports_sentry


def test_the_loader_finds_it_under_an_alias():
    from airflow.executors.executor_loader import ExecutorLoader

    (executor,) = ExecutorLoader.init_executors()
    assert isinstance(executor, CeleryExecutor)
    assert executor.name.alias == "CeleryExecutor"


@pytest.mark.filterwarnings("ignore:Call to deprecated method")
@both
def test_what_is_stuck_is_revoked_and_failed(executor, redis):
    workload = workloads.task("stuck")
    (key,) = queue(executor, workload)
    executor.heartbeat()
    executor.get_event_buffer()
    assert executor.cleanup_stuck_queued_tasks(tis=[workload.ti]) == [repr(workload.ti)]
    assert executor.get_event_buffer() == {key: (TaskInstanceState.FAILED, None)}
    assert executor.slots_available == 8


def adopt(executor: Any, celery_ids: list[str]) -> tuple[list[Any], list[Any]]:
    """The keys, and the task instances that were not taken."""
    with create_session() as session:
        tis = stored.load(session, celery_ids)
        left = executor.try_adopt_task_instances(tis)
        return [versions.task_key_of(executor, ti) for ti in tis], list(left)


def result(redis: RedisServer, celery_id: str, status: str, value: Any = None) -> None:
    meta = {"status": status, "result": value, "traceback": None, "children": [], "task_id": celery_id}
    with Redis(port=redis.port) as client:
        client.set(f"celery-task-meta-{celery_id}", json.dumps(meta))


@both
def test_adopting_applies_what_is_known_and_follows_the_rest(executor, redis, database):
    celery_ids = stored.store(["running", "running", "running", "queued"])
    result(redis, celery_ids[0], "SUCCESS")
    result(
        redis, celery_ids[1], "FAILURE", {"exc_type": "RuntimeError", "exc_message": ["no"], "exc_module": "builtins"}
    )
    keys, left = adopt(executor, celery_ids)
    assert left == []
    events = executor.get_event_buffer()
    assert {key: state for key, (state, _) in events.items()} == {keys[0]: "success", keys[1]: "failed"}
    assert executor.running == set(keys[2:])
    assert executor.slots_available == 6
    result(redis, celery_ids[2], "SUCCESS")
    assert ends_of(executor, keys[2:3])[keys[2]][0] == "success"


@both
def test_what_has_no_celery_id_is_not_adopted(executor, redis, database):
    (celery_id,) = stored.store(["queued"])
    with create_session() as session:
        (ti,) = stored.load(session, [celery_id])
        ti.external_executor_id = None
        assert list(executor.try_adopt_task_instances([ti])) == [ti]
        session.rollback()
    assert executor.slots_available == 8


@ours
def test_what_is_adopted_and_in_no_place_is_sent_again_under_its_id(executor, worker, database):
    """The scheduler died between its commit and the broker. The incumbent waits until `task_queued_timeout` is over."""
    keys, _ = adopt(executor, stored.store(["queued"]))
    assert ends_of(executor, keys)[keys[0]][0] == "success"
    assert begun(worker) == ["t0"]


@pytest.mark.skipif(not PRE_ASSIGNS, reason="Airflow takes the Celery id from the executor")
@ours
def test_what_is_adopted_and_waits_in_the_broker_is_not_sent_again(executor, redis, database):
    """Beside one that is in no place, which tells when the search is over."""
    here, nowhere = stored.store(["queued", "queued"])
    with executor_of(OURS) as other, create_session() as session:
        (ti,) = stored.load(session, [here])
        other.queue_workload(versions.workload_of(other, ti), session)
        other.heartbeat()
    keys, _ = adopt(executor, [here, nowhere])
    beat_until(executor, lambda: len(in_broker(redis, "gpu")) == 2, "the second message")
    assert [message["headers"]["id"] for message in in_broker(redis, "gpu")] == [here, nowhere]
    assert executor.running == set(keys)


@ours
def test_what_ran_when_its_worker_was_lost_fails_with_the_reason(executor, redis, database):
    keys, _ = adopt(executor, stored.store(["running"]))
    state, info = ends_of(executor, keys)[keys[0]]
    assert state == "failed"
    assert info.startswith("lost: neither the broker nor a worker has it any more")


def claimed_by_a_dead_worker(redis: RedisServer, celery_id: str) -> None:
    lease = Lease(holder="w", name="celery@there", host="there", pid=7, boot_id="", queues=("gpu",), slots=1)
    with closing(make_app(broker_url="memory://", result_backend=redis.url)) as app:
        claims = claims_for(app, timeout=2.0)
        assert claims is not None
        with closing(claims):
            claims.renew(lease)
            claims.claim(celery_id, holder="w", delivery="d")
            assert claims.declare_dead("w", claims.leases()["w"].heartbeat_count)


def sent_from(database_state: str, executor: Any) -> tuple[Any, str]:
    """The key and the Celery id of a task that is out, and in Airflow's database has this state."""
    with create_session() as session:
        (ti,) = stored.load(session, stored.store(["queued"]))
        (key,) = queue(executor, versions.workload_of(executor, ti))
        executor.heartbeat()
        celery_id = executor.get_event_buffer()[key][1]
        ti.state, ti.external_executor_id = database_state, celery_id
    return key, celery_id


@ours
def test_what_a_dead_worker_ran_fails_with_who_where_and_how_long_ago(executor, redis, database):
    key, celery_id = sent_from("running", executor)
    claimed_by_a_dead_worker(redis, celery_id)
    state, info = ends_of(executor, [key])[key]
    assert state == "failed"
    assert re.match(r"lost: worker celery@there \(pid 7\) is gone, last heard \d", info)
    assert executor.slots_available == 8


@ours
def test_what_a_dead_worker_had_claimed_and_not_begun_is_sent_again_under_another_id(executor, redis, database):
    key, celery_id = sent_from("queued", executor)
    claimed_by_a_dead_worker(redis, celery_id)
    beat_until(executor, lambda: len(in_broker(redis, "gpu")) == 2, "the second message")
    first, again = (message["headers"]["id"] for message in in_broker(redis, "gpu"))
    assert first == celery_id
    assert again.startswith(versions.OWN_IDS)
    assert executor.get_event_buffer() == {key: (TaskInstanceState.QUEUED, again)}
    assert executor.running == {key}
    assert executor.slots_available == 7


@ours
@pytest.mark.parametrize("database_state", ["success", "scheduled"], ids=["ended", "back from being deferred"])
def test_of_what_was_lost_and_is_over_nothing_is_said(executor, redis, database, database_state):
    _, celery_id = sent_from(database_state, executor)
    claimed_by_a_dead_worker(redis, celery_id)
    beat_until(executor, lambda: executor.slots_available == 8, "a free slot")
    assert executor.get_event_buffer() == {}
    assert len(in_broker(redis, "gpu")) == 1


@pytest.mark.skipif(not PRE_ASSIGNS, reason="Airflow takes the Celery id from the executor")
@ours
def test_an_id_that_the_scheduler_has_not_assigned_is_used_once(executor, redis):
    """Beside an executor of another kind it may show what an earlier try was called."""
    first = workloads.task("first", external_executor_id=None)
    (key,) = queue(executor, first)
    executor.heartbeat()
    own = executor.get_event_buffer()[key][1]
    queue(executor, workloads.task("second", external_executor_id=own))
    executor.heartbeat()
    assert len({message["headers"]["id"] for message in in_broker(redis)}) == 2


@ours
def test_a_backend_that_is_down_keeps_nothing_from_being_adopted(kind, redis, database, monkeypatch):
    celery_ids = stored.store(["running", "queued"])
    with executor_of(kind) as executor:
        redis.kill()
        keys, left = adopt(executor, celery_ids)
        assert left == []
        assert executor.running == set(keys)
        executor.heartbeat()
        redis.start()
        for celery_id in celery_ids:
            result(redis, celery_id, "SUCCESS")
        ends = ends_of(executor, keys)
    assert {state for state, _ in ends.values()} == {"success"}


@pytest.mark.skipif(not hasattr(BaseExecutor, "supports_multi_team"), reason="Airflow has no teams")
@ours
def test_a_team_has_a_broker_and_a_backend_of_its_own(kind, redis, monkeypatch, tmp_path):
    address = f"redis://127.0.0.1:{redis.port}"
    monkeypatch.setenv("AIRFLOW__CORE__MULTI_TEAM", "True")
    monkeypatch.setenv("AIRFLOW__TEAM_A___CELERY__BROKER_URL", f"{address}/1")
    monkeypatch.setenv("AIRFLOW__TEAM_A___CELERY__RESULT_BACKEND", f"{address}/2")
    with executor_of(kind) as everybody, executor_of(kind, team_name="team_a") as team:
        queue(everybody, workloads.task("of everybody"))
        (key,) = queue(team, workloads.task("of the team"))
        everybody.heartbeat()
        team.heartbeat()
        celery_id = team.get_event_buffer()[key][1]
        assert names_in(in_broker(redis)) == ["of everybody"]
        with Redis(port=redis.port, db=1) as client:
            assert client.llen("default") == 1
        with Redis(port=redis.port, db=2) as client:
            meta = {"status": "SUCCESS", "result": None, "traceback": None, "children": [], "task_id": celery_id}
            client.set(f"celery-task-meta-{celery_id}", json.dumps(meta))
        assert ends_of(team, [key])[key][0] == "success"


@pytest.mark.skipif(not hasattr(BaseExecutor, "_drain_events_with_task_ids"), reason="Airflow reads events by key")
@ours
def test_the_scheduler_knows_of_which_task_each_event_is(executor, worker):
    workload = workloads.task("good")
    (key,) = queue(executor, workload)
    executor.heartbeat()
    events, places = executor._drain_events_with_task_ids()
    assert events[key][0] == TaskInstanceState.QUEUED
    assert places == {key: workload.ti.key}
    assert ends_of(executor, [key])[key][0] == TaskInstanceState.SUCCESS


@ours
def test_what_cannot_be_sent_fails_alone_with_the_reason(executor, worker):
    keys = queue(executor, workloads.task("bad", queue="no\0queue"), workloads.task("good"))
    ends = ends_of(executor, keys)
    assert ends[keys[0]][0] == "failed"
    assert "queue: 'no\\x00queue' is no name" in ends[keys[0]][1]
    assert ends[keys[1]] == ("success", None)
    assert executor.slots_available == 8


@ours
def test_a_slot_is_free_again_if_the_database_says_that_its_task_is_over(executor, redis, database, monkeypatch):
    monkeypatch.setattr("celeriac.airflow.executor.LOOK_INTERVAL", 0.1)
    celery_ids = stored.store(["running", "running"])
    keys, _ = adopt(executor, celery_ids)
    for celery_id in celery_ids:
        result(redis, celery_id, "STARTED", {"pid": 1, "hostname": "celery@gone"})
    with create_session() as session:
        (over, _) = stored.load(session, celery_ids)
        over.state = "success"
    beat_until(executor, lambda: executor.slots_available == 7, "a free slot")
    looks = count_looks(monkeypatch)
    beat_until(executor, lambda: len(looks) >= 3, "more looks")
    assert executor.running == {keys[1]}
    assert executor.get_event_buffer() == {}


@ours
def test_a_task_that_is_queued_in_the_database_keeps_its_slot(executor, redis, database, monkeypatch):
    monkeypatch.setattr("celeriac.airflow.executor.LOOK_INTERVAL", 0.1)
    with create_session() as session:
        (ti,) = stored.load(session, stored.store(["queued"]))
        (key,) = queue(executor, versions.workload_of(executor, ti))
    executor.heartbeat()
    looks = count_looks(monkeypatch)
    beat_until(executor, lambda: len(looks) >= 3, "looks")
    assert executor.running == {key}


@ours
def test_a_database_that_does_not_answer_takes_no_slot_away(executor, redis, database, monkeypatch):
    monkeypatch.setattr("celeriac.airflow.executor.LOOK_INTERVAL", 0.1)
    (key,), _ = adopt(executor, stored.store(["running"]))
    looks = count_looks(monkeypatch)
    engine = create_engine("sqlite:////nowhere/at/all")
    monkeypatch.setattr("airflow.settings.NonScopedSession", sessionmaker(engine))
    beat_until(executor, lambda: looks.count(None) >= 3, "looks")
    assert executor.running == {key}


def count_looks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What each look at the database answered."""
    looks: list[Any] = []
    look = adoption.at_work

    def counted(ids: Any) -> Any:
        looks.append(look(ids))
        return looks[-1]

    monkeypatch.setattr(adoption, "at_work", counted)
    return looks


@ours
def test_urgency_reaches_the_broker_if_that_is_asked_for(kind, redis, monkeypatch):
    monkeypatch.setenv("AIRFLOW__CELERIAC__BROKER_PRIORITY", "True")
    with executor_of(kind) as executor:
        queue(executor, workloads.task("most", priority=9), workloads.task("least", priority=0))
        executor.heartbeat()
    assert names_in(in_broker(redis, "default")) == ["most"]
    assert names_in(in_broker(redis, "default\x06\x169")) == ["least"]


COUNTED = """
import sys
from tests.airflow import workloads
from celeriac.airflow import CeleryExecutor
executor = CeleryExecutor(parallelism=4)
executor.start()
executor.queue_workload(workloads.task("waits"), session=None)
executor.heartbeat()
executor.heartbeat()
executor.end()
"""


def test_what_is_counted_and_measured_has_airflows_names(redis):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as heard:
        heard.bind(("127.0.0.1", 0))
        heard.settimeout(30)
        metrics = {"STATSD_ON": "True", "STATSD_HOST": "127.0.0.1", "STATSD_PORT": str(heard.getsockname()[1])}
        environment = {**os.environ, **{f"AIRFLOW__METRICS__{name}": value for name, value in metrics.items()}}
        redis.kill()
        try:
            subprocess.run([sys.executable, "-c", COUNTED], env=environment, check=True, capture_output=True)
        finally:
            redis.start()
        names = ("executor.open_slots:4", "executor.queued_tasks:1", "celery.task_timeout_error:1")
        wanted = {f"airflow.{name}" for name in names}
        while wanted:
            wanted.discard(heard.recv(4096).decode().partition("|")[0])


def test_workloads_are_signed_beside_their_text(redis, monkeypatch):
    monkeypatch.setenv("AIRFLOW__CELERIAC__SIGNING_KEY", "correct horse battery")
    with executor_of(OURS) as executor:
        queue(executor, *(workloads.task(f"t{n}") for n in range(3)))
        beat_until(executor, lambda: len(in_broker(redis)) == 3, "the messages")
    for message in in_broker(redis):
        part = {"id": message["headers"]["id"], "workload": json.loads(b64decode(message["body"]))[0][0]}
        signed = {**part, SIGNATURE: message["headers"][HEADER]}
        assert SigningKeys(["correct horse battery"]).verify("execute_workload", signed)
