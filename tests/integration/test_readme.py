"""A new user installs the built wheel, has an empty home, and types each command of the README, from first to last."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from tests.support.bare_environment import ROOT, build, call, new_environment
from tests.support.cli_runner import END_TIMEOUT, until
from tests.support.servers import free_port

README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
ROW = re.compile(r"^\| [^|]+ \| (.*) \|$", re.MULTILINE)
CODE = re.compile(r"`([^`]*\bceleriac [^`]*)`")
JOBS = re.compile(r"^```json\n(.*?)^```", re.MULTILINE | re.DOTALL)
STUBS = ("make", "curl", "convert")
"""Programs of the README that a bare machine may not have. They print their name and succeed."""

PLACEHOLDERS = {"RUN": "jobs", "KEY": "fetch", "KEY...": "fetch", "NAME": "network", "producer": "echo echo produced"}
BACKGROUND = ("broker", "worker", "serve", "web")
MAY_FIND_NOTHING = ("celeriac cancel ", "celeriac explain fetch")
"""Commands that end with status 1 if the tasks have ended, as they have here sooner or later."""

FOREVER = ("celeriac autoscale ",)
"""Commands that need a cluster: their own tests run them. Here they look once, and start nothing."""

LIVE_RUN_ONLY = ("celeriac pause ", "celeriac resume ", "celeriac set ")
"""Commands that refuse a run or a task that has ended."""

HAS_ENDED = re.compile(r"^celeriac: .*run 'jobs'(: has ended| does not wait);")


def commands() -> list[str]:
    """Return the commands of the README in their order: those of the blocks, and those of the table of tasks."""
    found: list[tuple[int, str]] = []
    for block in BLOCK.finditer(README):
        lines = (line[2:].split("   #")[0].strip() for line in block[1].splitlines() if line.startswith("$ "))
        found += [(block.start(), line) for line in lines]
    for row in ROW.finditer(README, README.index("| to do this | write this |")):
        found += [(row.start(), code.replace("\\|", "|")) for code in CODE.findall(row[1])]
    return [command for _, command in sorted(found, key=lambda each: each[0])]


class NewUser:
    """A user with an empty home, a wheel in an environment, and nothing else of ours."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.home.mkdir()
        programs = new_environment(folder / "environment", build("wheel", folder / "dist"), ["redis", "valkey", "web"])
        stubs = folder / "stubs"
        stubs.mkdir()
        for name in STUBS:
            (stubs / name).write_text(f"#!/bin/sh\necho {name}\n")
            (stubs / name).chmod(0o755)
        self.env = {"HOME": str(self.home), "PATH": f"{programs}:{stubs}:/usr/bin:/bin", "LANG": "C.UTF-8"}
        self.port = free_port()
        (self.home / "jobs.jsonl").write_text(JOBS.findall(README)[0].replace("/srv/site", "."))

    def fill_in(self, command: str) -> str:
        """Return a command with the placeholders of the README replaced."""
        words = [PLACEHOLDERS.get(word, word) for word in command.split()]
        return " ".join(words).replace("postgresql+psycopg://HOST/celeriac", f"sqlite:///{self.home}/service.db")

    def type(self, command: str) -> tuple[int, str]:
        ended = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=self.home,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=END_TIMEOUT,
        )
        return ended.returncode, ended.stdout + ended.stderr

    @contextmanager
    def keep_running(self, command: str) -> Iterator[None]:
        """Start a command that runs until it is told to stop, and wait until it serves."""
        log = self.home / f"{command.split()[1]}.log"
        is_broker = command.split()[1] == "broker"
        if is_broker:
            command += f" --port {self.port}"
        with log.open("wb") as file:
            process = psutil.Popen(
                ["/bin/sh", "-c", f"exec {command}"], cwd=self.home, env=self.env, stdout=file, stderr=file
            )
            try:
                until(lambda: re.search(r"\bready\b|serving|listening", log.read_text()), f"the start of {command}")
                if is_broker:
                    copied = re.search(r"^\$ (cp celeriac-broker/broker.url .*?)(  #|$)", README, re.MULTILINE)
                    assert copied is not None
                    self.type(copied[1])
                yield
            finally:
                process.terminate()
                status = process.wait(END_TIMEOUT)
            assert status in (0, -15), log.read_text()  # not in `finally`, which would hide the failure of a command


def test_the_wheel_runs_each_command_of_the_readme(tmp_path):
    user = NewUser(tmp_path)
    typed = []
    with ExitStack() as stack:
        for command in commands():
            words = command.split()
            if "celeriac" not in words:
                continue  # `make demo` and the installation: see below
            verb = words[words.index("celeriac") + 1]
            command = user.fill_in(command)
            typed.append(verb)
            if verb in BACKGROUND:
                stack.enter_context(user.keep_running(command))
                continue
            if command.startswith(FOREVER):
                assert "Traceback" not in user.type(f"{command} --dry-run")[1], command
                continue
            status, output = user.type(command)
            assert "Traceback" not in output, command
            if command.startswith(LIVE_RUN_ONLY):
                assert status == 0 or HAS_ENDED.search(output), f"{command}: {output}"
                continue
            assert status in ((0, 1) if command.startswith(MAY_FIND_NOTHING) else (0,)), f"{command}: {output}"
    assert len(typed) > 20
    assert {"run", "worker", "submit", "status", "drain", "serve", "prune", "logs"} <= set(typed)


@pytest.mark.parametrize("extra", ["redis", "valkey", "postgresql", "web", "schedules", "top", "airflow"])
def test_the_readme_names_each_extra(extra):
    assert f"| `{extra}` |" in README


def test_the_environment_of_the_demo_has_the_client_of_the_readmes_broker():
    pinned = (ROOT / "requirements" / "run.txt").read_text()
    assert re.search(r"^redis==", pinned, re.MULTILINE)
    assert re.search(r"^hiredis==", pinned, re.MULTILINE)
    assert "requirements/run.txt" in call("make", "-n", "-B", "demo", cwd=ROOT)
