"""`airflow celeriac doctor`: the same checks with Airflow's configuration, and those of its components."""

from __future__ import annotations

import json
import random
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, HTTPServer

import airflow as installed_airflow
import msgspec
import pytest
from airflow.models.log import Log
from airflow.utils.session import create_session
from sqlalchemy import select

from celeriac.airflow import CeleryExecutor
from celeriac.airflow.agreement import (
    Agreement,
    SeenWorkers,
    api_server_differences,
    differences,
    scheduler_differences,
    silent_workers,
    unknown_workers,
)
from celeriac.airflow.component_facts import EVENT, Facts, own_facts, record_start, recorded_facts, sealed, unsealed
from celeriac.airflow.doctor import (
    FACTS_ADDRESS,
    SAME_SETTINGS,
    Components,
    agreeing_api_servers,
    api_server_problem,
    executor_problem,
    read_api_facts,
    read_api_server,
    scheduler_problem,
)
from celeriac.backend.claims.claim import Lease
from celeriac.doctor.check import Level
from tests.airflow.test_worker import airflow, environment, server, worker  # noqa: F401 - fixtures


def found(problems):
    return [problem.level for problem in problems]


def test_decisions():
    sound = Components(executors="CeleryExecutor:celeriac.airflow.CeleryExecutor", schedulers=("h",), api_version="3")
    sound.version = "3"
    for problem in (executor_problem, scheduler_problem, api_server_problem):
        assert found(problem(sound)) == []
    wrong = Components(executors="LocalExecutor", api_version="2", version="3")
    assert found(executor_problem(wrong)) == found(scheduler_problem(wrong)) == [Level.ERROR]
    assert found(api_server_problem(wrong)) == [Level.WARNING]
    wrong.database_error = wrong.api_error = "refused"
    assert found(scheduler_problem(wrong)) == [Level.WARNING]
    assert found(api_server_problem(wrong)) == [Level.ERROR]


HERE = Facts(version="1", broker="redis://b/0", backend="redis://r/0", keys=("ab",))


def test_differences_are_named_one_by_one():
    changes = {"version": "0", "broker": "redis://other/0", "backend": "redis://other/1", "keys": ()}
    for name, value in changes.items():
        theirs = msgspec.structs.replace(HERE, **{name: value})
        (problem,) = differences("scheduler h", theirs, HERE)
        assert problem.text.startswith("scheduler h has ")
        assert problem.level is (Level.ERROR if name == "keys" else Level.WARNING)
    assert [*differences("h", HERE, HERE)] == []
    another = msgspec.structs.replace(HERE, keys=("cd",))
    assert "another signing key" in next(differences("h", another, HERE)).text


def test_a_process_that_publishes_nothing_is_unknown():
    agreement = Agreement(here=HERE, schedulers={"a": HERE, "b": None}, api_problems=["it does not answer"])
    assert [("unknown" in each.text, each.level) for each in scheduler_differences(agreement)] == [
        (True, Level.WARNING)
    ]
    assert [each.level for each in api_server_differences(agreement)] == [Level.WARNING]
    lease = Lease(holder="h", name="celery@a", host="h", pid=1, boot_id="", queues=("q",), slots=1)
    seen = SeenWorkers(leases=[lease], replies={"celery@a"})
    assert [*unknown_workers(seen), *silent_workers(seen)] == []
    apart = SeenWorkers(leases=[lease], replies={"celery@b"})
    assert [len([*look(apart)]) for look in (unknown_workers, silent_workers)] == [1, 1]
    assert [*silent_workers(SeenWorkers(leases=[lease], replies=(), can_reply=False))] == []


def test_a_scheduler_records_what_it_uses(database, redis, monkeypatch):
    monkeypatch.setenv("AIRFLOW__CELERY__BROKER_URL", f"redis://:hush@127.0.0.1:{redis.port}/0")
    monkeypatch.setenv("AIRFLOW__CELERY__RESULT_BACKEND", redis.url)
    monkeypatch.setenv("AIRFLOW__CELERIAC__SIGNING_KEY", "hush: this is a key")
    executor = CeleryExecutor(parallelism=1)
    executor.job_id = job = random.randrange(10**6, 10**9)
    record_start(executor)
    with create_session() as session:
        facts = recorded_facts(session, [job], None)[job]
        assert recorded_facts(session, [job], "blue") == {}
        assert "hush" not in "".join(session.scalars(select(Log.extra).where(Log.event == EVENT)))
    assert facts == own_facts(executor.conf, job=job)
    assert facts.keys
    assert facts.broker == f"redis://:******@127.0.0.1:{redis.port}/0"


