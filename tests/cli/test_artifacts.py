"""Jobs with artifacts: files that are copied beside the output of each attempt, here and on workers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.cli_runner import jobs, run, run_in_process, started, until
from tests.support.long import slow
from tests.support.workers import worker

LEDGER = ("--ledger", "ledger.db")
WRITES = "mkdir -p deep; echo $CELERIAC_ATTEMPT > a.csv; echo x > deep/b; ln -sf /etc/passwd link; "
PATTERNS = ["*.csv", "deep/**"]


@pytest.fixture(params=["redis", slow("rabbitmq")])
def urls(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Return the URLs of a broker and a result backend."""
    if request.param == "redis":
        url = request.getfixturevalue("shared_redis").url
        return url, url
    return request.getfixturevalue("rabbit").url, request.getfixturevalue("postgres").url


def kept(folder: Path) -> dict[str, str]:
    """Return the artifacts below a folder, with their content."""
    files = (path for path in folder.glob("*.artifacts/**/*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_text().strip() for path in files}


def details(folder: Path, name: str = "jobs") -> dict[str, tuple[str, str | None]]:
    """Return the state and the detail of each task."""
    lines = run("show", name, *LEDGER, "--json", cwd=folder).out.splitlines()
    return {task["key"]: (task["state"], task.get("detail")) for task in map(json.loads, lines)}


def test_each_attempt_leaves_its_artifacts_beside_its_output(tmp_path):
    (tmp_path / "sub").mkdir()
    file = jobs(
        tmp_path,
        {"key": "own", "command": f"cd $CELERIAC_TMPDIR; {WRITES}", "artifacts": PATTERNS, "scratch": True},
        {"key": "twice", "command": f"{WRITES} exit $((2 - CELERIAC_ATTEMPT))", "artifacts": "*.csv", "cwd": "sub"}
        | {"retries": 1, "retry_delay": 0},
        {"key": "slow", "command": "echo 1 > slow; exec sleep 60", "artifacts": "slow", "timeout": 0.5},
        {"key": "none", "command": "echo 1 > there", "artifacts": ["there", "no such*"]},
    )
    words = ("run", file, "--output", "out", *LEDGER, "--json")
    ended = run(*words, cwd=tmp_path)
    assert (ended.summary["succeeded"], ended.summary["failed"]) == (2, 2)
    expected = {
        "own.artifacts/a.csv": "1",
        "own.artifacts/deep/b": "x",
        "twice.artifacts/a.csv": "1",
        "twice@2.artifacts/a.csv": "2",
        "slow.artifacts/slow": "1",
        "none.artifacts/there": "1",
    }
    assert kept(tmp_path / "out") == expected
    assert details(tmp_path)["none"] == ("failed", "its artifacts were not kept: no file matches 'no such*'")
    shown = run("show", "jobs", *LEDGER, "--json", "--limit", "1", cwd=tmp_path).out
    assert json.loads(shown)["artifacts"] == PATTERNS
    (tmp_path / "no such").touch()
    resumed = run(*words, "--resume-failed", cwd=tmp_path)
    assert (resumed.summary["succeeded"], resumed.summary["had_succeeded"]) == (1, 2)
    assert details(tmp_path)["none"][0] == "success"


def test_a_folder_that_is_used_again_has_only_new_artifacts_and_other_errors_are_told(tmp_path):
    out = tmp_path / "out"
    for stale in ("a.artifacts", "a@2.artifacts", "b.artifacts"):
        (out / stale).mkdir(parents=True)
        (out / stale / "stale").touch()
    (out / "c.artifacts").touch()
    file = jobs(
        tmp_path,
        {"key": "a", "command": "echo 1 > new", "artifacts": "new"},
        {"key": "b", "command": "true"},
        {"key": "c", "command": "true", "artifacts": "new", "needs": "a"},
    )
    assert run("run", file, "--output", "out", *LEDGER, "-q", cwd=tmp_path).status == 1
    assert sorted(path.name for path in out.glob("*.artifacts*")) == ["a.artifacts", "c.artifacts"]
    assert kept(out) == {"a.artifacts/new": "1"}
    assert details(tmp_path)["c"][1] == f"its artifacts were not kept: {out}/c.artifacts: File exists"


BAD = [
    ({"artifacts": 5}, 'artifacts: 5 is not a list of patterns; write for example ["*.csv", "plots/**"]'),
    ({"artifacts": ["a", 5]}, "artifacts: 5 is not a pattern; write"),
    ({"artifacts": "/etc/*"}, 'artifacts: "/etc/*" is absolute; patterns are relative to the folder of the attempt; '),
    ({"artifacts": ["x/../../y"]}, 'artifacts: "x/../../y" leads out of the folder of the attempt; write'),
]


@pytest.mark.parametrize("command", ["run", "submit"])
@pytest.mark.parametrize(("fields", "line"), BAD)
def test_bad_patterns_are_refused_before_anything_runs(tmp_path, command, fields, line):
    file = jobs(tmp_path, {"command": "touch ran"}, {"command": "touch ran", **fields})
    ended = run_in_process(command, file, *LEDGER, cwd=tmp_path)
    assert (ended.status, ended.err.splitlines()[0].startswith(f"{file}:2: {line}")) == (2, True), ended.err
    assert not (tmp_path / "ran").exists()


def test_a_dry_run_shows_the_patterns(tmp_path):
    file = jobs(tmp_path, {"key": "a", "command": "true", "artifacts": PATTERNS})
    words = ("run", file, "--dry-run", "--output", "out")
    assert run_in_process(*words, cwd=tmp_path).out.startswith("   0  default  a  true  (artifacts *.csv, deep/**)\n")
    assert json.loads(run_in_process(*words, "--json", cwd=tmp_path).out)["artifacts"] == PATTERNS


@pytest.mark.parametrize("option", ["-q", "--dry-run"])
def test_artifacts_need_a_folder_of_output(tmp_path, option):
    file = jobs(tmp_path, {"command": "touch ran"}, {"key": "a", "command": "touch ran", "artifacts": "ran"})
    ended = run_in_process("run", file, option, cwd=tmp_path)
    line = "celeriac: artifacts: job 'a' has some, which are kept beside its output; give --output DIR\n"
    assert (ended.status, ended.err, (tmp_path / "ran").exists()) == (2, line, False)


def test_a_table_has_one_pattern_or_a_list(tmp_path):
    (tmp_path / "jobs.csv").write_text('key,command,artifacts\na,touch x y,x\nb,touch x y,"[""x"", ""y""]"\nc,true,\n')
    assert run("run", "-q", "jobs.csv", "--output", "out", *LEDGER, cwd=tmp_path).status == 0
    assert sorted(kept(tmp_path / "out")) == ["a.artifacts/x", "b.artifacts/x", "b.artifacts/y"]


def test_workers_keep_them_beside_their_output_also_after_a_killed_worker(urls, tmp_path):
    servers = ("--broker", urls[0], "--backend", urls[1])
    command = f"{WRITES} echo $CELERIAC_KEY >> log; until [ -e go ]; do sleep 0.02; done"
    job = {"key": "a", "command": command, "artifacts": PATTERNS, "cwd": str(tmp_path), "on_worker_lost": "retry"}
    with started("run", jobs(tmp_path, job), *servers, *LEDGER, "--json", cwd=tmp_path) as celeriac:
        with worker(tmp_path, urls, "--output", "kept") as one:
            until((tmp_path / "log").exists, "the start of the command")
            one.kill()
        (tmp_path / "go").touch()
        with worker(tmp_path, urls, "--output", "kept"):
            assert celeriac.wait().summary["succeeded"] == 1
        assert kept(tmp_path / "kept") == {"a@2.artifacts/a.csv": "2", "a@2.artifacts/deep/b": "x"}
    with worker(tmp_path, urls):
        ended = run("run", jobs(tmp_path, job), *servers, *LEDGER, "--name", "no", "--json", cwd=tmp_path)
    assert ended.summary["failed"] == 1
    detail = "its artifacts have no place here: give --output to celeriac run, serve or worker, where it runs"
    assert details(tmp_path, "no") == {"a": ("failed", detail)}
