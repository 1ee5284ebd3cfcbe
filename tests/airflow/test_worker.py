"""`airflow celeriac worker`, started as a user starts it, on real brokers, with a small server as Airflow's API server.

The server knows no task, unless a test says otherwise.
"""

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
from airflow.executors.base_executor import ExecutorConf
from celery import Celery
from celery.states import PENDING, READY_STATES
from redis import Redis

from celeriac.airflow.claim_takeover import TAKEOVER_TIMEOUT
from celeriac.backend.claims import claims_for
from celeriac.backend.claims.claim import LeaseState
from celeriac.broker.app import make_app
from celeriac.config.signing import HEADER, SigningKeys
from celeriac.worker.supervisor.lease_policy import SILENCE_LIMIT
from tests.airflow import workloads as workload_factory
from tests.airflow.api_server import Behaviour, api_server
from tests.airflow.installed import with_upstream
from tests.support.cli_runner import MARK, until
from tests.support.proxy import Proxy
from tests.support.servers import RedisServer, free_port

KEY = "correct horse battery"
CLEANUP_TIME = 1  # seconds that a task has for its `on_kill`
START_TIMEOUT = 180.0  # seconds: importing Airflow takes half a minute on a busy machine

needs_callbacks_without_api_server = pytest.mark.skipif(
    not hasattr(workloads, "ExecuteCallback") or hasattr(workloads, "WorkloadType"),
    reason="Airflow 3.1 has no callbacks, and from 3.4 on they need the API server",
)


@pytest.fixture
def redis(shared_redis) -> RedisServer:
    with Redis(port=shared_redis.port) as client:
        client.flushall()
    return shared_redis  # type: ignore[no-any-return]


@pytest.fixture
def server():
    with api_server() as server:
        yield server


