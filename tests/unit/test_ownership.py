"""Files that another user may have written, and files that are none: each is named, and none is used or blocks."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from celeriac.broker.bundled_valkey import prepare_broker
from celeriac.cluster.local.journal import segments_in
from celeriac.config.ownership import BY_OTHERS, problem_of_file, problem_of_folder
from celeriac.config.settings import read_settings
from celeriac.errors import InvalidConfig
from celeriac.ledger.database import Database
from tests.support.cli_runner import jobs, run

STRANGER = 54_321
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")


def give_away(path: Path) -> None:
    os.chown(path, STRANGER, -1)


def make_writable(path: Path) -> None:
    path.chmod(0o666)


CHANGES = [
    pytest.param(give_away, f"belongs to user {STRANGER}", marks=needs_root),
    (make_writable, "may be written by other users (its mode is 0666)"),
]


@needs_root
def test_files_of_this_user_root_and_the_user_of_sudo_are_trusted(tmp_path, monkeypatch):
    file = tmp_path / "file"
    assert problem_of_file(file) is None  # whoever opens it reports that
    file.write_text("")
    assert problem_of_file(file) is None
    give_away(file)
    assert problem_of_file(file) == f"belongs to user {STRANGER}"
    monkeypatch.setenv("SUDO_UID", str(STRANGER))
    assert problem_of_file(file) is None
    monkeypatch.setattr(os, "geteuid", lambda: 1)
    assert problem_of_file(file) == f"belongs to user {STRANGER}"
    os.chown(file, 0, -1)
    assert problem_of_file(file) is None


def test_the_mode_decides_who_may_have_written_a_file(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for mode, is_trusted, is_trusted_by_others in ((0o644, True, True), (0o664, False, True), (0o646, False, False)):
        file.chmod(mode)
        assert (problem_of_file(file) is None) is is_trusted
        assert (problem_of_file(file, writable=BY_OTHERS) is None) is is_trusted_by_others
    tmp_path.chmod(0o777)
    assert problem_of_folder(tmp_path) == "may be written by other users (its mode is 0777)"


def test_a_link_and_what_is_no_file_are_not_trusted(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "fifo")
    assert problem_of_file(tmp_path / "link") is None
    for name in ("link", "fifo"):
        assert problem_of_file(tmp_path / name, follows=False) == "is not a regular file"


@pytest.mark.parametrize("name", ["celeriac.toml", "pyproject.toml"])
@pytest.mark.parametrize(("change", "problem"), CHANGES)
def test_settings_in_a_parent_folder_that_others_may_have_written_are_refused(tmp_path, name, change, problem):
    inner = tmp_path / "a b" / "inner"
    inner.mkdir(parents=True)
    file = inner.parent / name
    file.write_text("parallelism = 3\n" if name == "celeriac.toml" else "[tool.celeriac]\nparallelism = 3\n")
    assert read_settings(environment={}, folder=inner).executor.parallelism == 3
    change(file)
    with pytest.raises(InvalidConfig) as error:
        read_settings(environment={}, folder=inner)
    assert str(error.value) == f"{file}: {problem}; if you trust it, give --config '{file}'"
    assert read_settings(config=str(file), environment={}, folder=inner).executor.parallelism == 3


def test_a_pyproject_without_our_settings_may_belong_to_anybody(tmp_path):
    (tmp_path / "pyproject.toml").write_text("[tool.other]\nname = 'celeriac'\n")
    make_writable(tmp_path / "pyproject.toml")
    assert read_settings(environment={}, folder=tmp_path).executor.parallelism


# — ledgers —


@pytest.mark.parametrize("end", ["", "-wal", "-shm", "-journal"])
@pytest.mark.parametrize(("change", "problem"), CHANGES)
def test_a_ledger_that_others_may_have_written_is_refused(tmp_path, end, change: Callable[[Path], None], problem):
    path = tmp_path / "ledger.db"
    with closing(Database(f"sqlite:///{path}")):
        pass
    file = tmp_path / f"ledger.db{end}"
    file.touch()
    change(file)
    with pytest.raises(InvalidConfig) as error:
        Database(f"sqlite:///{path}")
    assert f"ledger: {file} {problem}; use it as its owner, with mode 600" in str(error.value)


def test_a_ledger_that_is_no_file_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for read_only in (False, True):
        with pytest.raises(InvalidConfig, match="is not a regular file"):
            Database(f"sqlite:///{tmp_path}/fifo", read_only=read_only)
    (tmp_path / "ledger.db-wal").symlink_to("elsewhere")
    with pytest.raises(InvalidConfig, match=r"ledger.db-wal is not a regular file"):
        Database(f"sqlite:///{tmp_path}/ledger.db")


def test_a_ledger_of_another_user_can_be_read_but_runs_nothing(tmp_path):
    file = jobs(tmp_path, {"key": "a", "command": "echo >> ran; exit 1"})
    assert run("run", file, "--ledger", "ledger.db", cwd=tmp_path).status == 1
    make_writable(tmp_path / "ledger.db")
    assert run("runs", "--ledger", "ledger.db", cwd=tmp_path).out.startswith("run")
    for command in (("retry", "jobs"), ("run", file), ("run", file, "--resume-failed"), ("submit", file)):
        ended = run(*command, "--ledger", "ledger.db", cwd=tmp_path)
        assert ended.status == 2
        assert "may be written by other users (its mode is 0666)" in ended.err
    assert (tmp_path / "ran").read_text() == "\n"
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as ledger:
        assert ledger.execute("SELECT count(*) FROM celeriac_run").fetchone() == (1,)


# — the broker —


@pytest.mark.parametrize(("change", "problem"), CHANGES)
def test_a_valkey_configuration_that_others_may_have_written_is_refused(tmp_path, change, problem):
    folder = tmp_path / "data"
    server = prepare_broker(folder, bind="127.0.0.1", port=1)
    assert prepare_broker(folder, bind="127.0.0.1", port=1).password == server.password
    change(server.config)
    with pytest.raises(InvalidConfig) as error:
        prepare_broker(folder, bind="127.0.0.1", port=1)
    assert str(error.value) == f"--data: {server.config} {problem}; name a folder in which only you can write"


def test_a_folder_of_a_broker_where_others_may_write_is_refused(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(InvalidConfig, match="may be written by other users"):
        prepare_broker(folder, bind="127.0.0.1", port=1)
    folder.chmod(0o700)
    os.mkfifo(folder / "valkey.conf")
    with pytest.raises(InvalidConfig, match=r"valkey.conf is not a regular file"):
        prepare_broker(folder, bind="127.0.0.1", port=1)


# — the output of commands, and the journal —


def test_output_goes_into_no_link_and_no_fifo_and_blocks_no_other_command(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "precious").write_text("kept")
    (out / "link.out").symlink_to(tmp_path / "precious")
    (out / "dangling.out").symlink_to(tmp_path / "new")
    os.mkfifo(out / "fifo.out")
    os.mkfifo(out / "open.out")
    (out / "folder.out").mkdir()
    (out / "again.out").write_text("a longer output of an earlier run")
    names = ("link", "dangling", "fifo", "open", "folder", "again")
    file = jobs(tmp_path, *[{"key": name, "command": "echo done"} for name in names])
    with (out / "open.out").open("r+b", buffering=0):  # a reader has it open
        ended = run("run", file, "-o", "out", "--json", "-j1", cwd=tmp_path)
    assert ended.status == 1
    problems = {failure["key"]: failure["detail"].rpartition(": ")[2] for failure in ended.summary["failures"]}
    assert problems == {
        "link": "it is a symbolic link",
        "dangling": "it is a symbolic link",
        "fifo": "it is not a regular file",
        "open": "it is not a regular file",
        "folder": "Is a directory",
    }
    assert (tmp_path / "precious").read_text() == "kept"
    assert not (tmp_path / "new").exists()
    assert (out / "again.out").read_text() == "done\n"


def test_only_files_are_segments_of_a_journal(tmp_path):
    name = "0f0f.17.{}.jsonl"
    (tmp_path / name.format(0)).write_text("")
    os.mkfifo(tmp_path / name.format(1))
    (tmp_path / name.format(2)).symlink_to(name.format(0))
    assert [segment.number for segment in segments_in(tmp_path)] == [0]
