"""Each recipe of docs/cookbook.md runs, and does what it says; where it names GNU parallel, both do the same."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.servers import program

ROOT = Path(__file__).parents[2]
TITLE = re.compile(r"^### (.*)\n", re.MULTILINE)
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PARALLEL = re.compile(r"^GNU parallel: `(.*)`$", re.MULTILINE)
TIMEOUT = 240  # seconds for a recipe


@dataclass(frozen=True)
class Recipe:
    language: str
    code: str
    parallel: str | None


def recipes() -> dict[str, Recipe]:
    """Return the recipes of the page by their titles."""
    _, *parts = TITLE.split((ROOT / "docs" / "cookbook.md").read_text())
    found = {}
    for title, text in zip(parts[::2], parts[1::2], strict=True):
        ((language, code),) = BLOCK.findall(text)
        parallel = PARALLEL.search(text)
        found[title] = Recipe(language, code, parallel and parallel[1])
    return found


RECIPES = recipes()


@dataclass(frozen=True)
class Done:
    """A recipe that was run in a folder."""

    folder: Path
    out: str
    err: str

    def read(self, name: str) -> str:
        return (self.folder / name).read_text()

    def files(self) -> dict[str, bytes]:
        """Return the content of each file, by its path."""
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in paths}


Prepare = Callable[[Path], None]
Check = Callable[[Done], None]
PREPARE: dict[str, Prepare] = {}
CHECKS: dict[str, Check] = {}


def recipe(title: str, prepare: Prepare) -> Callable[[Check], Check]:
    """Register the check of a recipe, and what makes its folder."""

    def register(check: Check) -> Check:
        PREPARE[title], CHECKS[title] = prepare, check
        return check

    return register


def files(*names: str) -> Prepare:
    def prepare(folder: Path) -> None:
        for name in names:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"the words of {name}\n")
            os.utime(path, (1_000_000_000, 1_000_000_000))  # gzip writes the time into its file

    return prepare


def texts(**content: str) -> Prepare:
    """Write files. In their names, `__` stands for a full stop."""

    def prepare(folder: Path) -> None:
        for name, text in content.items():
            path = folder / name.replace("__", ".")
            path.write_text(text)
            if text.startswith("#!"):
                path.chmod(0o755)

    return prepare


def nothing(_: Path) -> None:
    """Prepare nothing."""


def run(code: str, language: str, folder: Path, home: Path, *, programs: Path) -> Done:
    command = ["sh", "-e", "-c", code] if language == "sh" else [sys.executable, "-c", code]
    hidden = ("CELERIAC_", "XDG_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    env |= {"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(home), "XDG_RUNTIME_DIR": str(home)}
    out, err = home / "out", home / "err"  # files: a process that is left alive would hold a pipe open
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True
        )
    try:
        status = process.wait(TIMEOUT)
        assert status == 0, err.read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return Done(folder, out.read_text(), err.read_text())


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """Programs that a recipe calls: `celeriac`, and stubs of others."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name, text in {
        "celeriac": f'exec {sys.executable} -m celeriac "$@"',
        "convert": 'cp "$3" "$4"',
        "make": 'echo "$@"',
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return folder


def folder_of(title: str, folder: Path) -> tuple[Path, Path]:
    """Return a new folder for a recipe, with its files, and a home."""
    work, home = folder / "work", folder / "home"
    work.mkdir(parents=True)
    home.mkdir(mode=0o700)
    PREPARE[title](work)
    return work, home


def test_each_recipe_has_a_check():
    assert RECIPES.keys() == CHECKS.keys()
    assert len(RECIPES) >= 25
    assert sum(each.parallel is not None for each in RECIPES.values()) >= 10


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_does_what_it_says(title: str, tmp_path: Path, programs: Path) -> None:
    work, home = folder_of(title, tmp_path / "ours")
    CHECKS[title](run(RECIPES[title].code, RECIPES[title].language, work, home, programs=programs))


@pytest.mark.parametrize("title", [title for title, each in RECIPES.items() if each.parallel])
def test_gnu_parallel_does_the_same(title: str, tmp_path: Path, programs: Path) -> None:
    program("parallel")  # without it, the test is skipped
    parallel = str(RECIPES[title].parallel)
    work, home = folder_of(title, tmp_path / "ours")
    ours = run(RECIPES[title].code, "sh", work, home, programs=programs)
    work, home = folder_of(title, tmp_path / "theirs")
    (home / ".parallel").mkdir()
    (home / ".parallel" / "will-cite").touch()
    theirs = run(parallel, "sh", work, home, programs=programs)
    assert (ours.out, ours.files()) == (theirs.out, theirs.files())


# — the checks, in the order of the page —


