"""Changes over REST: submit, cancel, retry, priority and drain; a client without the right makes none."""

from __future__ import annotations

import json
from contextlib import contextmanager

import pytest
from starlette.routing import Route

from celeriac.web.access import AccessRules
from celeriac.web.address import Address
from celeriac.web.api.routes import all_endpoints
from celeriac.web.app import routes_of
from celeriac.web.poller import Poller
from celeriac.web.site import Site
from tests.support.cli_runner import jobs, run, run_in_process, started, until
from tests.support.service_host import job, running_service, starts, wait_until_ended
from tests.support.web_host import OPERATOR, READER, bearer, client_of, error_of, token_file, web_server
from tests.support.workers import worker

LEDGER = ("--ledger", "ledger.db")


@pytest.fixture
def file_ledger(tmp_path) -> str:
    return f"sqlite:///{tmp_path}/ledger.db"


@pytest.fixture
def site(tmp_path, file_ledger):
    """A service, and a client of its page. The ledger has one run, `first`, which waits for the file `go`."""
    with (
        running_service(tmp_path, "one", file_ledger),
        web_server(tmp_path, *LEDGER) as (url, _),
        client_of(url) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def waiting(tmp_path_factory):
    """A client of a ledger that no service serves."""
    folder = tmp_path_factory.mktemp("waiting")
    assert run("submit", jobs(folder, {"key": "a", "command": "true"}), *LEDGER, cwd=folder).status == 0
    with web_server(folder, *LEDGER) as (url, _), client_of(url) as client:
        yield client


def submit(client, *lines, name="first", **query):
    content = "".join(json.dumps(line) + "\n" for line in lines)
    headers = {"content-type": "application/x-ndjson"}
    return client.post("/api/v1/runs", params={"name": name, **query}, content=content, headers=headers)


def state_of(client, key, run="first"):
    return client.get(f"/api/v1/runs/{run}/tasks/{key}").json()["state"]


def test_jobs_with_an_input_a_scratch_folder_and_artifacts_are_submitted(waiting):
    secret = {"key": "s", "command": "cat", "stdin": {"secret": "hunter22"}}
    file_job = {"key": "f", "command": "cat", "stdin_file": "in.txt", "artifacts": ["x*"]}
    answer = submit(waiting, secret, file_job, name="in", scratch="true")
    assert (answer.status_code, answer.json()) == (201, {"run": "in", "tasks": 2})
    text, file = (waiting.get(f"/api/v1/runs/in/tasks/{key}").json() for key in "sf")
    assert (text["stdin"], text["scratch"], file["stdin_file"]) == ("******", True, "in.txt")
    assert ("artifacts" in text, file["artifacts"]) == (False, ["x*"])
    refused = submit(waiting, {"command": "cat", "stdin": 5}, name="bad")
    assert (refused.status_code, "stdin: 5 is not a text" in error_of(refused)) == (422, True)


def test_jobs_with_resources_are_submitted(waiting):
    needs = {"command": "true", "cpus": 1.5, "memory": "2G", "gpus": 1}
    assert submit(waiting, {"key": "a", **needs}, name="needs").status_code == 201
    task = waiting.get("/api/v1/runs/needs/tasks/a").json()
    assert (task["cpus"], task["memory"], task["gpus"]) == (1.5, 2**31, 1)
    refused = submit(waiting, {"command": "true", "memory": "2 pages"}, name="bad")
    assert (refused.status_code, "memory: " in error_of(refused)) == (422, True)


def test_a_submitted_run_is_served_cancelled_and_retried(site, tmp_path, file_ledger):
    answer = submit(site, job("a"), job("b", "true", needs=["a"]), retries=1)
    assert (answer.status_code, answer.json()) == (201, {"run": "first", "tasks": 2})
    until(lambda: starts(tmp_path), "the start of the task")
    taken = submit(site, job("a"))
    assert (taken.status_code, "already a run 'first'" in error_of(taken)) == (409, True)
    busy = site.post("/api/v1/runs/first/retry", json={})
    assert (busy.status_code, "is running in process" in error_of(busy)) == (409, True)
    cancelled = site.post("/api/v1/runs/first/tasks/cancel", json={"keys": ["a", "none"], "wait": 30})
    outcomes = {each["name"]: each["outcome"] for each in cancelled.json()["tasks"]}
    assert outcomes == {"a": "revoked", "none": "unknown"}
    wait_until_ended(file_ledger, "first")
    ended = site.post("/api/v1/runs/first/tasks/cancel", json={"keys": ["a"]}).json()["tasks"]
    assert [each["outcome"] for each in ended] == ["had_ended"]
    (tmp_path / "go").touch()
    assert site.post("/api/v1/runs/first/retry", json={}).json() == {"run": "first", "tasks": 2}
    wait_until_ended(file_ledger, "first")
    until(lambda: state_of(site, "b") == "success", "the success of both tasks")
    events = site.get("/api/v1/runs/first/tasks/a/events").json()
    assert [event["state"] for event in events][-1] == "success"
    assert "revoked" in [event["state"] for event in events]


def test_a_run_that_is_submitted_in_a_trace_continues_it(site, file_ledger):
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    shows = {"command": 'echo "$TRACEPARENT $TRACESTATE"'}
    content = json.dumps([{"key": "in", **shows}, {"key": "own", **shows, "env": {"TRACEPARENT": "mine"}}])
    for name, given in (("traced", parent), ("untraced", "00-nonsense")):
        headers = {"content-type": "application/json", "traceparent": given, "tracestate": "vendor=x"}
        answer = site.post("/api/v1/runs", params={"name": name}, content=content, headers=headers)
        assert answer.status_code == 201, answer.text
        wait_until_ended(file_ledger, name)
    outputs = [
        site.get(f"/api/v1/runs/{name}/tasks/{key}/output").text
        for name, key in (("traced", "in"), ("traced", "own"), ("untraced", "in"))
    ]
    assert outputs == [f"{parent} vendor=x\n", "mine \n", " \n"]


def test_a_whole_run_is_cancelled(site, tmp_path, file_ledger):
    submit(site, job("a"), *(job(f"w{n}", "true", needs=["a"]) for n in range(20)))
    until(lambda: starts(tmp_path), "the start of the task")
    answer = site.post("/api/v1/runs/first/cancel").json()
    assert answer["run"] == "first"
    assert answer["revoked"] + answer["left"] >= 20
    wait_until_ended(file_ledger, "first")


def test_without_a_service_priorities_change_and_waiting_tasks_are_revoked(tmp_path):
    file = jobs(tmp_path, {"key": "a/1", "command": "true"}, {"key": "b", "command": "true"})
    assert run("submit", file, *LEDGER, cwd=tmp_path).status == 0
    with web_server(tmp_path, *LEDGER) as (url, _), client_of(url) as client:
        path = "/api/v1/runs/jobs/tasks"
        assert client.put(f"{path}/a%2F1/priority", json={"priority": 7}).json()["priority"] == 7
        assert client.get(f"{path}/a%2F1").json()["priority"] == 7
        assert client.put(f"{path}/a%2F1/priority", json={"priority": -1}).json()["priority"] == -1
        changes = [(event["priority"], event["detail"]) for event in client.get(f"{path}/a%2F1/events").json()]
        assert changes == [
            (7, "priority changed from 0 to 7, asked by REST (operator)"),
            (-1, "priority changed from 7 to -1, asked by REST (operator)"),
        ]
        assert client.get(f"{path}/a%2F1/output").status_code == 404  # a change of a priority is no attempt
        assert [task["key"] for task in client.get(path, params={"state": "waiting"}).json()["tasks"]] == ["b", "a/1"]
        revoked = client.post(f"{path}/cancel", json={"keys": ["b"]}).json()["tasks"]
        assert [each["outcome"] for each in revoked] == ["revoked"]
        late = client.put(f"{path}/b/priority", json={"priority": 7})
        assert (late.status_code, "does not wait" in error_of(late)) == (409, True)


def test_the_owner_of_a_run_changes_a_priority(tmp_path, file_ledger):
    with (
        running_service(tmp_path, "one", file_ledger, "-j", "1"),
        web_server(tmp_path, *LEDGER) as (url, _),
        client_of(url) as client,
    ):
        submit(client, job("a"), job("b", "true"), job("c", "true"))
        until(lambda: starts(tmp_path), "the start of the first task")
        path = "/api/v1/runs/first/tasks"
        assert client.put(f"{path}/c/priority", json={"priority": 9}).json()["priority"] == 9
        assert client.put(f"{path}/a/priority", json={"priority": 9}).status_code == 409
        until(lambda: client.get(f"{path}/c").json()["priority"] == 9, "the record of the change")
        (tmp_path / "go").touch()
        wait_until_ended(file_ledger, "first")
        events = client.get(f"{path}/c/events").json()
        assert [event["state"] for event in events] == ["waiting", "running", "success"]
        assert events[0]["detail"] == "priority changed from 0 to 9, asked by REST (operator)"
    assert [key for key, _ in starts(tmp_path)] == ["a", "c", "b"]


@contextmanager
def running_file(folder, *options):
    """A `celeriac run` with one slot: `long` runs until there is a file `go`, and two tasks wait."""
    long = {"key": "long", "command": "until test -e go; do sleep 0.05; done"}
    file = jobs(folder, long, {"key": "b", "command": "true"}, {"key": "c", "command": "echo c"})
    with started("run", file, *LEDGER, "--name", "live", "-j", "1", *options, cwd=folder) as celeriac:
        shown = ("show", "live", *LEDGER, "--json", "--state", "running")
        until(lambda: "long" in run_in_process(*shown, cwd=folder).out, "the start of the first task")
        with web_server(folder, *LEDGER) as (url, _), client_of(url) as client:
            yield celeriac, client, "/api/v1/runs/live/tasks"


def test_a_live_run_takes_changes_from_its_owner(tmp_path):
    with running_file(tmp_path, "--events", "events.jsonl") as (celeriac, client, path):
        assert client.put(f"{path}/c/priority", json={"priority": 9}).json()["priority"] == 9
        late = client.put(f"{path}/long/priority", json={"priority": 9})
        assert (late.status_code, "does not wait" in error_of(late)) == (409, True)
        (result,) = client.post(f"{path}/cancel", json={"keys": ["b"], "wait": 10}).json()["tasks"]
        assert (result["outcome"], result["state"], celeriac.process.pid) == (
            "revoked",
            "revoked",
            int(result["executor"].split()[1]),
        )
        (tmp_path / "go").touch()
        assert celeriac.wait().status == 1
        assert [state_of(client, key, "live") for key in ("long", "b", "c")] == ["success", "revoked", "success"]
        events = client.get(f"{path}/c/events").json()
        assert [event["state"] for event in events] == ["waiting", "running", "success"]
        assert events[0]["detail"] == "priority changed from 0 to 9, asked by REST (operator)"
        assert client.get(f"{path}/c/output").text == "c\n"
    told = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [event["priority"] for event in told if event["key"] == "c" and "priority" in event] == [9]


def test_a_live_run_is_cancelled_by_its_owner(tmp_path):
    with running_file(tmp_path) as (celeriac, client, path):
        answer = client.post("/api/v1/runs/live/cancel").json()
        assert (answer["run"], answer["revoked"] + answer["left"]) == ("live", 3)
        ended = celeriac.wait()
        assert (ended.status, "run 'live' is cancelled, asked by REST (operator)" in ended.err) == (1, True)
        assert {state_of(client, key, "live") for key in ("long", "b", "c")} == {"revoked"}
        assert client.get("/api/v1/runs/live").json()["state"] == "ended"
        assert "asked by REST (operator)" in client.get(f"{path}/b").json()["detail"]


def test_a_run_that_was_not_submitted_is_not_retried(tmp_path):
    file = jobs(tmp_path, {"key": "a", "command": "false"})
    assert run("run", file, *LEDGER, "-q", cwd=tmp_path).status == 1
    with web_server(tmp_path, *LEDGER) as (url, _), client_of(url) as client:
        answer = client.post("/api/v1/runs/jobs/retry", json={})
        assert (answer.status_code, error_of(answer)) == (
            409,
            "run 'jobs': was not submitted, so no service takes it; run celeriac retry jobs",
        )


@pytest.mark.parametrize(
    ("content", "media_type", "status", "problem"),
    [
        ('{"key": "a", "comand": "x"}', "application/x-ndjson", 422, "body:1: comand: it is not a field of a job; did"),
        ("", "text/plain", 422, "body: it contains no command"),
        ("key,command\na,true", "text/csv", 201, None),
        ('[{"command": "true"}]', "application/json", 201, None),
        ("true\nfalse\n", "text/plain", 201, None),
        ("x", "application/octet-stream", 415, "is not known here; send"),
    ],
)
def test_a_job_file_is_checked_as_by_the_command_line(waiting, content, media_type, status, problem):
    answer = waiting.post("/api/v1/runs", content=content, headers={"content-type": media_type})
    assert answer.status_code == status, answer.text
    assert problem is None or problem in error_of(answer)


@pytest.mark.parametrize(
    ("query", "status", "result"),
    [
        ({"template": "echo {a} {#}", "key": "{b}"}, 201, [("x", "echo '1 2' 1"), ("y", "echo '' 2")]),
        ({"template": "echo {c}"}, 422, "body:1: template: {c} names no value; there are {a}, {b}"),
        ({"template": "echo"}, 422, "--template: 'echo' has no placeholder"),
        ({"key": "{b}"}, 422, "key: it needs a template"),
    ],
)
def test_jobs_are_made_by_a_template(waiting, query, status, result):
    params = {"name": "templates", **query} if status == 201 else query
    answer = waiting.post(
        "/api/v1/runs", params=params, content="a,b\n1 2,x\n,y\n", headers={"content-type": "text/csv"}
    )
    assert answer.status_code == status, answer.text
    if status == 201:
        tasks = waiting.get("/api/v1/runs/templates/tasks").json()
        assert sorted((task["key"], task["command"]) for task in tasks["tasks"]) == result
    else:
        assert result in error_of(answer)


def test_a_worker_is_paused_resumed_and_drained(redis, tmp_path):
    with (
        worker(tmp_path, (redis.url, redis.url)),
        web_server(tmp_path, "--broker", redis.url) as (url, _),
        client_of(url) as client,
    ):
        until(lambda: client.get("/api/v1/workers").json(), "the lease of the worker")
        (shown,) = client.get("/api/v1/workers").json()
        path = f"/api/v1/workers/{shown['name']}"
        for action in ("drain", "pause", "resume"):
            unknown = client.post(f"/api/v1/workers/none/{action}")
            assert (unknown.status_code, f"those with one: {shown['name']}" in error_of(unknown)) == (404, True)
        for action, is_changed in (("pause", True), ("pause", False), ("resume", True), ("resume", False)):
            (changed,) = client.post(f"{path}/{action}").json()["workers"]
            assert (changed["changed"], changed["paused"]) == (is_changed, action == "pause")
        client.post(f"{path}/pause")
        until(lambda: client.get("/api/v1/workers").json()[0]["paused_by"] == "REST (operator)", "the new lease")
        drained = client.post(f"/api/v1/workers/{shown['name']}/drain").json()
        assert [each["worker"] for each in drained["workers"]] == [shown["name"]]
        until(lambda: client.get("/api/v1/workers").json() == [], "its end")


def test_a_live_run_on_a_broker_is_cancelled_by_its_owner(redis, tmp_path):
    options = ("--broker", redis.url)
    with worker(tmp_path, (redis.url, redis.url)), running_file(tmp_path, *options) as (celeriac, client, path):
        refused = client.post("/api/v1/runs/live/cancel")  # this server has no broker
        assert (refused.status_code, "cannot be asked from here" in error_of(refused)) == (409, True)
        with web_server(tmp_path, *LEDGER, *options) as (url, _), client_of(url) as other:
            assert other.put(f"{path}/c/priority", json={"priority": 9}).json()["priority"] == 9
            answer = other.post("/api/v1/runs/live/cancel").json()
            assert answer["revoked"] + answer["left"] == 3
            assert celeriac.wait().status == 1
            assert {state_of(other, key, "live") for key in ("long", "b", "c")} == {"revoked"}


# — rights —


def every_route() -> list[tuple[str, str]]:
    """Return each method and path of the server, with names filled in."""
    site = Site(rules=AccessRules(Address("127.0.0.1", 0), None))
    filled = {"{run}": "jobs", "{key}": "a", "{worker}": "w1", "{name:path}": "page.css"}
    found = []
    for route in routes_of(site, Poller()):
        assert isinstance(route, Route)
        path = route.path
        for name, value in filled.items():
            path = path.replace(name, value)
        found += [(method, path) for method in sorted(route.methods or ()) if method != "HEAD"]
    return found


def test_every_endpoint_has_a_route_and_those_that_change_something_do_not_use_get():
    paths = {path for _, path in every_route()}
    assert len(paths) >= 18
    assert {method for method, _ in every_route()} == {"GET", "POST", "PUT"}
    changing = {endpoint.name for endpoint in all_endpoints(Poller()) if endpoint.method != "GET"}
    of_workers = {"drain", "pause_worker", "resume_worker"}
    of_runs = {"submit", "cancel_run", "cancel", "retry", "priority", "pause", "resume", "limits"}
    assert changing == of_runs | of_workers


def test_a_token_that_only_reads_changes_nothing(tmp_path):
    file = jobs(tmp_path, {"key": "a", "command": "true"})
    assert run("submit", file, *LEDGER, cwd=tmp_path).status == 0
    before = run("show", "jobs", *LEDGER, "--json", cwd=tmp_path).out
    env = {"CELERIAC_WEB_TOKEN_FILE": token_file(tmp_path)}
    with web_server(tmp_path, *LEDGER, listen="0.0.0.0:0", env=env) as (url, _), client_of(url) as client:
        for method, path in every_route():
            nothing = client.request(method, path)
            assert nothing.status_code == (200 if path == "/healthz" else 401), path
            if method != "GET":
                assert client.request(method, path, headers=bearer(READER), json={}).status_code == 403, path
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            assert client.request(method, "/anything", headers=bearer(READER)).status_code == 403
        login = client.post("/login", data={"token": READER}, headers={"origin": url})
        assert login.status_code == 303
        for method, path in every_route():
            if method != "GET":
                assert client.request(method, path, json={}, headers={"origin": url}).status_code == 403, path
    assert run("show", "jobs", *LEDGER, "--json", cwd=tmp_path).out == before


def test_a_browser_of_an_operator_needs_its_csrf_token(tmp_path):
    file = jobs(tmp_path, {"key": "a", "command": "true"})
    assert run("submit", file, *LEDGER, cwd=tmp_path).status == 0
    env = {"CELERIAC_WEB_TOKEN_FILE": token_file(tmp_path)}
    with web_server(tmp_path, *LEDGER, env=env) as (url, _), client_of(url) as client:
        assert client.post("/login", data={"token": OPERATOR}, headers={"origin": url}).status_code == 303
        cancel = "/api/v1/runs/jobs/cancel"
        assert client.post(cancel, headers={"origin": url}).status_code == 403
        assert client.post(cancel, headers={"origin": "http://evil.example"}).status_code == 403
        session = client.get("/api/v1/session").json()
        assert session["role"] == "operator"
        foreign = {"origin": "http://evil.example", "x-csrf-token": session["csrf"]}
        assert client.post(cancel, headers=foreign).status_code == 403
        own = {"origin": url, "x-csrf-token": session["csrf"]}
        assert client.post(cancel, headers=own).json()["revoked"] == 1


def test_a_run_is_paused_and_resumed(site, tmp_path, file_ledger):
    submit(site, job("a"), job("b", "true", needs=["a"]))
    until(lambda: starts(tmp_path), "the start of the task")
    paused = site.post("/api/v1/runs/first/pause", json={})
    (executor,) = paused.json()["executors"]
    assert (paused.status_code, executor["changed"], executor["paused"]) == (200, True, True)
    assert site.get("/api/v1/runs/first").json()["paused"].startswith("paused by ")
    (executor,) = site.post("/api/v1/runs/first/pause", json={"queues": ["gpu"]}).json()["executors"]
    assert executor["queues"] == ["gpu"]
    limits = site.put("/api/v1/runs/first/limits", json={"parallelism": 3})
    assert (limits.status_code, "its limits are those of celeriac serve" in error_of(limits)) == (409, True)
    assert site.put("/api/v1/runs/first/limits", json={"parallelism": 0}).status_code == 422
    assert site.post("/api/v1/runs/none/pause", json={}).status_code == 404
    (executor,) = site.post("/api/v1/runs/first/resume", json={}).json()["executors"]
    assert (executor["paused"], executor["queues"]) == (False, ["gpu"])
    (tmp_path / "go").touch()
    wait_until_ended(file_ledger, "first")
    assert site.post("/api/v1/runs/first/pause", json={}).status_code == 409
