"""`airflow celeriac worker`, started as a user would, on real brokers. Nothing here needs Airflow's API server."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest
from airflow.executors import workloads
from celery import Celery
from celery.states import PENDING, READY_STATES
from redis import Redis

from celeriac.airflow.claim_takeover import PATIENCE
from celeriac.backend.claims import claims_for
from celeriac.backend.claims.claim import LeaseState
from celeriac.broker.app import make_app
from celeriac.config.signing import HEADER, SigningKeys
from celeriac.worker.supervisor.lease_policy import SILENCE_LIMIT
from tests.airflow import workloads as made
from tests.airflow.installed import beside_the_other
from tests.support.cli_runner import MARK, until
from tests.support.proxy import Proxy
from tests.support.servers import RedisServer, free_port

KEY = "correct horse battery"
CLEANUP = 1  # seconds that a task has for its end
STARTED_IN = 60.0  # seconds

runs_callbacks_alone = pytest.mark.skipif(
    not hasattr(workloads, "ExecuteCallback") or hasattr(workloads, "WorkloadType"),
    reason="in 3.1 there are none, and from 3.4 on they need the API server",
)


@pytest.fixture
def redis(shared_redis) -> RedisServer:
    with Redis(port=shared_redis.port) as client:
        client.flushall()
    return shared_redis  # type: ignore[no-any-return]


@pytest.fixture
def told(tmp_path, redis):
    """The environment of all that is started."""
    return {
        **os.environ,
        **beside_the_other(tmp_path),
        "AIRFLOW_HOME": os.environ.get("AIRFLOW_HOME", str(tmp_path)),
        "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor:celeriac.airflow.CeleryExecutor",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__KILLED_TASK_CLEANUP_TIME": str(CLEANUP),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{free_port()}/execution/",
        "AIRFLOW__CELERY__BROKER_URL": redis.url,
        "AIRFLOW__CELERY__RESULT_BACKEND": redis.url,
        "COLUMNS": "200",
    }


class Worker:
    def __init__(self, *options, folder, environment):
        self.mark, self._log = str(uuid4()), folder / f"worker-{uuid4()}.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "airflow", "celeriac", "worker", "-c", "2", *options],
                env={**environment, MARK: self.mark},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def log(self):
        return self._log.read_text()

    def says(self, word):
        def said():
            assert self.process.poll() is None or word in self.log, self.log
            return word in self.log

        until(said, f"the word {word!r} in the worker's log", STARTED_IN)

    def ends(self):
        return self.process.wait(STARTED_IN)

    def alive(self):
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found


@contextmanager
def worker(*options, folder, environment, logs=False):
    one = Worker(*options, *([] if logs else ["--skip-serve-logs"]), folder=folder, environment=environment)
    try:
        one.says("is ready")
        yield one
    finally:
        for process in one.alive():
            with contextlib.suppress(psutil.Error):
                process.kill()
        one.process.wait()


def airflow(*words, environment, status=0):
    done = subprocess.run(
        [sys.executable, "-m", "airflow", *words], env=environment, capture_output=True, text=True, timeout=STARTED_IN
    )
    assert done.returncode == status, done.stderr
    return done


class Sender:
    def __init__(self, broker, backend):
        self.app = Celery("sender", broker=broker, set_as_current=False)
        self.app.conf.update(task_default_queue="default", task_default_exchange="default")
        self._backend = Celery("reader", backend=backend, set_as_current=False).backend

    def send(self, message, queue="default", **options):
        """Answers the Celery id."""
        text = message if isinstance(message, str) else message.model_dump_json()
        return self.app.send_task("execute_workload", args=(text,), queue=queue, argsrepr="-", **options).id

    def stored(self, task_id):
        return self._backend.get_task_meta(task_id, cache=False)

    def to_the_end(self, task_id):
        until(lambda: self.stored(task_id)["status"] in READY_STATES, "the end of a workload")
        return self.stored(task_id)["status"]


@pytest.fixture
def sender(redis):
    return Sender(redis.url, redis.url)


def begun(path):
    until(path.exists, "the begin of a workload")
    return int(path.read_text())


def waiting(tmp_path, name, how="wait"):
    callback = made.callback(f"tests.airflow.callbacks.{how}")
    callback.callback.data["kwargs"] = {"up": str(tmp_path / name), "go": str(tmp_path / "go")}
    return callback


def test_what_the_supervisor_cannot_report_is_a_failure_and_no_token_is_shown(told, tmp_path, sender):
    with worker(folder=tmp_path, environment=told) as one:
        task, broken = sender.send(made.task("t")), sender.send(json.dumps({"type": "No", "token": "a-token"}))
        assert (sender.to_the_end(task), sender.to_the_end(broken)) == ("FAILURE", "FAILURE")
        assert type(sender.stored(task)["result"]).__name__ == "ConnectError"
        assert "not a workload of this version of Airflow" in str(sender.stored(broken)["result"])
        one.process.send_signal(signal.SIGTERM)
        assert one.ends() == 0
        assert one.alive() == []
    assert "ExecuteTask dag.t run try 1" in one.log
    for text in (one.log, str(sender.stored(task)), str(sender.stored(broken))):
        assert "a-token" not in text


def test_a_worker_with_a_key_refuses_what_was_not_signed_for_it(told, tmp_path, sender):
    told["AIRFLOW__CELERIAC__SIGNING_KEY"] = KEY

    def sent(workload, key, signed_id=None):
        text, task_id = workload.model_dump_json(), str(uuid4())
        part = {"id": signed_id or task_id, "workload": text}
        headers = {HEADER: SigningKeys([key]).sign("execute_workload", part)}
        return sender.send(text, task_id=task_id, headers=headers)

    with worker(folder=tmp_path, environment=told) as one:
        signed = sent(made.task("signed"), KEY)
        others = [sender.send(made.task("t")), sent(made.task("t"), KEY[::-1]), sent(made.task("t"), KEY, "another")]
        assert {sender.to_the_end(task_id) for task_id in (signed, *others)} == {"FAILURE"}
        assert type(sender.stored(signed)["result"]).__name__ == "ConnectError"  # it ran, with nobody to report to
        reports = [sender.stored(task_id)["result"].report for task_id in others]
    assert [report["reason"] for report in reports] == ["refused"] * 3
    assert reports[0]["detail"] == "its worker did not run it: its message is not signed"
    assert "ExecuteTask dag.signed run try 1" in one.log
    assert "ExecuteTask dag.t " not in one.log
    assert KEY not in one.log


def test_rabbitmq_and_postgresql(told, tmp_path, rabbit, postgres):
    told |= {"AIRFLOW__CELERY__BROKER_URL": rabbit.url, "AIRFLOW__CELERY__RESULT_BACKEND": postgres.url}
    sender = Sender(rabbit.url, postgres.url)
    with worker("--queues", "default,gpu", folder=tmp_path, environment=told) as one:
        assert postgres.sql("SELECT count(*) FROM celery_taskmeta") == [(0,)]
        results = [sender.send(made.task(f"t{n}"), queue) for n, queue in enumerate(["default", "gpu"])]
        assert [sender.to_the_end(result) for result in results] == ["FAILURE", "FAILURE"]
        one.process.send_signal(signal.SIGTERM)
        assert one.ends() == 0


def test_status_tells_workers_and_queues_and_drain_sees_one_out(told, tmp_path, redis, sender):
    sender.send(made.task("t"), "nobody")
    told["AIRFLOW__OPERATORS__DEFAULT_QUEUE"] = "nobody"
    with worker("-H", "first", "-q", "a,b", folder=tmp_path, environment=told) as one:
        found = json.loads(airflow("celeriac", "status", "--output", "json", environment=told).stdout)
        assert [(queue["name"], queue["waiting"], queue["slots"]) for queue in found["queues"]] == [
            ("a", 0, 2),
            ("b", 0, 2),
            ("nobody", 1, 0),
        ]
        assert found["workers"] == [{"name": "celery@first", "queues": ["a", "b"], "concurrency": 2, "running": []}]
        assert "celery@first" in airflow("celeriac", "status", environment=told).stdout
        again = airflow("celeriac", "worker", "-H", "first", environment=told, status=1)
        assert "a worker called celery@first is at work" in again.stderr
        nobody = airflow("celeriac", "drain", "celery@second", environment=told, status=1)
        assert "celery@first" in nobody.stderr
        airflow("celeriac", "drain", "celery@first", environment=told)
        assert one.ends() == 0


def test_a_user_of_the_database_who_may_make_no_tables_is_told_of_them(told, postgres):
    """Of Celery's own, too, which are made first."""
    database, user = f"d{uuid4().hex}", f"u{uuid4().hex}"
    postgres.sql(f'CREATE DATABASE "{database}"')
    postgres.sql(f'CREATE ROLE "{user}" LOGIN')
    url = re.sub(r"//[^@]*@(.*)/[^/]*$", rf"//{user}@\1/{database}", postgres.url)
    told["AIRFLOW__CELERY__RESULT_BACKEND"] = url
    ended = airflow("celeriac", "worker", "-s", environment=told, status=1)
    assert "celeriac_claim and celeriac_lease" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_daemon_and_its_end(told, tmp_path):
    pid_file, log = tmp_path / "pid", tmp_path / "daemon.log"
    files = ["--pid", str(pid_file), "--stdout", str(log), "--stderr", str(tmp_path / "err"), "-l", str(tmp_path / "l")]
    told[MARK] = mark = str(uuid4())
    airflow("celeriac", "worker", "-D", "-s", "-u", "027", "-c", "1", *files, environment=told)
    until(lambda: log.exists() and "is ready" in log.read_text(), "the start of a daemon", STARTED_IN)
    process = psutil.Process(int(pid_file.read_text()))
    assert process.environ()[MARK] == mark
    airflow("celeriac", "stop", "--pid", str(pid_file), environment=told)
    until(lambda: not process.is_running(), "the end of a daemon")
    until(lambda: not pid_file.exists(), "the end of its pid file")
    assert "no pid file" in airflow("celeriac", "stop", "--pid", str(pid_file), environment=told, status=1).stderr