@recipe("Compress many files", files("a b.html", "c.html", "d.txt"))
def _(done: Done) -> None:
    assert gzip.decompress((done.folder / "a b.html.gz").read_bytes()) == b"the words of a b.html\n"
    assert [*done.files()] == ["a b.html.gz", "c.html.gz", "d.txt"]


@recipe("Take file names from another program", files('deep/er/it\'s a "page".html', "$HOME.html", "x.txt"))
def _(done: Done) -> None:
    assert [*done.files()] == ["$HOME.html.gz", 'deep/er/it\'s a "page".html.gz', "x.txt"]


@recipe("Move many files into a folder", files("a.jpeg", "b c.jpeg", "d.png", "pictures/old.jpeg"))
def _(done: Done) -> None:
    assert [*done.files()] == ["d.png", "pictures/a.jpeg", "pictures/b c.jpeg", "pictures/old.jpeg"]


@recipe("Make a thumbnail of each picture", files("a.jpg", "b c.jpg"))
def _(done: Done) -> None:
    assert [*done.files()] == ["a.jpg", "b c.jpg", "thumb_a.jpg", "thumb_b c.jpg"]
    assert done.read("thumb_b c.jpg") == "the words of b c.jpg\n"


def compressed(folder: Path) -> None:
    for name in ("a.txt", "b c.txt"):
        (folder / f"{name}.gz").write_bytes(gzip.compress(f"the words of {name}".encode(), mtime=0))


@recipe("Unpack each file into one without the extension", compressed)
def _(done: Done) -> None:
    assert [*done.files()] == ["a.txt", "a.txt.gz", "b c.txt", "b c.txt.gz"]
    assert done.read("b c.txt") == "the words of b c.txt"


def archives(folder: Path) -> None:
    for name in ("first", "second one"):
        files("inside.txt")(folder)
        with tarfile.open(folder / f"{name}.tar", "w") as archive:
            archive.add(folder / "inside.txt", "inside.txt")
        (folder / "inside.txt").unlink()


@recipe("Run several commands for each file", archives)
def _(done: Done) -> None:
    assert [*done.files()] == ["first/inside.txt", "first.tar", "second one/inside.txt", "second one.tar"]


@recipe("Change the path of a result", files("in/a.txt", "in/deep/b c.txt", "out/readme"))
def _(done: Done) -> None:
    assert (done.read("out/a.words"), done.read("out/b c.words")) == ("4\n", "5\n")


@recipe("Replace nested loops", nothing)
def _(done: Done) -> None:
    assert done.out.splitlines() == [f"{sex} {size}" for sex in "MF" for size in ("S", "M", "L", "XL")]


@recipe("Link two lists", nothing)
def _(done: Done) -> None:
    assert done.out == "Ada lives in Rome\nBo lives in Oslo\nCem lives in Lima\n"


@recipe("Read a table with a header", texts(people__csv="name,age\nAda,36\nBo,7\n"))
def _(done: Done) -> None:
    assert done.out == "Ada is 36 years old\nBo is 7 years old\n"


@recipe("Keep the order of the input", nothing)
def _(done: Done) -> None:
    assert done.out == "4\n3\n2\n1\n"


@recipe("Mark each line with its value", nothing)
def _(done: Done) -> None:
    assert done.out.splitlines()[:3] == ["north\t1", "north\t2", "north\tnorth is done"]


@recipe("Number the results", files("a.log", "b c.log"))
def _(done: Done) -> None:
    assert (done.read("old-1.txt"), done.read("old-2.txt")) == ("the words of a.log\n", "the words of b c.log\n")


@recipe("Run a list of commands", texts(commands__txt="echo a | tr a b\nprintf '%s\\n' \"x  y\"\n"))
def _(done: Done) -> None:
    assert done.out == "b\nx  y\n"


@recipe("Split a large input", nothing)
def _(done: Done) -> None:
    assert done.out == "100000\n"


@recipe("Run jobs in the order of their needs", nothing)
def _(done: Done) -> None:
    with tarfile.open(done.folder / "site.tar") as archive:
        assert archive.getnames() == ["sorted.txt", "count.txt"]
    assert done.read("count.txt").strip() == "1000"


@recipe("Give a job its input", texts(names__txt="Cem\nAda\n"))
def _(done: Done) -> None:
    assert (done.read("text.out"), done.read("file.out")) == ("a\nb\n", "Ada\nCem\n")


@recipe("Clean up, whatever happened", nothing)
def _(done: Done) -> None:
    assert done.out == "exit status 1\n"
    assert [*done.files()] == ["steps.jsonl"]


@recipe("Run the urgent ones first, and look before", nothing)
def _(done: Done) -> None:
    lines = done.out.splitlines()
    assert [line.split()[-1] for line in lines if "echo" in line] == ["invoice", "report", "archive"]
    assert [line for line in lines if "echo" not in line][-3:] == ["invoice", "report", "archive"]


TWICE = "#!/bin/sh\necho try >> tries\n[ $(wc -l < tries) -ge 3 ]\n"