def test_facts_of_the_api_server_are_sealed(monkeypatch):
    content = sealed([HERE])
    assert content is not None
    assert b"redis" not in content
    assert unsealed(content) == [HERE]
    assert unsealed(b"nothing") is None
    monkeypatch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", "another secret, as long as the first one")
    assert unsealed(content) is None


@pytest.fixture
def answers():
    """The facts in the answers of the API servers behind one address, in turn; none without Celeriac."""
    return deque()


@pytest.fixture
def api_server(answers):
    """A server that tells this version of Airflow, as the API server does."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            content = json.dumps({"version": installed_airflow.__version__}).encode()
            if self.path == FACTS_ADDRESS and answers:
                content = (answers[0] and sealed([answers[0]])) or b"sealed with another secret"
                answers.rotate(-1)
            is_known = self.path == "/api/v2/version" or answers
            self.send_response(200 if is_known else 404)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def test_the_api_server_tells_its_version(api_server):
    facts = Components(executors="", api_url=api_server)
    read_api_server(facts)
    assert (facts.api_version, facts.api_error) == (installed_airflow.__version__, None)
    closed = Components(executors="", api_url="http://127.0.0.1:1")
    read_api_server(closed)
    assert closed.api_version is None
    assert "refused" in str(closed.api_error)


def test_each_api_server_that_answers_is_compared_and_named(api_server, answers):
    def compare(*told):
        answers.clear()
        answers.extend(told)
        agreement = Agreement(here=HERE)
        facts = Components(executors="", api_url=api_server, agreement=agreement)
        read_api_facts(facts)
        return agreeing_api_servers(facts), [problem.text for problem in api_server_differences(agreement)]

    one, two = (msgspec.structs.replace(HERE, host=host) for host in ("one", "two"))
    older = msgspec.structs.replace(two, version="0")
    assert compare(one) == (f"the API server on one has {SAME_SETTINGS}", [])
    assert compare(HERE) == (f"the API server has {SAME_SETTINGS}", [])  # an older version does not tell its host
    assert compare(one, two) == (f"the API server on one, the API server on two have {SAME_SETTINGS}", [])
    assert compare(one, older)[1] == ["the API server on two has Celeriac 0, and here is 1"]
    (problem,) = compare(one, None)[1]
    assert problem.startswith("what an API server uses is unknown: its [api_auth] jwt_secret is another one")
    (problem,) = compare()[1]
    assert problem.startswith("what the API server uses is unknown: its page of Celeriac does not answer")


@pytest.mark.one_version
def test_the_command(environment, tmp_path, redis, database, api_server):  # noqa: F811
    environment["AIRFLOW__API__BASE_URL"] = api_server
    with worker("-H", "first", folder=tmp_path, environment=environment):
        done = airflow("celeriac", "doctor", "--output", "json", environment=environment, status=1)
        output = json.loads(done.stdout)
        problems = {each["check"]: each["level"] for each in output["findings"] if each["level"] != "ok"}
        assert problems == {"scheduler": "error", "api-server-agrees": "warning"}
        assert (output["errors"], output["warnings"]) == (1, 1)
        redis.configure(maxmemory="1gb", maxmemory_policy="allkeys-lru")
        environment["AIRFLOW__CELERIAC__SIGNING_KEY"] = "a key that the worker does not have"
        text = airflow("celeriac", "doctor", environment=environment, status=1).stdout
    lines = [line.split()[:2] for line in text.splitlines() if line.startswith(("  error", "  warning"))]
    assert lines == [
        ["error", "scheduler"],
        ["warning", "api-server-agrees"],
        ["error", "redis-eviction"],
        ["warning", "worker-keys"],
    ]
    assert "Traceback" not in text
