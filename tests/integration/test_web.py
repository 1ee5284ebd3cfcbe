"""`celeriac web`: a real server for a real ledger."""

from __future__ import annotations

import signal
import sqlite3
from contextlib import closing
from urllib.parse import quote

import httpx
import pytest

from tests.support.cli_runner import jobs, run, started, until
from tests.support.web_host import OPERATOR, READER, bearer, client_of, error_of, token_file, web_server


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a ledger, which has one run."""
    folder = tmp_path_factory.mktemp("web")
    file = jobs(folder, {"key": "a", "command": "echo said"}, {"key": "b", "command": "exit 3"})
    assert run("run", file, "--ledger", "ledger.db", "-q", cwd=folder).status == 1
    return folder


@pytest.fixture(scope="module")
def url(folder):
    with web_server(folder, "--ledger", "ledger.db") as (url, _):
        yield url


@pytest.fixture
def client(url):
    with client_of(url) as client:
        yield client


def test_it_shows_the_runs_of_the_ledger(client):
    (shown,) = client.get("/api/v1/runs").json()
    assert (shown["run"], shown["state"], shown["succeeded"], shown["failed"]) == ("jobs", "ended", 1, 1)


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_a_server_that_can_read_its_ledger_is_healthy(client, path):
    answer = client.get(path)
    assert (answer.status_code, answer.json()["status"]) == (200, "ok")


@pytest.mark.parametrize("path", ["/healthz", "/api/v1/runs", "/nothing"])
def test_every_answer_has_the_headers_of_security(client, path):
    headers = client.get(path).headers
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "same-origin"
    assert "server" not in headers


def test_a_foreign_host_gets_nothing(client):
    answer = client.get("/api/v1/runs", headers={"host": "evil.example"})
    assert (answer.status_code, "Host" in error_of(answer)) == (421, True)


def test_an_unknown_path_and_an_unknown_method_are_errors_in_json(client):
    assert client.get("/nothing").status_code == 404
    answer = client.delete("/api/v1/runs")
    assert (answer.status_code, set(answer.headers["allow"].split(", "))) == (405, {"GET", "HEAD"})


def test_a_ledger_that_cannot_be_read_any_more_is_a_problem(tmp_path):
    file = jobs(tmp_path, {"key": "a", "command": "true"})
    assert run("run", file, "--ledger", "ledger.db", "-q", cwd=tmp_path).status == 0
    with web_server(tmp_path, "--ledger", "ledger.db") as (url, _), client_of(url) as client:
        assert client.get("/healthz").status_code == 200
        with sqlite3.connect(tmp_path / "ledger.db") as database:
            database.execute("DROP TABLE celeriac_ledger")
            database.execute("DROP TABLE celeriac_run")
        database.close()
        answer = client.get("/api/v1/runs")
        assert (answer.status_code, "does not have the tables" in error_of(answer)) == (503, True)
        until(lambda: client.get("/healthz").status_code == 503, "the failure of the check")
        (check,) = client.get("/healthz").json()["checks"]
        assert "does not have the tables" in check["problem"]


# — tokens —


def test_beyond_loopback_nothing_but_the_health_answers_without_a_token(folder):
    options = ("--ledger", "ledger.db")
    with (
        web_server(folder, *options, listen="0.0.0.0:0", env={"CELERIAC_WEB_TOKEN_FILE": token_file(folder)}) as (
            url,
            _,
        ),
        client_of(url) as client,
    ):
        assert client.get("/healthz").status_code == 200
        for path in ("/", "/readyz", "/metrics", "/login", "/api/v1/runs", "/api/v1/openapi.json", "/static/x"):
            assert client.get(path).status_code == 401, path
            assert client.get(path, headers={"accept": "text/html"}).status_code == 401
            assert client.get(path, headers=bearer("wrong" * 4)).status_code == 401
        assert client.get("/api/v1/runs", headers=bearer(READER)).status_code == 200
        assert client.get("/api/v1/runs", headers=bearer(OPERATOR)).status_code == 200


def test_a_browser_logs_in_with_a_form(folder):
    options = ("--ledger", "ledger.db")
    with (
        web_server(folder, *options, env={"CELERIAC_WEB_TOKEN_FILE": token_file(folder)}) as (url, _),
        client_of(url, accept="text/html") as client,
    ):
        page = client.get("/")
        assert (page.status_code, '<form method="post" action="/login">' in page.text) == (401, True)
        assert client.post("/login", data={"token": "wrong" * 4}).status_code == 401
        foreign = client.post("/login", data={"token": READER}, headers={"origin": "http://evil.example"})
        assert foreign.status_code == 403
        answer = client.post("/login", data={"token": READER}, headers={"origin": url})
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert READER not in cookie
        assert client.get("/api/v1/runs").status_code == 200
        assert client.post("/logout", headers={"origin": url}).status_code == 303
        assert client.get("/api/v1/runs").status_code == 401


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--listen", "0.0.0.0:0", "--ledger", "ledger.db"), "can be reached from other machines without a token"),
        (("--listen", "nonsense", "--ledger", "ledger.db"), "is not an address"),
        (("--ledger", "missing.db"), "missing.db"),
    ],
)
def test_bad_input_is_one_line(folder, options, problem):
    ended = run("web", *options, cwd=folder)
    assert (ended.status, problem in ended.err, ended.err.count("\n")) == (2, True, 1)


def test_a_port_in_use_is_one_line(folder, url):
    ended = run("web", "--ledger", "ledger.db", "--listen", url.removeprefix("http://"), cwd=folder)
    assert (ended.status, "Address already in use" in ended.err, ended.err.count("\n")) == (2, True, 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it(folder, number):
    with web_server(folder, "--ledger", "ledger.db") as (url, celeriac):
        with httpx.stream("GET", f"{url}/live/runs", timeout=30) as viewer:
            lines = viewer.iter_lines()
            assert "event: page" in lines
            celeriac.signal(number)
            assert len(list(lines)) < 10  # it ends
        ended = celeriac.wait()
        assert (ended.status, ended.err) == (0, "")


# — REST —


def get(client, path, status=200, **query):
    answer = client.get(f"/api/v1{path}", params=query)
    assert answer.status_code == status, answer.text
    return answer.json()


def test_runs_are_listed_page_by_page(tmp_path):
    for name in ("one", "two", "three"):
        file = jobs(tmp_path, {"key": "a", "command": "true"}, name=f"{name}.jsonl")
        assert run("run", file, "--ledger", "ledger.db", "-q", cwd=tmp_path).status == 0
    with web_server(tmp_path, "--ledger", "ledger.db") as (url, _), client_of(url) as client:
        assert [each["run"] for each in get(client, "/runs")] == ["three", "two", "one"]
        assert [each["run"] for each in get(client, "/runs", limit=1, before="three")] == ["two"]
        assert "there is none" in get(client, "/runs", 404, before="four")["error"]
        assert get(client, "/runs/two")["succeeded"] == 1


def test_a_run_in_numbers(client):
    numbers = get(client, "/runs/jobs/statistics")
    assert numbers["states"] == {"success": 1, "failed": 1}
    assert numbers["failures"] == {"exit_code": 1}
    assert sum(each["succeeded"] for each in numbers["ends"]) == 1


def test_tasks_are_filtered_and_explained(client):
    assert [task["key"] for task in get(client, "/runs/jobs/tasks")["tasks"]] == ["a", "b"]
    assert [task["key"] for task in get(client, "/runs/jobs/tasks", state="failed")["tasks"]] == ["b"]
    assert [task["key"] for task in get(client, "/runs/jobs/tasks", state=["failed", "success"])["tasks"]] == ["a", "b"]
    assert get(client, "/runs/jobs/tasks/b")["exit_code"] == 3
    assert [event["state"] for event in get(client, "/runs/jobs/tasks/b/events")] == ["running", "failed"]
    (life,) = get(client, "/runs/jobs/tasks/b/explain")["lives"]
    assert life["now"]["words"] == "ended: failed: exit code 3"


def test_the_output_of_a_task_comes_as_text(client):
    answer = client.get("/api/v1/runs/jobs/tasks/a/output")
    assert (answer.text, answer.headers["content-type"]) == ("said\n", "text/plain; charset=utf-8")
    rest = client.get("/api/v1/runs/jobs/tasks/a/output", params={"offset": 2, "limit": 2})
    assert (rest.text, rest.headers["x-celeriac-next-offset"]) == ("id", "4")


@pytest.mark.parametrize(
    ("path", "status", "problem"),
    [
        ("/runs?limit=0", 422, "limit: expected int >= 1"),
        ("/runs?limit=1&limit=2", 422, "limit: it is given twice"),
        ("/runs?other=1", 422, "query: object contains unknown field other"),
        ("/runs/none", 404, "run 'none': there is none"),
        ("/runs/jobs/tasks/none", 404, "task 'none'"),
        ("/runs/jobs/tasks?state=x", 422, "invalid enum value 'x'"),
        ("/runs/jobs/tasks?after=x", 400, "after: 'x' is not a position of this list"),
        ("/runs/jobs/tasks/a/output?attempt=7", 404, "task 'a' has no attempt 7"),
        ("/changes", 422, "nothing is named"),
        ("/queues", 404, "this server has no broker"),
    ],
)
def test_a_wrong_question_gets_one_clear_line(client, path, status, problem):
    answer = client.get(f"/api/v1{path}")
    assert (answer.status_code, problem in error_of(answer)) == (status, True), answer.text


def test_names_may_hold_slashes_and_anything_else(tmp_path):
    key, name = "a/b <script>alert(1)</script> %2F ü", "x/y"
    file = jobs(tmp_path, {"key": key, "command": "echo '<script>'"})
    assert run("run", file, "--name", name, "--ledger", "ledger.db", "--output", "out", cwd=tmp_path).status == 0
    path = f"/runs/{quote(name, safe='')}/tasks/{quote(key, safe='')}"
    with web_server(tmp_path, "--ledger", "ledger.db") as (url, _), client_of(url) as client:
        answer = client.get(f"/api/v1{path}")
        assert (answer.json()["key"], answer.headers["content-type"]) == (key, "application/json")
        output = client.get(f"/api/v1{path}/output")
        assert (output.text, output.headers["content-type"]) == ("<script>\n", "text/plain; charset=utf-8")


def test_output_outside_of_the_folder_of_the_run_is_not_read(tmp_path):
    file = jobs(tmp_path, {"key": "a", "command": "echo said"})
    assert run("run", file, "--ledger", "ledger.db", "--output", "out", "-q", cwd=tmp_path).status == 0
    secret = tmp_path / "secret"
    secret.write_text("hidden")
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as database, database:
        (execution,) = database.execute("SELECT execution FROM celeriac_task").fetchone()
        changed = execution.replace(str(tmp_path / "out" / "a.out"), str(secret))
        assert changed != execution
        database.execute("UPDATE celeriac_task SET execution = ?", [changed])
    with web_server(tmp_path, "--ledger", "ledger.db") as (url, _), client_of(url) as client:
        answer = client.get("/api/v1/runs/jobs/tasks/a/output")
        assert "hidden" not in answer.text
        (tmp_path / "out" / "a.err").unlink()
        (tmp_path / "out" / "a.err").symlink_to(secret)
        assert "hidden" not in client.get("/api/v1/runs/jobs/tasks/a/output", params={"stream": "stderr"}).text


def test_changes_are_pushed(tmp_path):
    file = jobs(tmp_path, {"key": "a", "command": "while [ ! -e go ]; do sleep 0.05; done"})
    with started("run", file, "--ledger", "ledger.db", "-q", cwd=tmp_path) as running:
        until((tmp_path / "ledger.db").exists, "the ledger")
        until(lambda: "jobs" in run("runs", "--ledger", "ledger.db", cwd=tmp_path).out, "the run")
        with web_server(tmp_path, "--ledger", "ledger.db") as (url, _), client_of(url) as client:
            query = {"runs": "true", "run": "jobs"}
            with client.stream("GET", "/api/v1/changes", params=query) as stream:
                assert stream.headers["content-type"].startswith("text/event-stream")
                lines = stream.iter_lines()
                next(line for line in lines if line == "event: runs")
                (tmp_path / "go").touch()
                event = next(line for line in lines if '"state":"ended"' in line)
                assert '"succeeded":1' in event
        assert running.wait().status == 0
