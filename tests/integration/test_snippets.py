"""The Python snippets of README.md and docs/ run, and are typed: checked against the wheel as a user installs it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.servers import RedisServer
from tests.support.workers import worker

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SNIPPET = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHELL = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
SNIPPETS = [
    pytest.param(code, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, code in enumerate(SNIPPET.findall(page.read_text()), 1)
]
COMMANDS = ("make", "curl")
"""What the snippets run: stubs that succeed, first on the path."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "bin").mkdir()
    for name in COMMANDS:
        (tmp_path / "bin" / name).write_text("#!/bin/sh\n")
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("code", SNIPPETS)
def test_a_snippet_runs(code: str, folder: Path, shared_redis: RedisServer) -> None:
    (folder / "snippet.py").write_text(code.replace("redis://HOST/0", shared_redis.url))
    env = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    with worker(folder, (shared_redis.url, shared_redis.url)):
        ended = subprocess.run([sys.executable, "snippet.py"], cwd=folder, env=env, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    if "run_until_idle" in code:
        assert ended.stdout.count(" success ") == code.count("queue_command(")


def test_the_templates_of_the_readme_make_jobs(tmp_path: Path) -> None:
    (tmp_path / "samples.csv").write_text("sample,file\nnorth,a b.csv\n")
    for name in ("x y.wav", "a.jpg", "b.jpg"):
        (tmp_path / name).touch()
    block = next(block for block in SHELL.findall((ROOT / "README.md").read_text()) if "celeriac run -t" in block)
    script = block.replace("celeriac run", f"{shlex.quote(sys.executable)} -m celeriac run --dry-run -q")
    ended = subprocess.run(["sh", "-e", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert [line.split(maxsplit=2)[2] for line in ended.stdout.splitlines()] == [
        "north  gzip -k 'a b.csv'",
        "1  flac './x y.wav' -o './x y'.flac",
        "1  convert a.jpg -resize 100 a-100.png",
        "2  convert a.jpg -resize 800 a-800.png",
        "3  convert b.jpg -resize 100 b-100.png",
        "4  convert b.jpg -resize 800 b-800.png",
        *(f"{seed}  train --lr 0.1 --seed {seed}" for seed in range(1, 6)),
        *(f"{seed + 5}  train --lr 0.01 --seed {seed}" for seed in range(1, 6)),
    ]


def test_the_snippets_pass_mypy_against_the_wheel(tmp_path: Path) -> None:
    """Check the types as a user sees them: only if the wheel has a `py.typed`."""
    uv = Path(sys.executable).with_name("uv")
    environment = tmp_path / "environment"
    run(
        uv,
        "build",
        "--quiet",
        "--wheel",
        "--no-build-isolation",
        "--python",
        sys.executable,
        "--out-dir",
        tmp_path,
        ROOT,
    )
    run(uv, "venv", "--quiet", "--python", sys.executable, environment)
    run(
        uv,
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--python",
        environment / "bin" / "python",
        *tmp_path.glob("*.whl"),
    )
    files = []
    for number, param in enumerate(SNIPPETS):
        files.append(tmp_path / f"snippet_{number}.py")
        files[-1].write_text(str(param.values[0]))
    (tmp_path / "mypy.ini").write_text("[mypy]\nstrict = true\n[mypy-celery.*]\nignore_missing_imports = true\n")
    run(
        Path(sys.executable).with_name("mypy"),
        "--python-executable",
        environment / "bin" / "python",
        *files,
        cwd=tmp_path,
    )


def run(*command: str | Path, cwd: Path | None = None) -> None:
    ended = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