def test_logs_are_served_as_long_as_it_works(told, tmp_path):
    told["AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT"] = str(port := free_port())

    def is_served():
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    with worker(folder=tmp_path, environment=told, logs=True) as one:
        until(is_served, "the server of the logs", STARTED_IN)
        one.process.kill()
        until(lambda: not is_served(), "the end of the server of the logs")


WRONG = [
    ("AIRFLOW__CELERY__POOL", "gevent", "[celery] pool: 'gevent'"),
    ("AIRFLOW__CELERY__WORKER_AUTOSCALE", "some", "[celery] worker_autoscale: 'some'"),
    ("AIRFLOW__CELERIAC__SIGNING_KEY", "hush", "[celeriac] signing_key: is too short; give 16"),
    ("AIRFLOW__CELERIAC__WORKER_GRACE", "-1", "[celeriac] worker_grace: "),
    ("AIRFLOW__CELERY__RESULT_BACKEND", "db+postgresql+psycopg://u:hush@127.0.0.1:1/d", "[celery] result_backend: "),
]


@pytest.mark.parametrize(("variable", "value", "word"), WRONG, ids=[variable for variable, _, _ in WRONG])
def test_what_is_wrong_is_one_line(told, variable, value, word):
    ended = airflow("celeriac", "worker", "-s", environment={**told, variable: value}, status=1)
    lines = [line for line in ended.stderr.splitlines() if line.startswith("airflow celeriac: ")]
    assert len(lines) == 1
    assert word in lines[0]
    assert "Traceback" not in ended.stderr
    assert "hush" not in ended.stderr


