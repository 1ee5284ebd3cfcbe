"""The wheel, the source distribution, and the files for systemd and containers."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from email import message_from_string
from pathlib import Path
from zipfile import ZipFile

import pytest

from celeriac.cli import COMMANDS, main
from celeriac.config.schema import SETTINGS
from tests.support.bare_environment import ROOT, build

DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").iterdir())


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


def test_the_wheel_has_the_files_of_the_page(wheel):
    web = ROOT / "src" / "celeriac" / "web"
    files = [file for folder in ("static", "page/templates") for file in (web / folder).rglob("*") if file.is_file()]
    assert {f"celeriac/web/{file.relative_to(web)}" for file in files} <= set(wheel.namelist())
    assert len(files) > 20


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
@pytest.mark.parametrize("page", sorted((ROOT / "share" / "man" / "man1").iterdir()), ids=lambda page: page.name)
def test_a_man_page_is_rendered_without_a_warning(page: Path):
    plain = ("-P-c", "-P-b", "-P-o", "-P-u")
    ended = subprocess.run(["groff", "-man", "-Tutf8", "-ww", *plain, page], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    for section in ("NAME", "SYNOPSIS", "DESCRIPTION"):
        assert f"\n{section}\n" in ended.stdout


# — metadata, and the source distribution —


def test_the_metadata_names_the_authors_and_only_versions_of_python_that_are_tested(wheel):
    [name] = [each for each in wheel.namelist() if each.endswith("/METADATA")]
    metadata = message_from_string(wheel.read(name).decode())
    assert metadata["Author"] == "The Celeriac authors"
    assert {"celery", "airflow"} <= set(metadata["Keywords"].split(","))
    versions = [each.rpartition(" ")[2] for each in metadata.get_all("Classifier", []) if ":: Python :: 3." in each]
    others = re.search(r"^PYTHONS \?= (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert others is not None
    assert versions == ["3.11", *others[1].split()]
    assert "make test-python" in (ROOT / ".ci" / "run").read_text()


def test_the_source_distribution_builds_and_tests_itself(wheel, tmp_path):
    with tarfile.open(build("sdist", tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    [source] = tmp_path.glob("celeriac-*")
    for name in ("Makefile", "SECURITY.md", "CONTRIBUTING.md", "requirements/dev.txt", "tools/lock.sh", ".ci/run"):
        assert (source / name).is_file(), name
    with ZipFile(build("wheel", tmp_path / "wheel", source)) as rebuilt:
        assert sorted(rebuilt.namelist()) == sorted(wheel.namelist())
    tests = ("tests/unit/test_priority_queue.py", "tests/unit/test_docs.py", "tests/cli/test_program.py")
    environment = {**os.environ, "PYTHONPATH": str(source / "src")}
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *tests], cwd=source, env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout


# — unit files, container, compose file —


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_accepts_a_unit_file(unit: Path, tmp_path: Path):
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("/opt/celeriac/bin", str(Path(sys.executable).parent)))
    ended = subprocess.run(["systemd-analyze", "verify", "--man=no", copy], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_the_command_of_a_unit_file_exists(unit: Path):
    found = re.search(r"^ExecStart=/opt/celeriac/bin/celeriac (.*)$", unit.read_text(), re.MULTILINE)
    assert found is not None
    parse(found[1].split())


def test_the_compose_file_names_commands_settings_and_files_that_exist():
    """Not more: this machine need have neither a program that reads the file nor a registry."""
    text = (DEPLOY / "compose.yaml").read_text()
    commands = [json.loads(found) for found in re.findall(r"^    command: (\[.*\])$", text, re.MULTILINE)]
    ours = [command for command in commands if command[0] in COMMANDS]
    assert [command[0] for command in ours] == ["serve", "worker"]
    for command in ours:
        parse(command)
    variables = re.findall(r"^    CELERIAC_(\w+):", text, re.MULTILINE)
    assert variables
    assert {name.lower() for name in variables} <= set(SETTINGS)
    context, dockerfile = re.findall(r"^    (?:context|dockerfile): (.*)$", text, re.MULTILINE)
    assert (DEPLOY / context / dockerfile).is_file()


def test_the_container_has_the_extras_of_the_compose_file_and_no_root():
    text = (DEPLOY / "Containerfile").read_text()
    assert "celeriac[redis,postgresql]" in text
    assert re.search(r'^USER celeriac$.*^ENTRYPOINT \["celeriac"\]$', text, re.MULTILINE | re.DOTALL)


def parse(words: list[str]) -> None:
    """Raise click's error if these are not a command with its options."""
    main.commands[words[0]].make_context(words[0], words[1:])
