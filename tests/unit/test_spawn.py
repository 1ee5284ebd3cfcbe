"""Commands start in the same way by `posix_spawn` and by `subprocess`."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest

from celeriac.worker.supervisor import orphans, spawn
from celeriac.worker.supervisor.spawn import find_program


@pytest.fixture(params=[True, False], ids=["posix_spawn", "subprocess"])
def way(request, monkeypatch):
    monkeypatch.setattr(spawn, "HAS_SPAWN", request.param)


def output_of(argv: list[str], env: Mapping[str, str], cwd: str | None = None) -> tuple[int, str]:
    """Start a program, and return its wait status and what it writes."""
    null, (read_end, write_end) = os.open(os.devnull, os.O_RDWR), os.pipe()
    with os.fdopen(read_end, encoding="utf-8") as file:
        environment = {os.fsencode(name): os.fsencode(value) for name, value in env.items()}
        pid = spawn.spawn(argv, environment, cwd, (null, write_end, write_end))
        os.close(write_end)
        os.close(null)
        text = file.read()
    return os.waitpid(pid, 0)[1], text


@pytest.mark.usefixtures("way")
def test_a_program_gets_its_environment_folder_streams_and_process_group(tmp_path):
    program = 'read line || echo "no input"; echo "$NAME"; pwd; ps -o pgid= -p $$; echo $$; echo error >&2; exit 7'
    for folder in (None, str(tmp_path)):
        status, text = output_of(["sh", "-c", program], {"NAME": "a b", "PATH": os.environ["PATH"]}, folder)
        lines = [line.strip() for line in text.splitlines()]
        assert lines == ["no input", "a b", folder or str(Path.cwd()), lines[4], lines[4], "error"]
        assert os.waitstatus_to_exitcode(status) == 7


@pytest.mark.usefixtures("way")
def test_a_program_gets_the_signals_that_python_ignores_with_their_usual_effects():
    status, text = output_of(["/bin/sh", "-c", "kill -PIPE $$; echo survived"], {})
    assert (os.waitstatus_to_exitcode(status), text) == (-signal.SIGPIPE, "")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    ("name", "error"),
    [("no-such-program", FileNotFoundError), ("./plain", PermissionError), ("./no-such", FileNotFoundError)],
)
def test_a_program_that_cannot_start_raises_the_error_of_subprocess(tmp_path, monkeypatch, name, error):
    (tmp_path / "plain").write_text("no program")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error):
        output_of([name], {"PATH": os.environ["PATH"]})


@pytest.mark.usefixtures("way")
def test_a_folder_that_is_missing_is_named_in_the_error(tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        output_of(["true"], {}, str(tmp_path / "missing"))
    assert raised.value.filename == str(tmp_path / "missing")


def test_programs_are_found_in_the_path_of_their_own_environment(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    (first / "folder").mkdir()
    (first / "plain").write_text("")
    for name in ("folder", "plain", "program"):
        (second / name).write_text("#!/bin/sh\n")
        (second / name).chmod(0o755)
    env = {b"PATH": os.fsencode(f"{first}:{second}")}
    for name in ("folder", "plain", "program"):
        assert find_program(name, env) == os.fsencode(second / name)
    assert find_program("missing", env) is None
    assert find_program("./missing", env) == b"./missing"
    assert find_program("sh", {}) is not None


def test_living_children_are_found_and_dead_ones_are_not(monkeypatch):
    sleeper = os.posix_spawn("/bin/sleep", ["sleep", "60"], os.environ)
    ended = os.posix_spawn("/bin/true", ["true"], os.environ)
    os.waitid(os.P_PID, ended, os.WEXITED | os.WNOWAIT)
    try:
        for listed in (orphans.listed_children, list):
            monkeypatch.setattr(orphans, "listed_children", listed)
            assert sleeper in orphans.find(())
            assert ended not in orphans.find(())
            assert sleeper not in orphans.find({sleeper})
    finally:
        os.kill(sleeper, signal.SIGKILL)
        os.waitpid(sleeper, 0)
        os.waitpid(ended, 0)