@runs_callbacks_alone
@pytest.mark.parametrize("how", ["wait", "wait_deaf"])
def test_a_revoke_ends_what_runs(told, tmp_path, sender, how):
    with worker(folder=tmp_path, environment=told) as one:
        result = sender.send(waiting(tmp_path, "up", how))
        process = psutil.Process(begun(tmp_path / "up"))
        is_child_of_a_child = process.ppid() != one.process.pid
        sender.app.control.revoke(result)
        assert sender.to_the_end(result) == "REVOKED"
        assert not (is_child_of_a_child and process.is_running())
        after = sender.send(waiting(tmp_path, "after"))
        (tmp_path / "go").touch()
        assert sender.to_the_end(after) == "SUCCESS"


@runs_callbacks_alone
def test_term_lets_what_runs_finish_and_takes_nothing_more(told, tmp_path, sender, redis):
    with worker(folder=tmp_path, environment=told) as one:
        result = sender.send(waiting(tmp_path, "up"))
        begun(tmp_path / "up")
        one.process.send_signal(signal.SIGTERM)
        one.says("nothing more is taken")
        sender.send(waiting(tmp_path, "late"))
        (tmp_path / "go").touch()
        assert one.ends() == 0
        assert one.alive() == []
    assert sender.stored(result)["status"] == "SUCCESS"
    with Redis(port=redis.port) as client:
        assert (client.llen("default"), client.hlen("unacked")) == (1, 0)


