"""The page within Airflow's API server, with its real login and permissions, in this process.

`test_end_to_end.py` opens it in a whole deployment.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from html import escape
from typing import Any

import pytest
from airflow.utils.session import create_session
from redis import Redis
from starlette.testclient import TestClient

from celeriac import __version__
from celeriac.airflow import CeleryExecutor
from celeriac.airflow.component_facts import unsealed
from celeriac.backend.claims import claims_for
from celeriac.backend.claims.claim import Lease
from celeriac.broker.app import make_app
from tests.airflow import stored
from tests.support.cli_runner import until
from tests.support.servers import RedisServer

HOSTILE = "<script>alert(1)</script>"
QUEUE = "page"  # the database has task instances of other tests


@pytest.fixture(scope="module")
def servers(database: None, shared_redis: RedisServer) -> Iterator[str]:
    """The URL of broker and result backend, both configured in Airflow."""
    with pytest.MonkeyPatch.context() as patch, closing(Redis(port=shared_redis.port)) as client:
        client.flushall()
        patch.setenv("AIRFLOW__CELERY__BROKER_URL", shared_redis.url)
        patch.setenv("AIRFLOW__CELERY__RESULT_BACKEND", shared_redis.url)
        patch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS", "ann:admin,victor:viewer")
        patch.setenv("AIRFLOW__API__BASE_URL", "http://testserver/")
        yield shared_redis.url


@pytest.fixture(scope="module")
def airflow(servers: str) -> Iterator[TestClient]:
    """Airflow's own application, without a login."""
    from airflow.api_fastapi.app import create_app

    with TestClient(create_app("core")) as client:
        yield client


@pytest.fixture(scope="module")
def login(airflow: TestClient) -> Any:
    """Return the headers of a user with a role; "" for none."""
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

    def headers(role: str) -> dict[str, str]:
        user = SimpleAuthManagerUser(username=f"user-{role}", role=role or None)
        return {"Cookie": f"_token={get_auth_manager().generate_jwt(user)}"}

    return headers


@pytest.fixture(scope="module")
def worker(servers: str) -> Iterator[Any]:
    """A function that renews the lease of a worker with a hostile name."""
    app = make_app(broker_url=servers, result_backend=servers)
    claims = claims_for(app, timeout=2.0)
    assert claims is not None
    with closing(claims):

        def renew(**fields: Any) -> Any:
            values = {"name": f"celery@{HOSTILE}", "host": "h", "pid": 1, "boot_id": "", "queues": (QUEUE,), "slots": 4}
            claims.renew(Lease(holder="holder", **{**values, **fields}))
            return claims

        yield renew


@pytest.fixture(scope="module")
def tasks(servers: str) -> list[tuple[str, Any]]:
    """The Celery id and the row of a queued, a running and a scheduled task."""
    ids = stored.store(["queued", "running", "scheduled"], queue=QUEUE)
    with create_session() as session:
        return list(zip(ids, [(ti.dag_id, ti.run_id, ti.task_id) for ti in stored.load(session, ids)], strict=True))


def address_of(name: tuple[str, str, str], index: str = "%7BMAP_INDEX%7D") -> str:
    return "/celeriac/task/{}/{}/{}/".format(*name) + index


def text_of(answer: Any) -> str:
    """Return the words of a page."""
    assert answer.status_code == 200, answer.text
    return " ".join(re.sub("<[^>]*>", " ", answer.text).split())


@pytest.mark.parametrize("path", ["/celeriac/", "/celeriac/task/d/r/t/-1"])
def test_no_page_without_login(airflow, path):
    answer = airflow.get(path)
    assert (answer.status_code, "Log in to Airflow" in answer.text) == (401, True)


def test_a_user_without_a_role_sees_no_page(airflow, login, tasks):
    for path in ("/celeriac/", address_of(tasks[0][1])):
        answer = airflow.get(path, headers=login(""))
        assert (answer.status_code, "does not permit" in answer.text) == (403, True)


