"""The wheel and the source distribution: what they hold, and what they say about themselves."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from zipfile import ZipFile

import pytest

from celeriac.cli import COMMANDS
from tests.support.bare_environment import ROOT, build


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    return ZipFile(build("wheel", tmp_path_factory.mktemp("wheel")))


def test_the_wheel_has_a_man_page_for_each_command_and_completion_for_three_shells(wheel):
    installed = {name.partition("/data/share/")[2] for name in wheel.namelist()}
    assert {f"man/man1/celeriac-{name}.1" for name in COMMANDS} | {"man/man1/celeriac.1"} <= installed
    assert {
        "bash-completion/completions/celeriac",
        "zsh/site-functions/_celeriac",
        "fish/vendor_completions.d/celeriac.fish",
    } <= installed


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
@pytest.mark.parametrize("page", sorted((ROOT / "share" / "man" / "man1").iterdir()), ids=lambda page: page.name)
def test_a_man_page_is_rendered_without_a_warning(page: Path):
    plain = ("-P-c", "-P-b", "-P-o", "-P-u")
    ended = subprocess.run(["groff", "-man", "-Tutf8", "-ww", *plain, page], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    for section in ("NAME", "SYNOPSIS", "DESCRIPTION"):
        assert f"\n{section}\n" in ended.stdout
