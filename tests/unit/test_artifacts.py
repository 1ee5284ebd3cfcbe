"""The patterns of artifacts, and the copies of the files that they match."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from celeriac import Task
from celeriac.errors import InvalidTask
from celeriac.worker.supervisor.artifacts import copy_artifacts, is_match, parts_of

MATCHES = [
    ("*.csv", ["a.csv", ".csv", "a.csv/in/it"], ["d/a.csv", "a.csvx"]),
    ("d", ["d", "d/a", "d/e/f"], ["da"]),
    ("**", ["a", "b/c", "b/d/e"], []),
    ("**/*.txt", ["a.txt", "b/c.txt", "b/d/e.txt"], ["a.tx"]),
    ("a/**/z", ["a/z", "a/b/z", "a/b/c/z"], ["az", "z"]),
    ("**/**/**/x", ["x", "a/x", "a/b/c/d/e/x"], ["a/y"]),
    ("[ab]?.x", ["aq.x"], ["cq.x"]),
    ("[!a]", ["b"], ["a"]),
    ("[", ["["], ["a"]),
    ("[z-a]", [], ["z"]),
    ("./a//b", ["a/b"], ["b"]),
    (".", ["x", "y/z"], []),
    ("a\nb*", ["a\nbc"], ["a"]),
]


@pytest.mark.parametrize(("pattern", "matching", "others"), MATCHES)
def test_a_pattern_matches_files_and_all_files_in_folders(pattern, matching, others):
    assert [path for path in [*matching, *others] if is_match(path, parts_of(pattern))] == matching


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (5, "5 is not a list of patterns"),
        (["a", 5], "5 is not a pattern"),
        ("", "'' is not a pattern"),
        (["a\0"], "'a\\x00' is not a pattern"),
        ("/etc/*", "'/etc/*' is absolute"),
        (["a", "b/../../c"], "'b/../../c' leads out"),
        (["x" * 1001], "is longer than 1,000 characters"),
        (["x"] * 101, "there are more than 100"),
    ],
)
def test_what_is_no_pattern_or_leads_out_is_refused(value: Any, problem):
    with pytest.raises(InvalidTask) as error:
        Task(key="a", command="true", artifacts=value)
    assert problem in str(error.value)


def test_a_text_is_one_pattern_and_a_repeated_one_counts_once():
    text: Any = "*.csv, x"
    twice: Any = ["a", "b", "a"]
    assert Task(key="a", command="true", artifacts=text).artifacts == ("*.csv, x",)
    assert Task(key="a", command="true", artifacts=twice).artifacts == ("a", "b")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with files, and with links to files and folders outside."""
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "x").write_text("secret")
    folder = tmp_path / "work"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "a.csv").write_text("1\n")
    (folder / "deep" / "er" / "run.sh").write_text("2\n")
    (folder / "deep" / "er" / "run.sh").chmod(0o755)
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "folder").symlink_to(tmp_path / "secrets")
    (folder / "deep" / "up").symlink_to("..")
    os.mkfifo(folder / "fifo")
    return folder


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_files_are_copied_with_their_modes_and_no_link_is_followed(source, tmp_path):
    target = tmp_path / "out" / "key.artifacts"
    target.mkdir(parents=True)
    (target / "stale").touch()
    assert copy_artifacts(str(source), ["**"], str(target)) is None
    assert files_in(target) == {"a.csv", "deep/er/run.sh"}
    assert ((target / "a.csv").read_text(), os.access(target / "deep/er/run.sh", os.X_OK)) == ("1\n", True)
    assert not any(path.is_symlink() for path in target.rglob("*"))


@pytest.mark.parametrize("pattern", ["none*", "link", "folder/**", "folder/x", "fifo", "deep/up/a.csv"])
def test_a_pattern_without_a_file_is_named_and_the_others_are_copied(source, tmp_path, pattern):
    target = tmp_path / "out" / "key.artifacts"
    target.parent.mkdir()
    assert copy_artifacts(str(source), ["*.csv", pattern], str(target)) == f"no file matches {pattern!r}"
    assert files_in(target) == {"a.csv"}
    assert copy_artifacts(str(source), [pattern], str(target)) is not None
    assert not target.exists()


