"""Odd environments: each ends with the usual result, or with one line that says what to do."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from celeriac.control.folder import LAST_RESORT, folders
from celeriac.worker.supervisor.interpreter import missing_interpreter
from tests.support.cli_runner import Ended, jobs, run, run_in_process, small_files

LATIN_1 = os.fsdecode(b"caf\xe9")
UNKNOWN_USER = 54_321
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can take rights away from a process")


def one_line(ended: Ended, status: int = 2) -> str:
    """Return the only line on standard error."""
    assert ended.status == status, ended.err
    assert ended.err.count("\n") == 1, ended.err
    return ended.err


@pytest.mark.parametrize("args", [("run", "jobs.txt"), ("run", "--", "true"), ("runs",), ("config",), ("cancel", "k")])
def test_a_deleted_working_folder_is_one_line(tmp_path, args):
    deleted = tmp_path / "deleted"
    deleted.mkdir()
    ended = run(*args, cwd=deleted, before=("sh", "-c", 'rmdir "$PWD"; exec "$@"', "sh"))
    assert "the working folder cannot be used: No such file or directory; change to another one" in one_line(ended)


@needs_root
def test_a_working_folder_that_the_user_may_not_enter_has_no_settings(tmp_path):
    """This is `sudo -u` in a private folder."""
    private = tmp_path / "private"
    private.mkdir()
    file = jobs(tmp_path, {"command": "true"})
    os.chown(private, UNKNOWN_USER, UNKNOWN_USER)
    private.chmod(0o700)
    without_rights = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")
    assert run("run", file, "--ledger", "none", cwd=private, before=without_rights).status == 0
    assert "it cannot be read: permission denied" in one_line(run("run", "f.txt", cwd=private, before=without_rights))


@needs_root
def test_a_user_without_a_home_folder(tmp_path):
    file = jobs(tmp_path, {"command": "true"})
    rights = ("--inh-caps", "+dac_override", "--ambient-caps", "+dac_override")  # the tests may be in a private folder
    user = ("setpriv", "--reuid", str(UNKNOWN_USER), "--clear-groups", *rights)
    before = ("env", "-u", "CELERIAC_LEDGER", "-u", "HOME", "-u", "XDG_STATE_HOME", *user)
    ended = run("run", file, "--quiet", cwd=tmp_path, before=before)
    assert "there is no home folder, and HOME is not set: this run is not recorded" in one_line(ended, status=0)
    assert "ledger: this command needs one; give --ledger" in one_line(run("runs", cwd=tmp_path, before=before))
    in_home = run("runs", "--ledger", "~/runs.db", cwd=tmp_path, before=before)
    assert "is in a home folder that is not known; give a path without ~" in one_line(in_home)


def test_without_a_temporary_folder_a_run_is_one_line(tmp_path, monkeypatch):
    file = jobs(tmp_path, {"command": "true"})
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    ended = run_in_process("run", file, "--ledger", "none", cwd=tmp_path)
    assert "TMPDIR: no temporary folder can be made: No such file or directory" in one_line(ended)


@pytest.mark.parametrize(("pool", "what"), [("prefork", "folder"), ("threads", "file")])
def test_without_a_temporary_folder_a_worker_is_one_line(tmp_path, pool, what):
    no_files = small_files(0)  # a folder in which no file can be written is not usable
    ended = run("worker", "--pool", pool, "--broker", "redis://127.0.0.1:1/0", cwd=tmp_path, before=no_files)
    line = one_line(ended)
    assert line.startswith(f"celeriac: TMPDIR: no temporary {what} can be made: No usable temporary directory found")
    assert line.endswith("; set it to a writable folder\n")


def test_processes_that_can_share_no_memory_are_one_line(tmp_path):
    ended = run(
        "worker", "--pool", "prefork", "--broker", "redis://127.0.0.1:1/0", cwd=tmp_path, before=small_files(100)
    )
    assert ended.status == 2
    assert "Traceback" not in ended.err
    assert "pool: the processes of the worker cannot share memory: file too large; free the temporary" in ended.err


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (("run", "jobs.txt"), "the hard limit of 6 open files is too low to run a command; raise it with ulimit"),
        (("worker", "--broker", "redis://127.0.0.1:1/0"), "it cannot run: too many open files; raise the limit"),
    ],
)
def test_a_lack_of_descriptors_for_the_program_itself_is_one_line(tmp_path, args, line):
    jobs(tmp_path, "true", name="jobs.txt")
    ended = run(*args, cwd=tmp_path, env={"CELERIAC_LEDGER": "none"}, before=("prlimit", "--nofile=6:6"))
    assert ended.status == 2
    assert "Traceback" not in ended.err
    assert line in ended.err


def test_without_a_temporary_folder_the_control_sockets_have_a_last_resort(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", list)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    assert [folder.parent for folder in folders()] == [Path(LAST_RESORT)]


# — bytes that are not UTF-8 —


def test_a_file_whose_name_is_not_utf_8_runs_and_resumes(tmp_path):
    (tmp_path / f"{LATIN_1}.txt").write_text("exit 3\ntrue\n")
    ledger = ("--ledger", "ledger.db")
    assert run("run", f"{LATIN_1}.txt", *ledger, cwd=tmp_path).status == 1
    ended = run("run", f"{LATIN_1}.txt", "--resume-failed", "--json", *ledger, cwd=tmp_path)
    assert (ended.summary["run"], ended.summary["had_succeeded"]) == ("caf\\xe9", 1)
    assert "/caf\\xe9.txt" in run_in_process("runs", *ledger, cwd=tmp_path).out


def test_a_run_in_a_folder_whose_name_is_not_utf_8(tmp_path):
    folder = tmp_path / LATIN_1
    folder.mkdir()
    (folder / "jobs.txt").write_text("true\n")
    assert run("run", "jobs.txt", "--ledger", "ledger.db", cwd=folder).status == 0
    assert run("show", "jobs", "--ledger", "ledger.db", cwd=folder).status == 0
    ended = run("run", "jobs.txt", "--output", "out", cwd=folder)
    assert "is not Unicode; name a folder whose path is in UTF-8" in one_line(ended)


def test_an_argument_that_is_not_utf_8_reaches_the_command(tmp_path):
    ended = run("run", "--json", "-o", "out", "--events", "events", "--", "printf", LATIN_1, cwd=tmp_path)
    assert ended.status == 0
    assert (tmp_path / "out" / "printf caf%5Cxe9.out").read_bytes() == b"caf\xe9"


@pytest.mark.parametrize(
    "args",
    [
        ("run", "jobs.txt", "--name", LATIN_1),
        ("submit", "jobs.txt", "--name", LATIN_1),
        ("run", "jobs.txt", "--broker", f"redis://{LATIN_1}/0"),
        ("runs", "--ledger", f"postgresql://{LATIN_1}/db"),
        ("show", LATIN_1),
    ],
)
def test_a_name_that_is_not_utf_8_is_one_line(tmp_path, args):
    (tmp_path / "jobs.txt").write_text("true\n")
    assert "is not Unicode; write it in UTF-8" in one_line(run(*args, cwd=tmp_path))


@pytest.mark.parametrize(
    "args",
    [
        ("run", "jobs.txt", "--broker", f"redis://{'a' * 70}/0"),
        ("status", "--broker", "amqp://a..b//"),
        ("runs", "--ledger", f"postgresql://{'a' * 70}/db"),
    ],
)
def test_a_host_that_cannot_be_looked_up_is_one_line(tmp_path, args):
    assert "names a host that no machine can have" in one_line(run(*args, cwd=tmp_path))


def test_a_listing_escapes_what_the_terminal_cannot_show(tmp_path):
    (tmp_path / "jobs.txt").write_text("echo \N{SNOWMAN}\n")
    ended = run("run", "jobs.txt", "--dry-run", cwd=tmp_path, env={"PYTHONIOENCODING": "latin-1"})
    assert (ended.status, ended.out) == (0, "   0  default  1  echo \\u2603\n")


# — programs that cannot start —


@pytest.mark.parametrize(
    ("first_line", "problem"),
    [
        (b"#!/no/such -x\n", "its first line names '/no/such', and there is no such program"),
        (b"#! \t/no/such\n", "its first line names '/no/such', and there is no such program"),
        (b"#!/bin/sh\r\n", r"its first line names '/bin/sh\r', and there is no such program"),
    ],
)
def test_a_missing_interpreter_is_named(tmp_path, first_line, problem):
    script = tmp_path / "odd-script"
    script.write_bytes(first_line)
    script.chmod(0o755)
    file = jobs(tmp_path, {"key": "s", "command": ["odd-script"], "env": {"PATH": f"/bin:{tmp_path}"}})
    ended = run("run", file, "--json", cwd=tmp_path)
    assert [f["detail"] for f in ended.summary["failures"]] == [f"cannot start 'odd-script': {problem}"]


def test_a_missing_program_has_no_interpreter(tmp_path):
    assert missing_interpreter("nothing", "", str(tmp_path)) is None
    assert missing_interpreter("./nothing", str(tmp_path), "") is None
    (tmp_path / "binary").write_bytes(b"\x7fELF")
    assert missing_interpreter("./binary", str(tmp_path), "") == "the loader that it was built for is missing"


# — no /proc —


@needs_root
def test_without_proc_a_run_is_not_recorded_in_a_ledger(tmp_path):
    file = jobs(tmp_path, {"command": "true"})

    def without_proc(*args: str) -> subprocess.CompletedProcess[str]:
        command = ["unshare", "-m", "sh", "-c", 'umount -l /proc && exec "$@"', "sh", sys.executable, "-m", "celeriac"]
        return subprocess.run([*command, *args], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert without_proc("run", str(file), "--ledger", "none").returncode == 0
    assert without_proc("run", "--", "true").returncode == 0
    for command in ("run", "submit"):
        refused = without_proc(command, str(file), "--ledger", "ledger.db")
        assert refused.returncode == 2
        assert refused.stderr == (
            "celeriac: /proc: cannot be read, and without it the owner of a run cannot be told from a later process; "
            "mount it, or give --ledger none\n"
        )