@pytest.mark.parametrize("role", ["ADMIN", "VIEWER"])
def test_the_overview_shows_queues_workers_and_what_they_run(airflow, login, worker, tasks, role):
    worker(running=(tasks[1][0],))
    answer = airflow.get("/celeriac/", headers=login(role))
    words = text_of(answer)
    assert f"{QUEUE} 1 1" in words
    assert f"celery@{escape(HOSTILE)} live {QUEUE} 1 4" in words
    assert HOSTILE not in answer.text
    dag, run, task = tasks[1][1]
    assert f'href="/celeriac/task/{dag}/{run}/{task}/-1"' in answer.text
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_a_task_says_why_it_waits(airflow, login, worker, tasks):
    claims = worker()
    viewer = login("VIEWER")
    (queued_id, queued), (running_id, running), (_, scheduled) = tasks
    words = text_of(airflow.get(address_of(queued), headers=viewer))
    assert f"has left the queue &#39;{QUEUE}&#39;, and its worker" in words
    worker(held=(queued_id,))
    claims.claim(running_id, holder="holder", delivery="one")
    until(lambda: "when one of its processes is free" in text_of(airflow.get(address_of(queued), headers=viewer)), "it")
    words = text_of(airflow.get(address_of(running, "-1"), headers=viewer))
    assert "It runs, in worker celery@" in words
    assert HOSTILE not in words
    assert "the pool &#39;default_pool&#39; has" in text_of(airflow.get(address_of(scheduled), headers=viewer))


@pytest.mark.parametrize("role", ["ADMIN", "VIEWER"])
def test_a_run_shows_its_queued_and_running_tasks_and_what_the_scheduler_says(airflow, login, worker, role):
    worker()
    queued_id, running_id, _ = stored.store(["queued", "running", "success"], queue=QUEUE)
    with create_session() as session:
        queued, running = stored.load(session, [queued_id, running_id])
        dag, names = queued.dag_id, (queued.dag_id, queued.run_id, queued.task_id)
        executor = CeleryExecutor(parallelism=8)
        executor.start()
        executor.try_adopt_task_instances([queued, running])
        session.commit()
    ended = threading.Event()
    thread = threading.Thread(target=lambda: [executor.heartbeat() for _ in iter(lambda: ended.wait(0.1), True)])
    thread.start()
    try:
        path = f"/celeriac/run/{dag}/run"
        says = "The scheduler's executor says: queued: at the broker"
        until(lambda: says in airflow.get(path, headers=login(role)).text, "the executor's sentence")
        words = text_of(airflow.get(path, headers=login(role)))
        assert f"t0 2 queued {QUEUE} It is queued" in words
        assert f"t1 2 running {QUEUE} It runs" in words
        assert "t2" not in words
        of_task = "says: queued: at the broker"
        until(lambda: of_task in text_of(airflow.get(address_of(names), headers=login(role))), "the same of the task")
        saw = "What the executor saw"  # it has no events of the other scheduler, but of what it sends again
        until(lambda: saw in text_of(airflow.get(address_of(names), headers=login(role))), "the events")
    finally:
        ended.set()
        thread.join()
        executor.end()
    assert airflow.get(path, headers=login("")).status_code == 403
    assert airflow.get(path).status_code == 401
    assert "no such run" in airflow.get(f"/celeriac/run/{dag}/x", headers=login(role)).text


def test_an_unknown_task_and_an_unknown_page_are_not_found(airflow, login, tasks):
    dag, run, _ = tasks[0][1]
    for path in (address_of((dag, run, HOSTILE.replace("/", "%2F"))), "/celeriac/static/secret", "/celeriac/nothing"):
        answer = airflow.get(path, headers=login("ADMIN"))
        assert (answer.status_code, HOSTILE in answer.text) == (404, False)


def test_the_files_of_the_page_need_no_login(airflow):
    types = {airflow.get(f"/celeriac/static/{name}").headers["content-type"] for name in ("style.css", "live.js")}
    assert types == {"text/css; charset=utf-8", "text/javascript; charset=utf-8"}


def test_the_facts_for_the_doctor_are_sealed_and_need_no_login(airflow, servers):
    answer = airflow.get("/celeriac/facts")
    assert answer.status_code == 200
    assert "redis" not in answer.text
    found = unsealed(answer.content)
    assert found is not None
    (facts,) = found
    assert (facts.broker, facts.backend, facts.version) == (servers, servers, __version__)
    assert facts.host == socket.gethostname()


def test_nothing_can_be_changed(airflow, login):
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert airflow.request(method, "/celeriac/", headers=login("ADMIN")).status_code == 405


def test_airflow_lists_the_plugin(airflow, login):
    plugins = airflow.get("/api/v2/plugins", headers=login("ADMIN")).json()["plugins"]
    (ours,) = (each for each in plugins if each["name"] == "celeriac")
    places = {view["destination"]: view["href"] for view in ours["external_views"]}
    assert places == {
        "nav": "celeriac/",
        "dag_run": "celeriac/run/{DAG_ID}/{RUN_ID}",
        "task_instance": "celeriac/task/{DAG_ID}/{RUN_ID}/{TASK_ID}/{MAP_INDEX}",
    }