def test_the_folder_of_the_copies_is_not_copied(source):
    (source / "out").mkdir()
    for _ in range(2):
        assert copy_artifacts(str(source), ["**"], str(source / "out" / "key.artifacts")) is None
        assert files_in(source / "out") == {"key.artifacts/a.csv", "key.artifacts/deep/er/run.sh"}


def test_nothing_is_kept_of_a_copy_that_fails(source, tmp_path, monkeypatch):
    def write(*_: object) -> int:
        raise OSError(28, "No space left on device")

    target = tmp_path / "out" / "key.artifacts"
    target.parent.mkdir()
    monkeypatch.setattr("celeriac.worker.supervisor.artifacts.os.pwrite", write)
    assert copy_artifacts(str(source), ["*.csv"], str(target)) == f"{target}/a.csv: No space left on device"
    monkeypatch.undo()
    assert not target.exists()
    assert copy_artifacts(str(source / "none"), ["*"], str(target)) == f"{source}/none: No such file or directory"


def test_only_a_working_folder_may_be_a_link(source, tmp_path):
    (tmp_path / "link").symlink_to(source)
    target = tmp_path / "out" / "key.artifacts"
    target.parent.mkdir()
    assert copy_artifacts(str(tmp_path / "link"), ["*.csv"], str(target)) is None
    assert copy_artifacts(str(tmp_path / "link"), ["*.csv"], str(target), is_scratch=True) is not None
    assert not target.exists()


def test_the_copies_are_left_out_where_they_are_beside_the_files(source):
    target = source / "key.artifacts"
    for _ in range(2):
        assert copy_artifacts(str(source), ["**"], str(target)) is None
        assert files_in(target) == {"a.csv", "deep/er/run.sh"}


def test_a_folder_in_which_nothing_can_match_is_not_opened(source, tmp_path, monkeypatch):
    def open_file(name: Any, *args: Any, **options: Any) -> int:
        if name == "private":
            raise PermissionError(13, "Permission denied", name)
        return real_open(name, *args, **options)

    real_open = os.open
    (source / "private").mkdir()
    (tmp_path / "out").mkdir()
    target = str(tmp_path / "out" / "key.artifacts")
    monkeypatch.setattr("celeriac.worker.supervisor.artifacts.os.open", open_file)
    assert copy_artifacts(str(source), ["*.csv", "deep/**"], target) is None
    assert copy_artifacts(str(source), ["**/*.csv"], target) == "private: Permission denied"


def test_a_file_that_grows_is_copied_as_it_was(source, tmp_path, monkeypatch):
    def write(*args: Any) -> int:
        with (source / "a.csv").open("a") as file:
            file.write("more" * 300_000)
        assert (source / "a.csv").stat().st_size < 20_000_000
        return real_write(*args)

    real_write = os.pwrite
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "key.artifacts"
    monkeypatch.setattr("celeriac.worker.supervisor.artifacts.os.pwrite", write)
    assert copy_artifacts(str(source), ["*.csv"], str(target)) is None
    assert (target / "a.csv").read_text() == "1\n"


def test_holes_stay_holes(source, tmp_path):
    with (source / "image").open("wb") as file:
        for offset in (2**20, 2**29):
            file.seek(offset)
            file.write(b"data")
        file.truncate(2**30)
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "key.artifacts"
    assert copy_artifacts(str(source), ["image"], str(target)) is None
    status = (target / "image").stat()
    assert (status.st_size, status.st_blocks * 512 < 2**24) == (2**30, True)
    with (target / "image").open("rb") as file:
        file.seek(2**29)
        assert file.read(5) == b"data\0"
