"""Runs and jobs with tags: given, listed, and kept when a run is killed and goes on."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from typing import Any

import pytest

from celeriac import SqlLedger
from tests.support.cli_runner import jobs, run, run_in_process, started, until
from tests.support.web_host import client_of, web_server

LEDGER = ("--ledger", "ledger.db")


def listed(folder, *options):
    """Return the names of the runs that are listed."""
    ended = run_in_process("runs", *LEDGER, "--json", *options, cwd=folder)
    assert ended.status == 0, ended.err
    return [each["run"] for each in json.loads(ended.out)]


@pytest.fixture
def folder(tmp_path):
    """A folder whose ledger has three runs: two with tags, of which one is submitted."""
    file = jobs(tmp_path, {"key": "a", "command": "true", "tags": "big, gpu"}, {"key": "b", "command": "true"})
    assert run("run", file, *LEDGER, "-q", "--tags", "nightly,größe=2", "--tags", "big", cwd=tmp_path).status == 0
    assert run("submit", file, *LEDGER, "--tags", "nightly", cwd=tmp_path).status == 0
    assert run("run", file, *LEDGER, "-q", cwd=tmp_path).status == 0
    return tmp_path


def test_runs_are_listed_by_their_tags(folder):
    assert listed(folder) == ["jobs-3", "jobs-2", "jobs"]
    assert listed(folder, "--tag", "nightly") == ["jobs-2", "jobs"]
    assert listed(folder, "--tag", "nightly", "--limit", "1") == ["jobs-2"]
    assert listed(folder, "--tag", "nightly", "--tag", "größe=2") == ["jobs"]
    assert listed(folder, "--tag", "night") == []
    text = run_in_process("runs", *LEDGER, "--tag", "nightly", "--limit", "1", cwd=folder)
    assert "nightly" in text.out
    assert text.err == "and 1 more: --limit 2\n"
    (first,) = json.loads(run_in_process("runs", *LEDGER, "--tag", "big", "--json", cwd=folder).out)
    assert first["tags"] == ["nightly", "größe=2", "big"]
    assert "tags nightly, größe=2, big" in run_in_process("show", "jobs", *LEDGER, cwd=folder).out


def test_the_tags_of_jobs_are_shown(folder):
    shown = run_in_process("show", "jobs", *LEDGER, "--json", cwd=folder).out.splitlines()
    assert [json.loads(line)["tags"] for line in shown] == [["big", "gpu"], []]


def test_rest_gives_takes_and_filters_tags(folder):
    with web_server(folder, *LEDGER) as (url, _), client_of(url) as client:
        runs = client.get("/api/v1/runs", params={"tag": ["nightly", "big"]}).json()
        assert [(each["run"], each["tags"]) for each in runs] == [("jobs", ["nightly", "größe=2", "big"])]
        older = client.get("/api/v1/runs", params={"tag": "nightly", "before": "jobs-2"}).json()
        assert [each["run"] for each in older] == ["jobs"]
        token = client.get("/api/v1/session").json()["csrf"]
        assert "größe=2" in client.get("/run", params={"run": "jobs"}).text
        assert "jobs-2" not in client.get("/runs", params={"text": "GRÖSSE"}).text
        sent: dict[str, Any] = {
            "content": "true\n",
            "headers": {"content-type": "text/plain", "x-csrf-token": token or ""},
        }
        answer = client.post("/api/v1/runs", params={"tags": "web, nightly"}, **sent)
        assert answer.status_code == 201, answer.text
        bad = client.post("/api/v1/runs", params={"tags": "a,,b"}, **sent)
        assert (bad.status_code, bad.json()["error"][:26]) == (422, "tags: '' is not a tag; write"[:26])
    assert listed(folder, "--tag", "web") == ["web"]


def test_a_killed_run_goes_on_with_its_tags(tmp_path):
    (tmp_path / "jobs.txt").write_text("true\ntest -e go || exec sleep 60\n")
    with started("run", "jobs.txt", *LEDGER, "--tags", "nightly", "-j1", cwd=tmp_path) as celeriac:
        until(lambda: "sleep" in " ".join(celeriac.alive()), "the start of the second job")
        celeriac.kill()
    (tmp_path / "go").touch()
    assert listed(tmp_path, "--tag", "nightly") == ["jobs"]
    assert run("run", "jobs.txt", *LEDGER, "--resume", cwd=tmp_path).status == 0
    assert listed(tmp_path, "--tag", "nightly") == ["jobs"]
    assert run("run", "jobs.txt", *LEDGER, "--resume", "--tags", "other", cwd=tmp_path).status == 0
    assert (listed(tmp_path, "--tag", "nightly"), listed(tmp_path, "--tag", "other")) == ([], ["jobs"])


def test_a_run_keeps_its_tags_when_it_is_retried(tmp_path):
    (tmp_path / "jobs.txt").write_text("test -e go\n")
    assert run("run", "jobs.txt", *LEDGER, "--tags", "nightly", "-q", cwd=tmp_path).status == 1
    (tmp_path / "go").touch()
    assert run("retry", *LEDGER, "-q", cwd=tmp_path).status == 0
    assert listed(tmp_path, "--tag", "nightly") == ["jobs"]


@pytest.mark.parametrize("tags", ["", "a,,b", "a\nb", "x" * 101])
@pytest.mark.parametrize("command", ["run", "submit"])
def test_bad_tags_are_refused_before_anything_runs(tmp_path, command, tags):
    (tmp_path / "jobs.txt").write_text("touch ran\n")
    ended = run_in_process(command, "jobs.txt", *LEDGER, "--tags", tags, cwd=tmp_path)
    assert ended.status == 2
    assert ended.err.startswith("celeriac: --tags: ")
    assert len(ended.err.splitlines()) == 1
    assert not (tmp_path / "ledger.db").exists()


def test_a_dry_run_shows_tags(tmp_path):
    file = jobs(tmp_path, {"command": "true", "tags": ["big"]})
    ended = run_in_process("run", file, "--dry-run", "--tags", "nightly", cwd=tmp_path)
    assert ended.out.endswith("true  (tags big)\n")
    assert ended.err == "the run would be tagged nightly\n"


def test_a_ledger_without_a_place_for_tags_lists_none(folder):
    with closing(sqlite3.connect(folder / "ledger.db")) as opened:
        opened.execute("DROP TABLE celeriac_input")
        opened.commit()
    (folder / "ledger.db").chmod(0o400)
    assert listed(folder, "--tag", "nightly") == []
    assert len(listed(folder)) == 3


def test_a_python_program_tags_its_runs(tmp_path):
    with SqlLedger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        ledger.open_run("etl", tags=["nightly"])
    assert listed(tmp_path, "--tag", "nightly") == ["etl"]
