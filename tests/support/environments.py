"""Random environments for `celeriac`: limits, closed and full streams, users, file systems, locales, sizes, signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from uuid import uuid4

import psutil

from tests.support.cli_runner import MARK, WAIT_TIMEOUT

HANG = 120.0  # seconds after which a run counts as hanging
MAX_ODDITIES = 3
MAX_SIGNAL_DELAY = 1.5  # seconds
UNKNOWN_USER = 54_321
STARTED = "started.log"  # the commands of a job file write their numbers to it
JOBS = 6
CANNOT, OUTPUT_LOST, COMMAND_FAILED, INTERRUPTED = 2, 1, 1, 130  # exit statuses
IS_ROOT = os.geteuid() == 0
LATIN_1 = os.fsdecode(b"caf\xe9")


@dataclass(frozen=True)
class Command:
    """A command line, and the exit statuses that it has in an ordinary environment."""

    args: tuple[str, ...]
    statuses: frozenset[int] = frozenset({0})
    starts: int = 0
    """How many commands of the job file start."""

    stdin: bytes = b""


@dataclass
class Place:
    """How a command line is started: each oddity changes it."""

    folder: Path
    env: dict[str, str | None] = field(default_factory=dict)
    """None removes a variable."""

    before: list[tuple[int, tuple[str, ...]]] = field(default_factory=list)
    """Programs that start it, each with its rank: the lowest is the outermost."""

    allowed: set[int] = field(default_factory=set)
    """The exit statuses that the environment may cause."""

    is_silent: bool = False
    """Whether nothing can be read from standard error."""

    signal: tuple[int, float] | None = None
    """A signal, and when it is sent, in seconds after the start."""

    names: list[str] = field(default_factory=list)

    def start_in_shell(self, script: str, *, rank: int) -> None:
        self.before.append((rank, ("sh", "-c", f'{script} exec "$@"', "sh")))


@dataclass(frozen=True)
class Finding:
    """One run, and what was wrong with it."""

    problem: str
    command: Command
    place: Place
    status: int | None
    err: str

    def __str__(self) -> str:
        return f"{self.problem}: {self.command.args} in {self.place} ended with {self.status}:\n{self.err[-3000:]}"


def commands() -> list[Command]:
    run = ("run", "jobs.jsonl", "-j2")
    return [
        Command(run, starts=JOBS),
        Command((*run, "--json"), starts=JOBS),
        Command((*run, "--quiet", "--events", "events"), starts=JOBS),
        Command((*run, "--ledger", "none", "-o", "out"), starts=JOBS),
        Command((*run, "--ledger", "ledger.db"), starts=JOBS),
        Command((*run, "--resume", "--ledger", "ledger.db"), starts=JOBS),
        Command(("run", "failing.txt"), frozenset({1})),
        Command(("run", "bad.jsonl"), frozenset({2})),
        Command(("run", "missing.txt"), frozenset({2})),
        Command(("run", "-", "--format", "lines"), starts=1, stdin=f"echo 1 >> {STARTED}\n".encode()),
        Command(("run", "jobs.jsonl", "--dry-run")),
        Command(("run", "--", "sh", "-c", "cat >&2; exit 7"), frozenset({7}), stdin=b"x" * 100_000),
        Command(("run", "--", "true")),
        Command(("submit", "jobs.jsonl", "--ledger", "ledger.db")),
        Command(("runs",), frozenset({0, 2})),
        Command(("show", "--json"), frozenset({0, 2})),
        Command(("logs", "jobs", "1"), frozenset({0, 1, 2})),
        Command(("explain", "1"), frozenset({0, 1})),
        Command(("cancel", "no-such-key"), frozenset({1})),
        Command(("retry", "jobs"), frozenset({0, 2})),
        Command(("prune", "--keep", "3"), frozenset({0, 2})),
        Command(("status", "--broker", "redis://localhost:1/0"), frozenset({1, 2})),
        Command(("config",)),
        Command(("--help",)),
        Command(("--version",)),
    ]


# — oddities —


def closed_streams(place: Place, random: Random) -> None:
    closed = random.choice(["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
    place.is_silent |= "2>&-" in closed
    place.allowed |= {CANNOT} if "<&-" in closed else set()  # a stream of jobs needs its input
    place.allowed |= {OUTPUT_LOST}
    place.start_in_shell(f"exec {closed};", rank=9)


def full_streams(place: Place, random: Random) -> None:
    place.is_silent = True
    place.allowed |= {OUTPUT_LOST}
    place.start_in_shell(random.choice(["exec >/dev/full;", "exec 2>/dev/full;", "exec >/dev/full 2>&1;"]), rank=9)


def size(place: Place, random: Random) -> None:
    place.env["COLUMNS"], place.env["LINES"] = str(random.randrange(301)), str(random.randrange(100))
    place.env["TERM"] = random.choice(["dumb", "xterm-256color", "", "no-such-terminal"])


def locale(place: Place, random: Random) -> None:
    place.env["LC_ALL"] = random.choice(["C", "POSIX", "C.UTF-8", "de_DE.ISO-8859-1", "no-such-locale", ""])
    place.env |= random.choice([{}, {"PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, {"PYTHONIOENCODING": "latin-1"}])


def descriptors(place: Place, random: Random) -> None:
    place.allowed |= {CANNOT}
    place.before.append((8, ("prlimit", f"--nofile={(limit := random.randrange(40, 300))}:{limit}")))


def file_sizes(place: Place, random: Random) -> None:
    place.allowed |= {OUTPUT_LOST, CANNOT}
    place.before.append((8, ("prlimit", f"--fsize={random.choice([0, 100, 4096, 20_000, 100_000])}")))


def no_temporary_folder(place: Place, random: Random) -> None:
    place.allowed |= {CANNOT}
    place.env["TMPDIR"] = random.choice([str(place.folder / "no" / "such"), "/proc", "", LATIN_1])


def state_folder(place: Place, random: Random) -> None:
    state = random.choice(
        [str(place.folder / "home"), "/proc/x", "relative", "", str(place.folder / LATIN_1), "/dev/null", "/dev/full"]
    )
    place.allowed |= {CANNOT}
    place.env |= {"XDG_STATE_HOME": state, "XDG_RUNTIME_DIR": random.choice([state, "/dev/null", ""])}


def deleted_folder(place: Place, random: Random) -> None:
    place.allowed |= {CANNOT}
    place.start_in_shell("mkdir gone; cd gone; rmdir ../gone;", rank=7)


def other_folder(place: Place, random: Random) -> None:
    place.allowed |= {CANNOT}
    name = random.choice([LATIN_1, "a" * 200, "new\nline", "\x1b[31m", " "])
    (place.folder / name).mkdir(exist_ok=True)
    place.start_in_shell(f"cp *.* '{name}' 2>&-; cd '{name}';", rank=7)


def unknown_user(place: Place, random: Random) -> None:
    place.allowed |= {CANNOT}
    place.env |= {"HOME": None, "XDG_STATE_HOME": random.choice([None, str(place.folder / "state")])}
    rights = ("--inh-caps", "+dac_override", "--ambient-caps", "+dac_override")
    place.before.append((5, ("setpriv", "--reuid", str(UNKNOWN_USER), "--clear-groups", *rights)))


def private_folder(place: Place, random: Random) -> None:
    place.allowed |= {CANNOT, COMMAND_FAILED}
    os.chown(place.folder, UNKNOWN_USER, UNKNOWN_USER)
    place.before.append((5, ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")))


def full_file_system(place: Place, random: Random) -> None:
    place.allowed |= {OUTPUT_LOST, CANNOT}
    place.env |= {"XDG_STATE_HOME": None, "HOME": "/mnt", "TMPDIR": random.choice(["/mnt", None])}
    size = random.choice([16, 64, 200, 400])
    script = (
        f"mount -t tmpfs -o size={size}k x /mnt && cp *.* /mnt; cd /mnt; head -c {random.randrange(200)}k /dev/zero"
    )
    place.before.append((1, ("unshare", "-m", "sh", "-c", f'{{ {script} >filler; }} 2>&-; exec "$@"', "sh")))


def read_only_file_system(place: Place, random: Random) -> None:
    place.allowed |= {CANNOT, COMMAND_FAILED}
    script = 'mount --bind "$PWD" "$PWD" && mount -o remount,ro,bind "$PWD" && cd "$PWD" &&'
    place.before.append((1, ("unshare", "-m", "sh", "-c", f'{script} exec "$@"', "sh")))


def no_proc(place: Place, random: Random) -> None:
    place.allowed |= {CANNOT}
    place.before.append((1, ("unshare", "-m", "sh", "-c", 'umount -l /proc && exec "$@"', "sh")))


def a_signal(place: Place, random: Random) -> None:
    number = random.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    place.allowed |= {INTERRUPTED, -number}
    place.signal = number, random.uniform(0.0, MAX_SIGNAL_DELAY)


ODDITIES: tuple[Callable[[Place, Random], None], ...] = (
    *(closed_streams, full_streams, size, locale, descriptors, file_sizes, no_temporary_folder, state_folder),
    *(deleted_folder, other_folder, a_signal),
)
ODDITIES_OF_ROOT = (unknown_user, private_folder, full_file_system, read_only_file_system, no_proc)
EXCLUSIVE = {
    *(deleted_folder, other_folder, private_folder, full_file_system, read_only_file_system, no_proc, unknown_user)
}
"""At most one of these: each changes the working folder, the mounts or the rights."""


def odd_place(folder: Path, random: Random) -> Place:
    """Return a place with some oddities, in a new folder with job files."""
    folder.mkdir()
    lines = (f'{{"key": "{n}", "command": "echo {n} >> {STARTED}"}}\n' for n in range(JOBS))
    (folder / "jobs.jsonl").write_text("".join(lines))
    (folder / "failing.txt").write_text("exit 3\n")
    (folder / "bad.jsonl").write_text('{"key": 1}\n')
    place = Place(folder, {"XDG_STATE_HOME": str(folder / "state"), "CELERIAC_LEDGER": None})
    pool = ODDITIES + (ODDITIES_OF_ROOT if IS_ROOT else ())
    chosen = random.sample(pool, random.randint(0, MAX_ODDITIES))
    exclusive = [oddity for oddity in chosen if oddity in EXCLUSIVE]
    for oddity in (oddity for oddity in chosen if oddity not in exclusive[1:]):
        place.names.append(oddity.__name__)
        oddity(place, random)
    return place


# — one run —


def run_once(folder: Path, random: Random) -> Finding | None:
    """Run one command line in one environment. Return what was wrong, if anything was."""
    place, command = odd_place(folder, random), random.choice(commands())
    mark = str(uuid4())
    variables = {**os.environ, **place.env, MARK: mark}
    started_by = [word for _, words in sorted(place.before, key=lambda item: item[0]) for word in words]
    process = subprocess.Popen(
        [*started_by, sys.executable, "-m", "celeriac", *command.args],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={name: value for name, value in variables.items() if value is not None},
        start_new_session=True,
    )
    try:
        if place.signal is not None:
            time.sleep(place.signal[1])  # the moment is what is random
            process.send_signal(place.signal[0])
        out, err = process.communicate(command.stdin, timeout=HANG)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        return Finding("a hang", command, place, None, err.decode(errors="replace"))
    survivors = [other for other in psutil.process_iter() if mark_of(other) == mark]
    if process.returncode < 0:  # a supervisor sees that the signal has ended its worker, and ends
        _, survivors = psutil.wait_procs(survivors, timeout=WAIT_TIMEOUT)
    text = err.decode(errors="replace")
    problem = problem_of(command, place, process.returncode, text, len(out))
    if survivors:
        problem = f"surviving processes {survivors}"
    return None if problem is None else Finding(problem, command, place, process.returncode, text)


def problem_of(command: Command, place: Place, status: int, err: str, out_size: int) -> str | None:
    """Return what was wrong with a run that has ended."""
    if place.signal is not None and "KeyboardInterrupt" in err and "/celeriac/cli/" not in err:
        return None  # Python was still starting, and none of our lines had run
    if "bug in Celeriac" in err or ("Traceback" in err and "/celeriac/" in err):
        return "a traceback"
    if "Exception ignored" in err or "Fatal Python error" in err:
        return "an error of the interpreter"
    if status not in command.statuses | place.allowed:
        return f"a wrong exit status, not in {sorted(command.statuses | place.allowed)}"
    if status == CANNOT and CANNOT not in command.statuses and not err and not place.is_silent:
        return "an error without a word"
    started = [path.read_text().split() for path in place.folder.rglob(STARTED)]
    numbers = [number for numbers in started for number in numbers]
    if len(numbers) != len(set(numbers)):
        return "a command that ran twice"
    is_visible = full_file_system.__name__ not in place.names
    if status == 0 and is_visible and len(numbers) < command.starts:
        return "commands that did not run"
    return None


def mark_of(process: psutil.Process) -> str | None:
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else process.environ().get(MARK)
    except (psutil.Error, OSError):
        return None