def fails_twice(folder: Path) -> None:
    texts(**{"sometimes-fails": TWICE})(folder)


@recipe("Try again after failures", fails_twice)
def _(done: Done) -> None:
    assert done.read("tries") == "try\n" * 3


@recipe("Give each command a time limit", nothing)
def _(done: Done) -> None:
    assert "2 tasks: 1 succeeded, 1 failed" in done.out
    assert re.search(r"^stuck +failed +1 +it ran longer than 0.5 s", done.out, re.MULTILINE)


COUNTED = """#!/bin/sh
mkdir "running-$1"
ls -d running-* | wc -l >> at-once
sleep 0.3
rmdir "running-$1"
"""


@recipe("Spare a server", texts(download=COUNTED))
def _(done: Done) -> None:
    at_once = [int(line) for line in done.read("at-once").split()]
    assert len(at_once) == 3
    assert max(at_once) == 2
    assert done.read("sum").endswith("-\n")


@recipe("Share memory and GPUs", nothing)
def _(done: Done) -> None:
    assert {done.read("gpu-1"), done.read("gpu-2")} <= {"0\n", "1\n"}
    assert done.read("threads") == "1\n"


@recipe("Keep the files that each job makes", nothing)
def _(done: Done) -> None:
    assert done.out.split()[-1] == "7"
    kept = [name for name in done.files() if ".artifacts/" in name]
    assert kept == ["out/north.artifacts/sums.csv", "out/south.artifacts/sums.csv"]


@recipe("Pass a password", texts(deploy='#!/bin/sh\necho "$TOKEN" > received\necho "the token is $TOKEN"\n'))
def _(done: Done) -> None:
    assert done.read("received") == "k7-secret\n"
    assert "k7-secret" not in done.out + done.err
    assert "the token is ******" in done.out


@recipe("Try all combinations of parameters", texts(train='#!/bin/sh\necho "loss 0.$2 lr $1"\n'))
def _(done: Done) -> None:
    assert done.out.startswith("loss 0.1 lr 0.")
    assert len([*(done.folder / "results").glob("*.out")]) == 6


@recipe("Run commands while another program writes them", nothing)
def _(done: Done) -> None:
    assert {name: text.decode().strip() for name, text in done.files().items()} == {
        "mon.txt": "mon",
        "tue.txt": "tue",
        "wed.txt": "wed",
    }


@recipe("Go on after an interruption", nothing)
def _(done: Done) -> None:
    assert sorted(done.read("done.txt").split()) == ["1", "2", "3", "4", "5"]


@recipe("See why jobs failed, and run them again", texts(checks__txt="echo fine\nls repaired\necho fine, too\n"))
def _(done: Done) -> None:
    assert re.search(r"^2 +failed +1 +exit code 2", done.out, re.MULTILINE)
    assert "repaired" in done.out + done.err
    assert "1 succeeded" in done.err + done.out


@recipe("Find the tasks that took long", nothing)
def _(done: Done) -> None:
    assert re.findall(r"^for-\S+", done.out, re.MULTILINE) == ["for-1.2", "for-1.2", "for-0.1"]


SOME = texts(jobs__txt="true\nfalse\ntrue\n")


@recipe("Use the result in a script", SOME)
def _(done: Done) -> None:
    assert done.out == "2 of 3\n"


@recipe("Do something when a run ends", SOME)
def _(done: Done) -> None:
    assert json.loads(done.read("ended.json"))["failed"] == 1


@recipe("Follow every event", SOME)
def _(done: Done) -> None:
    assert done.out.splitlines()[-1] == "3"


@recipe("Send a page about a run", SOME)
def _(done: Done) -> None:
    assert "<html" in done.read("run.html")
    assert "jobs" in done.read("run.html")


@recipe("Use the workers of many machines", texts(jobs__jsonl='{"command": "echo a > a"}\n{"command": "echo b > b"}\n'))
def _(done: Done) -> None:
    assert (done.read("a"), done.read("b")) == ("a\n", "b\n")


@recipe("Share a limit between two runs", texts(load=COUNTED))
def _(done: Done) -> None:
    assert done.read("at-once").split() == ["1"] * 3


@recipe("Submit runs to a service", texts(night__txt="echo a > a\n", day__txt="echo b > b\n"))
def _(done: Done) -> None:
    assert (done.read("a"), done.read("b")) == ("a\n", "b\n")
    assert "1 task: 1 succeeded" in done.out


@recipe("Wait for results, as they come", nothing)
def _(done: Done) -> None:
    assert done.out == "success\nsuccess\n"


@recipe("Queue what the results ask for", nothing)
def _(done: Done) -> None:
    ends = [line.split()[:2] for line in done.out.splitlines() if "success" in line]
    assert ends == [["build", "success"], ["test", "success"]]