@runs_callbacks_alone
def test_what_does_not_finish_in_time_is_ended(told, tmp_path, sender, redis):
    told["AIRFLOW__CELERIAC__WORKER_GRACE"] = "0.2"
    with worker(folder=tmp_path, environment=told) as one:
        result = sender.send(waiting(tmp_path, "up", "wait_deaf"))
        begun(tmp_path / "up")
        one.process.send_signal(signal.SIGTERM)
        assert one.ends() == 0
        assert one.alive() == []
    assert sender.stored(result)["status"] == "FAILURE"
    with Redis(port=redis.port) as client:
        assert (client.llen("default"), client.hlen("unacked")) == (0, 0)


@runs_callbacks_alone
def test_no_workload_outlives_a_worker_that_is_killed(told, tmp_path, sender):
    with worker(folder=tmp_path, environment=told) as one:
        sender.send(waiting(tmp_path, "up"))
        begun(tmp_path / "up")
        one.process.kill()
        until(lambda: not one.alive(), "the end of everything the worker started")
        assert not Path(tmp_path / "go").exists()


@runs_callbacks_alone
def test_a_workload_outlives_the_connection_its_message_came_by(told, tmp_path, sender, redis):
    with Proxy(redis.port) as proxy:
        told["AIRFLOW__CELERY__BROKER_URL"] = redis.url.replace(str(redis.port), str(proxy.port))
        with worker(folder=tmp_path, environment=told) as one:
            result = sender.send(waiting(tmp_path, "up"))
            begun(tmp_path / "up")
            proxy.swallow()
            one.says("connecting anew")
            proxy.heal()
            (tmp_path / "go").touch()
            assert sender.to_the_end(result) == "SUCCESS"
            with Redis(port=redis.port) as client:
                until(lambda: client.hlen("unacked") == 0, "the acknowledgement")
                assert client.llen("default") == 0
            after = sender.send(waiting(tmp_path, "after"))
            assert sender.to_the_end(after) == "SUCCESS"
            assert one.log.count("received") == 2


@contextmanager
def store(backend):
    """Claims and leases, as an executor has them."""
    with closing(make_app(broker_url="memory://", result_backend=backend)) as app:
        claims = claims_for(app, timeout=2.0)
        assert claims is not None
        with closing(claims):
            yield claims


@pytest.fixture
def claims(redis):
    with store(redis.url) as claims:
        yield claims


