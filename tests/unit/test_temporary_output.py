"""The temporary folders for the output of runs."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from celeriac.runs.temporary_output import PREFIX, in_use, remove_folder, remove_old_folders

DAY = 86_400


@pytest.fixture(autouse=True)
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def age(path: Path, days: float) -> None:
    then = path.stat().st_mtime - days * DAY
    os.utime(path, (then, then))


def left_folder(parent: Path, name: str = f"{PREFIX}abcdefgh", *, days: float = 0) -> Path:
    folder = parent / name
    folder.mkdir()
    (folder / "k.err").write_text("why\n")
    for path in (folder / "k.err", folder):
        age(path, days)
    return folder


def test_an_empty_folder_is_removed_at_the_end_and_another_stays(parent):
    empty, used = (Path(tempfile.mkdtemp(prefix=PREFIX)) for _ in range(2))
    with in_use(empty), in_use(used):
        (used / "k.out").write_text("text")
    assert list(parent.iterdir()) == [used]


def test_only_old_folders_of_runs_are_removed(parent):
    old = left_folder(parent, days=91)
    newer = left_folder(parent, f"{PREFIX}hgfedcba", days=89)
    others = [left_folder(parent, name, days=91) for name in ("celeriac-worker-abcdefgh", "celeriac-frontend", "mine")]
    assert remove_old_folders(90 * DAY) == [old]
    assert set(parent.iterdir()) == {newer, *others}


def test_an_old_folder_with_a_file_that_is_still_written_stays(parent):
    folder = left_folder(parent, days=91)
    (folder / "k.err").write_text("more\n")
    age(folder, 91)
    assert remove_old_folders(90 * DAY) == []


def test_the_folder_of_a_live_run_stays(parent):
    folder = left_folder(parent, days=91)
    with in_use(folder):
        assert not remove_folder(folder)
        assert remove_old_folders(90 * DAY) == []
    assert remove_folder(folder)
    assert not folder.exists()


def test_nothing_else_is_removed(parent, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / f"{PREFIX}abcdefgh"
    elsewhere.mkdir()
    link = parent / elsewhere.name
    link.symlink_to(elsewhere)
    assert not remove_folder(elsewhere)
    assert not remove_folder(link)
    assert elsewhere.exists()
