"""`airflow celeriac doctor`: the same checks with Airflow's configuration, and those of its components."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import airflow as installed_airflow
import pytest

from celeriac.airflow.doctor import Components, api_server_problem, executor_problem, read_api_server, scheduler_problem
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


@pytest.fixture
def api_server():
    """A server that tells this version of Airflow, as the API server does."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/api/v2/version" else 404)
            self.end_headers()
            self.wfile.write(json.dumps({"version": installed_airflow.__version__}).encode())

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


def test_the_command(environment, tmp_path, redis, database, api_server):  # noqa: F811
    environment["AIRFLOW__API__BASE_URL"] = api_server
    with worker("-H", "first", folder=tmp_path, environment=environment):
        done = airflow("celeriac", "doctor", "--output", "json", environment=environment, status=1)
        output = json.loads(done.stdout)
        problems = {each["check"]: each["level"] for each in output["findings"] if each["level"] != "ok"}
        assert problems == {"scheduler": "error"}
        assert (output["errors"], output["warnings"]) == (1, 0)
        redis.configure(maxmemory="1gb", maxmemory_policy="allkeys-lru")
        environment["AIRFLOW__CELERIAC__SIGNING_KEY"] = "a key that the worker does not have"
        text = airflow("celeriac", "doctor", environment=environment, status=1).stdout
    lines = [line.split()[:2] for line in text.splitlines() if line.startswith(("  error", "  warning"))]
    assert lines == [["error", "scheduler"], ["error", "redis-eviction"], ["warning", "worker-keys"]]
    assert "Traceback" not in text