def lease_of(claims, condition):
    """Of the one worker, once it is as it should be."""
    found: list[Any] = []

    def is_so():
        found[:] = [one for one in claims.leases().values() if one.state is not LeaseState.DEAD and condition(one)]
        return found

    until(is_so, "a lease")
    return found[0]


def is_running(*ids):
    return lambda leased: leased.lease is not None and leased.lease.running == ids


def test_what_was_called_back_before_its_worker_came_up_never_runs(told, tmp_path, sender, claims):
    task_id = str(uuid4())
    claims.cancel([task_id])
    sender.send(made.task("t"), task_id=task_id)
    with worker(folder=tmp_path, environment=told) as one:
        one.says(f"[{task_id}] ended: revoked")
        after = sender.send(made.task("after"))
        assert sender.to_the_end(after) == "FAILURE"  # of its supervisor, without an API server
    assert sender.stored(task_id)["status"] == "REVOKED"
    assert "dag.t run" not in one.log


@runs_callbacks_alone
@pytest.mark.parametrize("kind", ["redis", "postgres"])
def test_a_message_that_comes_twice_runs_once(request, told, tmp_path, redis, kind):
    backend = request.getfixturevalue(kind).url
    told["AIRFLOW__CELERY__RESULT_BACKEND"] = backend
    sender, callback = Sender(redis.url, backend), waiting(tmp_path, "up")
    with worker(folder=tmp_path, environment=told) as one, store(backend) as claims:
        task_id = sender.send(callback)
        begun(tmp_path / "up")
        assert sender.stored(task_id)["status"] == "STARTED"
        lease_of(claims, is_running(task_id))
        sender.send(callback, task_id=task_id)
        one.says(f"[{task_id}] dropped: it came twice")
        assert one.log.count("ExecuteCallback") == 1
        assert sender.stored(task_id)["status"] == "STARTED"
        (tmp_path / "go").touch()
        assert sender.to_the_end(task_id) == "SUCCESS"


@runs_callbacks_alone
def test_started_is_stored_only_if_that_is_asked_for(told, tmp_path, sender, claims):
    told["AIRFLOW__CELERY__TASK_TRACK_STARTED"] = "False"
    with worker(folder=tmp_path, environment=told):
        task_id = sender.send(waiting(tmp_path, "up"))
        begun(tmp_path / "up")
        assert task_id in claims.read([task_id])
        assert sender.stored(task_id)["status"] == PENDING
        (tmp_path / "go").touch()
        assert sender.to_the_end(task_id) == "SUCCESS"


@runs_callbacks_alone
def test_a_worker_that_goes_says_so_and_says_goodbye(told, tmp_path, sender, claims):
    with worker("-H", "first", folder=tmp_path, environment=told) as one:
        task_id = sender.send(waiting(tmp_path, "up"))
        begun(tmp_path / "up")
        lease = lease_of(claims, is_running(task_id)).lease
        assert (lease.name, lease.pid, lease.queues, lease.slots) == ("celery@first", one.process.pid, ("default",), 2)
        one.process.send_signal(signal.SIGTERM)
        lease_of(claims, lambda leased: leased.lease.draining)
        (tmp_path / "go").touch()
        assert one.ends() == 0
        assert [leased.state for leased in claims.leases().values()] == [LeaseState.GONE]


@runs_callbacks_alone
def test_what_a_frozen_worker_runs_ends_by_itself(told, tmp_path, sender, claims):
    with worker(folder=tmp_path, environment=told) as one:
        task_id = sender.send(waiting(tmp_path, "up"))
        begun(tmp_path / "up")
        lease_of(claims, is_running(task_id))
        one.process.send_signal(signal.SIGSTOP)
        assert sender.to_the_end(task_id) == "FAILURE"
        report = sender.stored(task_id)["result"].args[0]
        assert (report["reason"], "silent" in report["detail"]) == ("lost", True)
        one.process.send_signal(signal.SIGCONT)
        (tmp_path / "go").touch()
        after = sender.send(waiting(tmp_path, "after"))
        assert sender.to_the_end(after) == "SUCCESS"


