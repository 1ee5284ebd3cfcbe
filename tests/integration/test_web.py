"""`celeriac web`: a real server for a real ledger."""

from __future__ import annotations

import signal
import sqlite3

import httpx
import pytest

from tests.support.cli_runner import jobs, run, until
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
    assert headers["referrer-policy"] == "no-referrer"
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
        assert httpx.get(f"{url}/healthz").status_code == 200
        celeriac.signal(number)
        assert celeriac.wait().status == 0