@pytest.fixture
def environment(tmp_path, redis, server):
    """The environment of every process that a test starts."""
    return {
        **os.environ,
        **with_upstream(tmp_path),
        "AIRFLOW_HOME": os.environ.get("AIRFLOW_HOME", str(tmp_path)),
        "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor:celeriac.airflow.CeleryExecutor",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__KILLED_TASK_CLEANUP_TIME": str(CLEANUP_TIME),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": server.url,
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

    def await_log(self, text):
        def has_text():
            assert self.process.poll() is None or text in self.log, self.log
            return text in self.log

        until(has_text, f"{text!r} in the worker's log", START_TIMEOUT)

    def wait(self):
        return self.process.wait(START_TIMEOUT)

    def alive(self):
        alive = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    alive.append(process)
        return alive


@contextmanager
def worker(*options, folder, environment, logs=False):
    started = Worker(*options, *([] if logs else ["--skip-serve-logs"]), folder=folder, environment=environment)
    try:
        started.await_log("is ready")
        yield started
    finally:
        for process in started.alive():
            with contextlib.suppress(psutil.Error):
                process.kill()
        started.process.wait()


def airflow(*arguments, environment, status=0):
    done = subprocess.run(
        [sys.executable, "-m", "airflow", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT,
    )
    assert done.returncode == status, done.stderr
    return done


class Sender:
    def __init__(self, broker, backend):
        self.app = Celery("sender", broker=broker, set_as_current=False)
        self.app.conf.update(task_default_queue="default", task_default_exchange="default")
        self._backend = Celery("reader", backend=backend, set_as_current=False).backend

    def send(self, message, queue="default", **options):
        """Return the Celery id."""
        text = message if isinstance(message, str) else message.model_dump_json()
        return self.app.send_task("execute_workload", (text,), queue=queue, **{"argsrepr": "-", **options}).id

    def stored(self, task_id):
        return self._backend.get_task_meta(task_id, cache=False)

    def final_status(self, task_id):
        until(lambda: self.stored(task_id)["status"] in READY_STATES, "the end of a workload")
        return self.stored(task_id)["status"]


@pytest.fixture
def sender(redis):
    return Sender(redis.url, redis.url)


def started_pid(path):
    until(path.exists, "the start of a workload")
    return int(path.read_text())


def callback_waiting_for_file(tmp_path, name, how="wait"):
    """Return a callback that writes its pid to the file `name`, and ends when there is a file `go`."""
    callback = workload_factory.callback(f"tests.airflow.callbacks.{how}")
    callback.callback.data["kwargs"] = {"pid_file": str(tmp_path / name), "go": str(tmp_path / "go")}
    return callback


def test_supervisor_error_is_counted_and_stored_as_failure_without_the_token(environment, tmp_path, sender, statsd):
    environment |= statsd.environment
    with worker(folder=tmp_path, environment=environment) as running:
        task = sender.send(workload_factory.task("t"))
        broken = sender.send(json.dumps({"type": "No", "token": "a-token"}))
        assert (sender.final_status(task), sender.final_status(broken)) == ("FAILURE", "FAILURE")
        assert "Server returned error" in str(sender.stored(task)["result"])
        assert "not a workload of this version of Airflow" in str(sender.stored(broken)["result"])
        running.process.send_signal(signal.SIGTERM)
        assert running.wait() == 0
        assert running.alive() == []
    assert "started: ExecuteTask dag_id=dag task_id=t run_id=run try_number=1" in running.log
    assert "airflow.celery.execute_command.failure:1|c" in statsd.read()
    for text in (running.log, str(sender.stored(task)), str(sender.stored(broken))):
        assert "a-token" not in text


def test_worker_with_a_key_refuses_unsigned_and_altered_workloads(environment, tmp_path, sender):
    environment["AIRFLOW__CELERIAC__SIGNING_KEY"] = KEY

    def send_signed(workload, key, signed_id=None):
        text, task_id = workload.model_dump_json(), str(uuid4())
        content = {"id": signed_id or task_id, "workload": text}
        headers = {HEADER: SigningKeys([key]).sign("execute_workload", content)}
        return sender.send(text, task_id=task_id, headers=headers)

    with worker(folder=tmp_path, environment=environment) as running:
        signed = send_signed(workload_factory.task("signed"), KEY)
        others = [
            sender.send(workload_factory.task("t")),
            send_signed(workload_factory.task("t"), KEY[::-1]),
            send_signed(workload_factory.task("t"), KEY, "another"),
        ]
        assert {sender.final_status(task_id) for task_id in (signed, *others)} == {"FAILURE"}
        assert "Server returned error" in str(sender.stored(signed)["result"])  # its supervisor asked the API server
        reports = [sender.stored(task_id)["result"].report for task_id in others]
    assert [report["reason"] for report in reports] == ["refused"] * 3
    assert reports[0]["detail"] == "its worker did not run it: its message is not signed"
    assert "started: ExecuteTask dag_id=dag task_id=signed run_id=run" in running.log
    assert "started: ExecuteTask dag_id=dag task_id=t " not in running.log
    assert KEY not in running.log


@pytest.mark.one_version
def test_worker_runs_on_rabbitmq_and_postgresql(environment, tmp_path, rabbit, postgres):
    environment |= {"AIRFLOW__CELERY__BROKER_URL": rabbit.url, "AIRFLOW__CELERY__RESULT_BACKEND": postgres.url}
    sender = Sender(rabbit.url, postgres.url)
    with worker("--queues", "default,gpu", folder=tmp_path, environment=environment) as running:
        assert postgres.sql("SELECT count(*) FROM celery_taskmeta") == [(0,)]
        results = [sender.send(workload_factory.task(f"t{n}"), queue) for n, queue in enumerate(["default", "gpu"])]
        assert [sender.final_status(result) for result in results] == ["FAILURE", "FAILURE"]
        running.process.send_signal(signal.SIGTERM)
        assert running.wait() == 0


def test_worker_sends_its_metrics_to_airflows_client_and_warns_at_its_start(
    environment, tmp_path, redis, sender, statsd
):
    redis.configure(maxmemory="1gb", maxmemory_policy="allkeys-lru")
    environment |= statsd.environment
    try:
        with worker("-H", "first", folder=tmp_path, environment=environment) as running:
            assert "maxmemory-policy is allkeys-lru" in running.log
            sender.final_status(sender.send(workload_factory.task("t")))
            expected = {
                "airflow.celeriac.worker_concurrency.celery_first:2|g",
                "airflow.celeriac.worker_draining.celery_first:0|g",
                "airflow.celeriac.worker_started_total:1|c",
                "airflow.celeriac.worker_ends_total.worker_error:1|c",
            }
            until(lambda: expected <= statsd.read(), "the metrics", START_TIMEOUT)
    finally:
        redis.configure(maxmemory="0", maxmemory_policy="noeviction")


def test_status_lists_workers_and_queues_and_drain_stops_a_worker(environment, tmp_path, redis, sender):
    sender.send(workload_factory.task("t"), "unserved")
    environment["AIRFLOW__OPERATORS__DEFAULT_QUEUE"] = "unserved"
    with worker("-H", "first", "-q", "a,b", folder=tmp_path, environment=environment) as running:
        status = json.loads(airflow("celeriac", "status", "-v", "-o", "json", environment=environment).stdout)
        assert [(queue["name"], queue["waiting"], queue["slots"]) for queue in status["queues"]] == [
            ("a", 0, 2),
            ("b", 0, 2),
            ("unserved", 1, 0),
        ]
        assert status["workers"] == [{"name": "celery@first", "queues": ["a", "b"], "concurrency": 2, "running": []}]
        assert "celery@first" in airflow("celeriac", "status", environment=environment).stdout
        checked = airflow("celeriac", "check", "celery@first", environment=environment)
        assert re.fullmatch(r"celery@first: ok: last heartbeat [\d.]+ s ago, runs 0 tasks\n", checked.stdout)
        missing = airflow("celeriac", "check", environment=environment, status=1)  # the worker of this host
        expected = f"airflow celeriac: celery@{socket.gethostname()}: no worker of this name has a lease"
        assert expected in missing.stderr.splitlines()
        again = airflow("celeriac", "worker", "-H", "first", environment=environment, status=1)
        assert "a worker called celery@first is already running" in again.stderr
        failed = airflow("celeriac", "drain", "celery@second", environment=environment, status=1)
        assert "celery@first" in failed.stderr
        airflow("celeriac", "drain", "celery@first", environment=environment)
        assert running.wait() == 0


@pytest.mark.one_version
def test_missing_right_to_create_tables_is_reported(environment, postgres):
    """The tables of Celery are created first, and cannot be created either."""
    database, user = f"d{uuid4().hex}", f"u{uuid4().hex}"
    postgres.sql(f'CREATE DATABASE "{database}"')
    postgres.sql(f'CREATE ROLE "{user}" LOGIN')
    url = re.sub(r"//[^@]*@(.*)/[^/]*$", rf"//{user}@\1/{database}", postgres.url)
    environment["AIRFLOW__CELERY__RESULT_BACKEND"] = url
    failed = airflow("celeriac", "worker", "-s", environment=environment, status=1)
    assert "celeriac_claim and celeriac_lease" in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.one_version
def test_daemon_has_its_options_and_stops_by_its_pid_file(environment, tmp_path, redis):
    pid_file, log, log_file = tmp_path / "pid", tmp_path / "daemon.log", tmp_path / "l"
    files = [
        "--pid",
        str(pid_file),
        "--stdout",
        str(log),
        "--stderr",
        str(tmp_path / "err"),
        "--log-file",
        str(log_file),
    ]
    options = ["-D", "-s", "-v", "-u", "027", "-c", "2", "-a", "3,1", "-q", "a,b", "-H", "daemon"]
    options += ["--without-mingle", "--without-gossip"]
    environment |= {MARK: (mark := str(uuid4())), "AIRFLOW__DAG_PROCESSOR__STALE_BUNDLE_CLEANUP_INTERVAL": "0"}
    airflow("celeriac", "worker", *options, *files, environment=environment)
    until(lambda: log.exists() and "celery@daemon is ready; queues: a,b" in log.read_text(), "a daemon", START_TIMEOUT)
    process = psutil.Process(int(pid_file.read_text()))
    assert process.environ()[MARK] == mark
    assert "Umask:\t0027" in Path(f"/proc/{process.pid}/status").read_text()
    text = log.read_text()
    assert "Starting Tasks" in text  # on DEBUG, Celery names each part of the worker that it starts
    assert "Starting Mingle" not in text
    assert "Starting Gossip" not in text
    assert log_file.exists()
    with closing(Celery("asker", broker=redis.url, set_as_current=False)) as app:
        inspect = app.control.inspect(["celery@daemon"], timeout=5.0, limit=1)
        until(inspect.ping, "a reply of the daemon", START_TIMEOUT)
        (stats,) = inspect.stats().values()
    assert {name: stats["autoscaler"][name] for name in ("max", "min")} == {"max": 3, "min": 1}
    reaper = "celeriac.airflow.task_reaper"
    children = {child.pid for child in process.children() if reaper not in child.cmdline()}
    assert children == set(stats["pool"]["processes"])  # no log server
    assert f"Worker {process.pid} is draining" in stop(pid_file, environment).stdout
    until(lambda: not process.is_running(), "the end of a daemon")
    until(lambda: not pid_file.exists(), "the end of its pid file")
    assert "no pid file" in stop(pid_file, environment, status=1).stderr
    pid_file.write_text(f"{process.pid}\n")
    assert "had ended without removing its pid file" in stop(pid_file, environment).stdout
    assert not pid_file.exists()


def stop(pid_file, environment, status=0):
    return airflow("celeriac", "stop", "--pid", str(pid_file), environment=environment, status=status)


@pytest.mark.skipif(not hasattr(ExecutorConf, "getsection"), reason="Airflow 3.1 has no teams for workers")
@pytest.mark.one_version
def test_worker_and_commands_of_a_team_use_its_broker(environment, tmp_path, redis):
    """The worker starts with Celery's synchronization, whose absence another test looks for."""
    own = f"{redis.url.removesuffix('/0')}/1"
    variables = {"CELERY__BROKER_URL": own, "CELERY__RESULT_BACKEND": own, "OPERATORS__DEFAULT_QUEUE": "blues"}
    environment |= {f"AIRFLOW__BLUE___{name}": value for name, value in variables.items()}
    environment |= {"AIRFLOW__CORE__MULTI_TEAM": "True", "AIRFLOW__CORE__EXECUTOR": "celeriac.airflow.CeleryExecutor"}
    with worker("--team", "blue", "-H", "first", "-v", folder=tmp_path, environment=environment) as running:
        assert all(f"Starting {part}" in running.log for part in ("Tasks", "Mingle", "Gossip"))
        listing = ["celeriac", "list-workers", "-o", "json"]
        assert json.loads(airflow(*listing, environment=environment).stdout) == []
        workers = airflow(*listing, "--team", "blue", environment=environment).stdout
        assert json.loads(workers) == [{"worker_name": "celery@first", "queues": ["blues"]}]
        sender = Sender(own, own)
        assert sender.final_status(sender.send(workload_factory.task("t"), "blues")) == "FAILURE"
        assert "a-token" not in running.log
        airflow("celeriac", "shutdown-worker", "-H", "celery@first", "-t", "blue", environment=environment)
        assert running.wait() == 0


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_log_server_ends_with_its_worker(environment, tmp_path, how):
    environment["AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT"] = str(port := free_port())

    def is_serving():
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    with worker(folder=tmp_path, environment=environment, logs=True) as running:
        until(is_serving, "the log server", START_TIMEOUT)
        running.process.send_signal(how)
        until(lambda: not is_serving(), "the end of the log server")
        running.wait()


INVALID = [
    ("AIRFLOW__CELERY__POOL", "gevent", "[celery] pool: 'gevent'"),
    ("AIRFLOW__CELERY__WORKER_AUTOSCALE", "some", "[celery] worker_autoscale: 'some'"),
    ("AIRFLOW__CELERIAC__SIGNING_KEY", "hush", "[celeriac] signing_key: is too short; give 16"),
    ("AIRFLOW__CELERIAC__WORKER_GRACE", "-1", "[celeriac] worker_grace: "),
    ("AIRFLOW__CELERY__RESULT_BACKEND", "db+postgresql+psycopg://u:hush@127.0.0.1:x/d", "[celery] result_backend: "),
]


@pytest.mark.one_version
def test_worker_waits_for_a_result_backend_that_does_not_answer(environment, tmp_path):
    environment["AIRFLOW__CELERY__RESULT_BACKEND"] = "db+postgresql+psycopg://u:hush@127.0.0.1:1/d"
    with worker(folder=tmp_path, environment=environment) as running:
        running.await_log("The result backend is unavailable; the worker starts, and waits for it")
        assert "hush" not in running.log


@pytest.mark.one_version
@pytest.mark.parametrize(("variable", "value", "text"), INVALID, ids=[variable for variable, _, _ in INVALID])
def test_invalid_option_is_reported_in_one_line(environment, variable, value, text):
    failed = airflow("celeriac", "worker", "-s", environment={**environment, variable: value}, status=1)
    lines = [line for line in failed.stderr.splitlines() if line.startswith("airflow celeriac: ")]
    assert len(lines) == 1
    assert text in lines[0]
    assert "Traceback" not in failed.stderr
    assert "hush" not in failed.stderr


@needs_callbacks_without_api_server
@pytest.mark.parametrize("how", ["wait", pytest.param("wait_ignoring_term", marks=pytest.mark.one_version)])
def test_revoke_ends_a_running_workload(environment, tmp_path, sender, how):
    with worker(folder=tmp_path, environment=environment) as running:
        result = sender.send(callback_waiting_for_file(tmp_path, "pid", how))
        process = psutil.Process(started_pid(tmp_path / "pid"))
        is_child_of_a_child = process.ppid() != running.process.pid
        sender.app.control.revoke(result)
        assert sender.final_status(result) == "REVOKED"
        assert not (is_child_of_a_child and process.is_running())
        after = sender.send(callback_waiting_for_file(tmp_path, "after"))
        (tmp_path / "go").touch()
        assert sender.final_status(after) == "SUCCESS"


@needs_callbacks_without_api_server
def test_drain_and_term_let_workloads_finish_and_take_no_more(environment, tmp_path, sender, redis):
    with worker(folder=tmp_path, environment=environment) as running:
        result = sender.send(callback_waiting_for_file(tmp_path, "pid"))
        started_pid(tmp_path / "pid")
        airflow("celeriac", "drain", f"celery@{socket.gethostname()}", environment=environment)
        running.await_log("no more messages are accepted")
        running.process.send_signal(signal.SIGTERM)  # as a pod gets it after its preStop hook has drained the worker
        sender.send(callback_waiting_for_file(tmp_path, "late"))
        (tmp_path / "go").touch()
        assert running.wait() == 0
        assert running.alive() == []
    assert sender.stored(result)["status"] == "SUCCESS"
    with Redis(port=redis.port) as client:
        assert (client.llen("default"), client.hlen("unacked")) == (1, 0)


@needs_callbacks_without_api_server
@pytest.mark.parametrize(
    "way", ["grace", *(pytest.param(way, marks=pytest.mark.one_version) for way in ("second TERM", "QUIT"))]
)
def test_workloads_that_run_are_ended_and_others_handed_back(environment, tmp_path, sender, redis, claims, way):
    environment["AIRFLOW__CELERIAC__WORKER_GRACE"] = "0.2" if way == "grace" else "600"
    environment["AIRFLOW__CELERY__WORKER_PREFETCH_MULTIPLIER"] = "2"
    with worker(folder=tmp_path, environment=environment) as running, Redis(port=redis.port) as client:
        results = [
            sender.send(callback_waiting_for_file(tmp_path, f"pid-{how}", how))
            for how in ("wait", "wait_ignoring_term")
        ]
        for how in ("wait", "wait_ignoring_term"):
            started_pid(tmp_path / f"pid-{how}")
        unstarted = sender.send(callback_waiting_for_file(tmp_path, "pid-late"))
        until(lambda: client.hlen("unacked") == 3, "a message that waits in the worker")
        running.process.send_signal(signal.SIGQUIT if way == "QUIT" else signal.SIGTERM)
        if way == "second TERM":
            running.await_log("no more messages are accepted")
            running.process.send_signal(signal.SIGTERM)
        assert running.wait() == 0
        assert running.alive() == []
        assert [sender.stored(result)["status"] for result in results] == ["FAILURE", "FAILURE"]
        assert sender.stored(unstarted)["status"] == PENDING
        assert (client.llen("default"), client.hlen("unacked")) == (1, 0)
        assert not (tmp_path / "pid-late").exists()
        assert [leased.state for leased in claims.leases().values()] == [LeaseState.GONE]


@needs_callbacks_without_api_server
def test_no_workload_outlives_a_killed_worker(environment, tmp_path, sender):
    with worker(folder=tmp_path, environment=environment) as running:
        sender.send(callback_waiting_for_file(tmp_path, "pid"))
        started_pid(tmp_path / "pid")
        running.process.kill()
        until(lambda: not running.alive(), "the end of every process that the worker started")
        assert not Path(tmp_path / "go").exists()


@needs_callbacks_without_api_server
def test_workload_survives_a_lost_broker_connection(environment, tmp_path, sender, redis):
    with Proxy(redis.port) as proxy:
        environment["AIRFLOW__CELERY__BROKER_URL"] = redis.url.replace(str(redis.port), str(proxy.port))
        with worker(folder=tmp_path, environment=environment) as running:
            result = sender.send(callback_waiting_for_file(tmp_path, "pid"))
            started_pid(tmp_path / "pid")
            proxy.swallow()
            running.await_log("reconnecting")
            proxy.heal()
            (tmp_path / "go").touch()
            assert sender.final_status(result) == "SUCCESS"
            with Redis(port=redis.port) as client:
                until(lambda: client.hlen("unacked") == 0, "the acknowledgement")
                assert client.llen("default") == 0
            after = sender.send(callback_waiting_for_file(tmp_path, "after"))
            assert sender.final_status(after) == "SUCCESS"
            assert running.log.count("received") == 2


@contextmanager
def open_claims(backend):
    """Open the claims store of a backend, as an executor does."""
    with closing(make_app(broker_url="memory://", result_backend=backend)) as app:
        claims = claims_for(app, timeout=2.0)
        assert claims is not None
        with closing(claims):
            yield claims


@pytest.fixture
def claims(redis):
    with open_claims(redis.url) as claims:
        yield claims


def await_lease(claims, condition):
    """Return the lease of the only worker, when it meets the condition."""
    matching: list[Any] = []

    def is_met():
        leases = claims.leases().values()
        matching[:] = [lease for lease in leases if lease.state is not LeaseState.DEAD and condition(lease)]
        return matching

    until(is_met, "a lease")
    return matching[0]


def runs(*ids):
    return lambda leased: leased.lease is not None and leased.lease.running == ids


def test_workload_revoked_before_its_worker_starts_never_runs(environment, tmp_path, sender, claims):
    task_id = str(uuid4())
    claims.cancel([task_id])
    sender.send(workload_factory.task("t"), task_id=task_id)
    with worker(folder=tmp_path, environment=environment) as running:
        running.await_log(f"[{task_id}] ended: revoked")
        after = sender.send(workload_factory.task("after"))
        assert sender.final_status(after) == "FAILURE"  # its supervisor has no API server
    assert sender.stored(task_id)["status"] == "REVOKED"
    assert f"[{task_id}] started" not in running.log


@needs_callbacks_without_api_server
@pytest.mark.parametrize("kind", ["redis", pytest.param("postgres", marks=pytest.mark.one_version)])
def test_message_delivered_twice_runs_once(request, environment, tmp_path, redis, kind):
    backend = request.getfixturevalue(kind).url
    environment["AIRFLOW__CELERY__RESULT_BACKEND"] = backend
    sender, callback = Sender(redis.url, backend), callback_waiting_for_file(tmp_path, "pid")
    with worker(folder=tmp_path, environment=environment) as running, open_claims(backend) as claims:
        task_id = sender.send(callback)
        started_pid(tmp_path / "pid")
        assert sender.stored(task_id)["status"] == "STARTED"
        await_lease(claims, runs(task_id))
        sender.send(callback, task_id=task_id)
        running.await_log(f"[{task_id}] dropped: a worker has claimed it already")
        assert running.log.count("started: ExecuteCallback") == 1
        assert sender.stored(task_id)["status"] == "STARTED"
        (tmp_path / "go").touch()
        assert sender.final_status(task_id) == "SUCCESS"


@needs_callbacks_without_api_server
def test_started_is_stored_only_with_task_track_started(environment, tmp_path, sender, claims):
    environment["AIRFLOW__CELERY__TASK_TRACK_STARTED"] = "False"
    with worker(folder=tmp_path, environment=environment):
        task_id = sender.send(callback_waiting_for_file(tmp_path, "pid"))
        started_pid(tmp_path / "pid")
        assert task_id in claims.read([task_id])
        assert sender.stored(task_id)["status"] == PENDING
        (tmp_path / "go").touch()
        assert sender.final_status(task_id) == "SUCCESS"


@needs_callbacks_without_api_server
def test_worker_that_got_term_shows_it_and_returns_what_has_not_started(environment, tmp_path, sender, redis, claims):
    environment["AIRFLOW__CELERY__WORKER_PREFETCH_MULTIPLIER"] = "2"
    with worker("-H", "first", folder=tmp_path, environment=environment) as running, Redis(port=redis.port) as client:
        names = ("pid", "second", "unstarted")
        task_id, second, unstarted = (sender.send(callback_waiting_for_file(tmp_path, name)) for name in names)
        for name in names[:2]:
            started_pid(tmp_path / name)
        until(lambda: client.hlen("unacked") == 3, "a message that waits in the worker")
        lease = await_lease(claims, lambda leased: {*leased.lease.running} == {task_id, second}).lease
        assert (lease.name, lease.pid, lease.queues, lease.slots) == (
            "celery@first",
            running.process.pid,
            ("default",),
            2,
        )
        running.process.send_signal(signal.SIGTERM)
        await_lease(claims, lambda leased: leased.lease.draining)
        (tmp_path / "go").touch()
        assert running.wait() == 0
        assert [leased.state for leased in claims.leases().values()] == [LeaseState.GONE]
        assert [sender.stored(task)["status"] for task in (task_id, second, unstarted)] == [
            "SUCCESS",
            "SUCCESS",
            PENDING,
        ]
        assert (client.llen("default"), client.hlen("unacked")) == (1, 0)
        assert not (tmp_path / "unstarted").exists()


@needs_callbacks_without_api_server
def test_workload_of_a_frozen_worker_is_ended_and_stored_as_lost(environment, tmp_path, sender, claims):
    with worker(folder=tmp_path, environment=environment) as running:
        task_id = sender.send(callback_waiting_for_file(tmp_path, "pid"))
        started_pid(tmp_path / "pid")
        await_lease(claims, runs(task_id))
        running.process.send_signal(signal.SIGSTOP)
        assert sender.final_status(task_id) == "FAILURE"
        report = sender.stored(task_id)["result"].args[0]
        assert (report["reason"], "silent" in report["detail"]) == ("lost", True)
        running.process.send_signal(signal.SIGCONT)
        (tmp_path / "go").touch()
        after = sender.send(callback_waiting_for_file(tmp_path, "after"))
        assert sender.final_status(after) == "SUCCESS"


@pytest.mark.one_version
@needs_callbacks_without_api_server
def test_task_of_a_frozen_worker_that_ignores_term_is_killed(environment, tmp_path, sender, claims):
    with worker(folder=tmp_path, environment=environment) as running:
        task_id = sender.send(callback_waiting_for_file(tmp_path, "pid", "wait_ignoring_term"))
        process = psutil.Process(started_pid(tmp_path / "pid"))
        if process.ppid() == running.process.pid:
            pytest.skip("in this version a callback runs beside its own supervisor")
        await_lease(claims, runs(task_id))
        running.process.send_signal(signal.SIGSTOP)
        until(lambda: not process.is_running(), "the end of the task")
        running.process.send_signal(signal.SIGCONT)


@needs_callbacks_without_api_server
@pytest.mark.parametrize("cause", ["dead", "fenced"])
def test_superseded_workload_is_ended_without_a_result(environment, tmp_path, sender, claims, cause):
    with worker(folder=tmp_path, environment=environment) as running:
        task_id = sender.send(callback_waiting_for_file(tmp_path, "pid"))
        started_pid(tmp_path / "pid")
        leased = await_lease(claims, runs(task_id))
        if cause == "dead":
            until(
                lambda: claims.declare_dead(leased.lease.holder, heartbeat_count(claims, leased)),
                "the declaration of death",
            )
        assert list(claims.fence(list(claims.read([task_id]).values()))) == [task_id]
        running.await_log(f"[{task_id}] ended: its worker was declared dead")
        (tmp_path / "go").touch()
        after = sender.send(callback_waiting_for_file(tmp_path, "after"))
        assert sender.final_status(after) == "SUCCESS"
        assert sender.stored(task_id)["status"] == "STARTED"


def heartbeat_count(claims, leased):
    return claims.leases()[leased.lease.holder].heartbeat_count


@pytest.mark.one_version
@needs_callbacks_without_api_server
def test_worker_takes_over_from_a_dead_one_without_an_executor_that_watches(environment, tmp_path, rabbit, redis):
    """Airflow's own executor does not watch leases. RabbitMQ redelivers unacknowledged messages of a dead worker."""
    environment |= {"AIRFLOW__CELERY__BROKER_URL": rabbit.url, "AIRFLOW__OPERATORS__DEFAULT_QUEUE": "taken-over"}
    sender = Sender(rabbit.url, redis.url)
    with worker("-H", "first", folder=tmp_path, environment=environment) as first:
        task_id = sender.send(callback_waiting_for_file(tmp_path, "pid"), "taken-over")
        started_pid(tmp_path / "pid")
        with worker("-H", "second", folder=tmp_path, environment=environment) as second:
            (tmp_path / "pid").unlink()
            first.process.kill()
            until(lambda: (tmp_path / "pid").exists(), "the second start", TAKEOVER_TIMEOUT + START_TIMEOUT)
            assert f"[{task_id}] started: ExecuteCallback" in second.log
            (tmp_path / "go").touch()
            assert sender.final_status(task_id) == "SUCCESS"


@needs_callbacks_without_api_server
def test_unavailable_result_backend_ends_no_workload(environment, tmp_path, sender, redis):
    with closing(RedisServer()) as backend:
        environment["AIRFLOW__CELERY__RESULT_BACKEND"] = backend.url
        sender = Sender(redis.url, backend.url)
        with worker(folder=tmp_path, environment=environment) as running, open_claims(backend.url) as claims:
            task_id = sender.send(callback_waiting_for_file(tmp_path, "pid"))
            started_pid(tmp_path / "pid")
            await_lease(claims, runs(task_id))
            backend.kill()
            running.await_log("running tasks go on")
            late = sender.send(callback_waiting_for_file(tmp_path, "late"))
            end_of_silence = time.monotonic() + 2 * SILENCE_LIMIT
            until(lambda: time.monotonic() > end_of_silence, "a silence that is long enough")
            assert not (tmp_path / "late").exists()
            backend.start()
            started_pid(tmp_path / "late")
            (tmp_path / "go").touch()
            assert [sender.final_status(each) for each in (task_id, late)] == ["SUCCESS", "SUCCESS"]


# — the API server is unavailable —


@pytest.fixture
def unavailable(environment, server):
    environment["AIRFLOW__CELERIAC__API_SERVER_PATIENCE"] = "600"
    server.behaviour = Behaviour.UNAVAILABLE
    return server


def claims_of(redis):
    return claims_for(make_app(broker_url="memory://", result_backend=redis.url), timeout=2.0)


def test_workload_keeps_claim_and_lease_while_it_waits(environment, tmp_path, sender, redis, unavailable):
    with worker(folder=tmp_path, environment=environment) as running, closing(claims_of(redis)) as claims:
        task = sender.send(workload_factory.task("t"))
        until(lambda: len(unavailable.contents("/run")) >= 2, "the second attempt")
        holder = claims.read([task])[task].holder

        def running_tasks():
            lease = claims.leases()[holder].lease
            return () if lease is None else lease.running

        until(lambda: running_tasks() == (task,), "a renewal that names the task")
        record = claims.leases()[holder]
        until(lambda: claims.leases()[holder].heartbeat_count > record.heartbeat_count, "a renewal")
        unavailable.behaviour = Behaviour.START
        assert sender.final_status(task) == "SUCCESS"
        assert claims.read([task])[task].holder == holder
        assert len({content["pid"] for content in unavailable.contents("/run")}) == 1
    assert running.log.count("API server is unavailable") == 1
    assert running.log.count("API server is back") == 1


def test_patience_ends_as_lost_before_the_start(environment, tmp_path, sender, unavailable):
    """Celeriac's executor sends such a task again, in the same try: `test_executor` shows it."""
    environment["AIRFLOW__CELERIAC__API_SERVER_PATIENCE"] = "1"
    with worker(folder=tmp_path, environment=environment):
        task = sender.send(workload_factory.task("t"), argsrepr="(ExecuteTask,)")
        assert sender.final_status(task) == "FAILURE"
    report = sender.stored(task)["result"].report
    assert report["reason"] == "lost"
    assert report["detail"].startswith("it did not start: the API server was unavailable: HTTPStatusError: ")
    assert {path.rpartition("/")[2] for _, path, _ in unavailable.requests} == {"run"}


def test_message_of_a_task_that_has_moved_on_is_dropped_in_one_line(environment, tmp_path, sender, server):
    """Two schedulers may have sent it: `test_executor` shows that the executor then asks Airflow's database."""
    states = {Behaviour.ENDED: "success", Behaviour.CLEARED: "none"}
    with worker(folder=tmp_path, environment=environment) as running:
        for behaviour, state in states.items():
            server.behaviour = behaviour
            task = sender.send(workload_factory.task("t"))
            assert sender.final_status(task) == "FAILURE"
            report = sender.stored(task)["result"].report
            assert (report["reason"], report["detail"]) == ("lost", f"it did not start: Airflow has it as {state!r}")
            assert f"[{task}] dropped: Airflow has it as {state!r}" in running.log
    assert "Traceback" not in running.log


def test_message_of_another_executor_goes_back_when_the_patience_ends(environment, tmp_path, sender, unavailable):
    environment["AIRFLOW__CELERIAC__API_SERVER_PATIENCE"] = "1"
    with worker("-c", "1", folder=tmp_path, environment=environment) as running:
        task = sender.send(workload_factory.task("t"))
        until(lambda: len({content["pid"] for content in unavailable.contents("/run")}) >= 2, "another supervisor")
        assert sender.stored(task)["status"] not in READY_STATES
        unavailable.behaviour = Behaviour.START
        assert sender.final_status(task) == "SUCCESS"
    assert "handed back: the API server was unavailable: " in running.log


def test_shutdown_hands_a_waiting_workload_back(environment, tmp_path, sender, redis, unavailable):
    with worker(folder=tmp_path, environment=environment) as running, closing(claims_of(redis)) as claims:
        ours = sender.send(workload_factory.task("t"), argsrepr="(ExecuteTask,)")
        others = sender.send(workload_factory.task("t"))
        until(lambda: len({content["pid"] for content in unavailable.contents("/run")}) == 2, "two that wait")
        running.process.send_signal(signal.SIGTERM)
        assert running.wait() == 0
        assert sender.stored(ours)["result"].report["reason"] == "lost"
        assert sender.stored(others)["status"] == "RETRY"
        assert others not in claims.read([others])
    with Redis(port=redis.port) as client:
        assert (client.llen("default"), client.hlen("unacked")) == (1, 0)


def test_revoke_ends_a_waiting_workload(environment, tmp_path, sender, unavailable):
    with worker(folder=tmp_path, environment=environment):
        task = sender.send(workload_factory.task("t"))
        until(lambda: unavailable.contents("/run"), "an attempt")
        sender.app.control.revoke(task)
        assert sender.final_status(task) == "REVOKED"