@runs_callbacks_alone
def test_a_task_ends_that_does_not_heed_the_silence_of_its_worker(told, tmp_path, sender, claims):
    with worker(folder=tmp_path, environment=told) as one:
        task_id = sender.send(waiting(tmp_path, "up", "wait_deaf"))
        process = psutil.Process(begun(tmp_path / "up"))
        if process.ppid() == one.process.pid:
            pytest.skip("in this version a callback runs beside its own supervisor")
        lease_of(claims, is_running(task_id))
        one.process.send_signal(signal.SIGSTOP)
        until(lambda: not process.is_running(), "the end of the task")
        one.process.send_signal(signal.SIGCONT)


@runs_callbacks_alone
@pytest.mark.parametrize("verdict", ["dead", "fenced"])
def test_what_is_no_longer_a_workers_to_run_is_ended_and_nothing_is_said_of_it(told, tmp_path, sender, claims, verdict):
    with worker(folder=tmp_path, environment=told) as one:
        task_id = sender.send(waiting(tmp_path, "up"))
        begun(tmp_path / "up")
        leased = lease_of(claims, is_running(task_id))
        if verdict == "dead":
            until(lambda: claims.declare_dead(leased.lease.holder, latest(claims, leased)), "a verdict")
        assert list(claims.fence(list(claims.read([task_id]).values()))) == [task_id]
        one.says(f"[{task_id}] ended: its worker was taken for dead")
        (tmp_path / "go").touch()
        after = sender.send(waiting(tmp_path, "after"))
        assert sender.to_the_end(after) == "SUCCESS"
        assert sender.stored(task_id)["status"] == "STARTED"


def latest(claims, leased):
    return claims.leases()[leased.lease.holder].heartbeat_count


@runs_callbacks_alone
def test_where_nobody_watches_a_living_worker_takes_over_from_a_dead_one(told, tmp_path, rabbit, redis):
    """As under Airflow's own executor. RabbitMQ delivers at once again what a dead worker had not acknowledged."""
    told |= {"AIRFLOW__CELERY__BROKER_URL": rabbit.url, "AIRFLOW__OPERATORS__DEFAULT_QUEUE": "inherited"}
    sender = Sender(rabbit.url, redis.url)
    with worker("-H", "first", folder=tmp_path, environment=told) as first:
        task_id = sender.send(waiting(tmp_path, "up"), "inherited")
        begun(tmp_path / "up")
        with worker("-H", "second", folder=tmp_path, environment=told) as second:
            (tmp_path / "up").unlink()
            first.process.kill()
            until(lambda: (tmp_path / "up").exists(), "the second begin", PATIENCE + STARTED_IN)
            assert f"[{task_id}] ExecuteCallback" in second.log
            (tmp_path / "go").touch()
            assert sender.to_the_end(task_id) == "SUCCESS"


@runs_callbacks_alone
def test_a_store_that_is_away_for_everybody_ends_nothing(told, tmp_path, sender, redis):
    with closing(RedisServer()) as backend:
        told["AIRFLOW__CELERY__RESULT_BACKEND"] = backend.url
        sender = Sender(redis.url, backend.url)
        with worker(folder=tmp_path, environment=told) as one, store(backend.url) as claims:
            task_id = sender.send(waiting(tmp_path, "up"))
            begun(tmp_path / "up")
            lease_of(claims, is_running(task_id))
            backend.kill()
            one.says("what runs goes on")
            late = sender.send(waiting(tmp_path, "late"))
            end_of_silence = time.monotonic() + 2 * SILENCE_LIMIT
            until(lambda: time.monotonic() > end_of_silence, "a silence that is long enough")
            assert not (tmp_path / "late").exists()
            backend.start()
            begun(tmp_path / "late")
            (tmp_path / "go").touch()
            assert [sender.to_the_end(each) for each in (task_id, late)] == ["SUCCESS", "SUCCESS"]
