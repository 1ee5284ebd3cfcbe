"""A plan: one command line, the environment that it gets, and what happens to it. Drawn from a seed alone."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from enum import Enum

MAX_ODDITIES = 3
SERVICE_TIME = 1.0, 4.0  # seconds until a service is told to stop
WAIT_TIME = 40.0  # seconds until a run that may wait for ever is told to stop
JOBS = 6
STARTED = "started.log"  # the commands of a job file write their numbers to it
CANNOT, OUTPUT_LOST, COMMAND_FAILED, INTERRUPTED = 2, 1, 1, 130  # exit statuses
FOLDER, REDIS, PORT = "{folder}", "{redis}", "{port}"  # the runner puts the real ones in their place
LEDGER = ("--ledger", "ledger.db")
AT_REDIS = ("--broker", REDIS)


@dataclass(frozen=True)
class Command:
    """A command line, and the exit statuses that it has in an ordinary environment."""

    args: tuple[str, ...]
    statuses: frozenset[int] = frozenset({0})
    starts: int = 0
    """How many commands of the job file start."""

    stdin: bytes = b""
    is_service: bool = False
    """Whether it ends only when it is told to."""

    partner: tuple[str, ...] = ()
    """A command line that runs meanwhile, in an ordinary environment. It is told to stop afterwards."""


class Stream(Enum):
    """The kind of a standard stream."""

    PIPE = "a pipe"
    TERMINAL = "the terminal"


@dataclass(frozen=True)
class Terminal:
    """A terminal, which controls the process."""

    columns: int
    rows: int
    streams: tuple[Stream, Stream, Stream]
    """Standard input, output and error."""


@dataclass(frozen=True)
class Send:
    """Send a signal."""

    number: signal.Signals

    def __str__(self) -> str:
        return self.number.name


@dataclass(frozen=True)
class Resize:
    """Change the size of the terminal, which sends WINCH."""

    columns: int
    rows: int


@dataclass(frozen=True)
class CloseTerminal:
    """Close the other end of the terminal, which sends HUP."""


@dataclass(frozen=True)
class CloseReader:
    """Close the other end of standard output and standard error, as `head` does."""


Action = Send | Resize | CloseTerminal | CloseReader


@dataclass
class Plan:
    """Each oddity changes it."""

    seed: str
    command: Command
    env: dict[str, str | None] = field(default_factory=dict)
    """None removes a variable."""

    before: list[tuple[int, tuple[str, ...]]] = field(default_factory=list)
    """Programs that start the command line, each with its rank: the lowest is the outermost."""

    allowed: set[int] = field(default_factory=set)
    """The exit statuses that the environment may cause."""

    is_silent: bool = False
    """Whether nothing can be read from standard error."""

    may_wait: bool = False
    """Whether a run may wait for a disk, descriptors or processes, and say so, until it is told to stop."""

    is_short_of_memory: bool = False
    hides_files: bool = False
    """Whether the files that the commands write cannot be seen from outside."""

    owner: int | None = None
    """The user that owns the folder; None for the user of the tests."""

    terminal: Terminal | None = None
    actions: list[tuple[float, Action]] = field(default_factory=list)
    """What happens to the process, and when: in seconds after its start."""

    names: list[str] = field(default_factory=list)
    """The names of the oddities."""

    def start_in_shell(self, script: str, *, rank: int) -> None:
        self.before.append((rank, ("sh", "-c", f'{script} exec "$@"', "sh")))

    @property
    def started_by(self) -> list[str]:
        return [word for _, words in sorted(self.before, key=lambda item: item[0]) for word in words]

    @property
    def signals(self) -> set[signal.Signals]:
        """The signals that the process gets."""
        sent = {action.number for _, action in self.actions if isinstance(action, Send)}
        if any(isinstance(action, CloseTerminal) for _, action in self.actions):
            sent.add(signal.SIGHUP)
        return sent


def replay_line(seed: str) -> str:
    """Return the command that repeats one run."""
    first, _, number = seed.rpartition("/")
    return f"CELERIAC_SEED={first} CELERIAC_RUN={number} pytest -m fault tests/faults/test_environments.py"


RUN = ("run", "jobs.jsonl", "-j2")
COMMANDS = (
    Command(RUN, starts=JOBS),
    Command((*RUN, "--json"), starts=JOBS),
    Command((*RUN, "--quiet", "--events", "events"), starts=JOBS),
    Command((*RUN, "--ledger", "none", "-o", "out"), starts=JOBS),
    Command((*RUN, *LEDGER), starts=JOBS),
    Command((*RUN, "--resume", *LEDGER), frozenset({0, 2})),
    Command(("run", "failing.txt"), frozenset({1})),
    Command(("run", "bad.jsonl"), frozenset({2})),
    Command(("run", "missing.txt"), frozenset({2})),
    Command(("run", "-", "--format", "lines"), starts=1, stdin=f"echo 1 >> {STARTED}\n".encode()),
    Command(("run", "jobs.jsonl", "--dry-run")),
    Command(("run", "--", "sh", "-c", "cat >&2; exit 7"), frozenset({7}), stdin=b"x\n" * 40_000),
    Command(("run", "--", "true")),
    Command(("submit", "jobs.jsonl", *LEDGER)),
    Command(("submit", "jobs.jsonl", "--json", *LEDGER)),
    Command(("runs",), frozenset({0, 2})),
    Command(("runs", *LEDGER)),
    Command(("show", "--json"), frozenset({0, 2})),
    Command(("show", "old", *LEDGER)),
    Command(("logs", "old", "1", *LEDGER)),
    Command(("logs", "old", "1", "--err", "--follow", *LEDGER)),
    Command(("explain", "1"), frozenset({0, 1})),
    Command(("explain", "1", *LEDGER), frozenset({0, 1})),
    Command(("cancel", "no-such-key"), frozenset({1})),
    Command(("cancel", "--run", "waiting", "1", *LEDGER)),
    Command(("retry", "old", *LEDGER), frozenset({1})),
    Command(("retry", "waiting", *LEDGER)),
    Command(("prune", "--keep", "3", *LEDGER)),
    Command(("config",)),
    Command(("--help",)),
    Command(("worker", "--help")),
    Command(("--version",)),
    Command(("schema", "run")),
    # services, and the servers that they use
    Command(("serve", "-j2", "--local", *LEDGER), is_service=True),
    Command(("serve", *AT_REDIS, *LEDGER), is_service=True, partner=("worker", "-c2", *AT_REDIS)),
    Command(("worker", "-c2", *AT_REDIS), is_service=True, partner=("run", "at-redis.jsonl", *AT_REDIS)),
    Command(("worker", "--log-format", "json", *AT_REDIS), is_service=True),
    Command(("worker", "--pool", "prefork", "-c2", *AT_REDIS), is_service=True),
    Command(("worker", "--broker", "redis://127.0.0.1:1/0"), is_service=True),
    Command(("broker", "--port", PORT), is_service=True),
    Command(("run", "at-redis.jsonl", *AT_REDIS, "--ledger", "none"), partner=("worker", "-c2", *AT_REDIS)),
    Command(("status", *AT_REDIS, *LEDGER), partner=("worker", "-c2", *AT_REDIS)),
    Command(("status", "--json", *AT_REDIS)),
    Command(("status", "--broker", "redis://127.0.0.1:1/0"), frozenset({1})),
    Command(("drain", "w1", "--wait", "20", *AT_REDIS), frozenset({0, 1}), partner=("worker", "--name=w1", *AT_REDIS)),
    Command(("cancel", "1", *AT_REDIS), frozenset({0, 1}), partner=("run", "at-redis.jsonl", *AT_REDIS)),
)


def tell_to_stop(plan: Plan, delay: float) -> None:
    """Send TERM after a delay. Without it, a program that waits or serves would not end."""
    plan.actions.append((delay, Send(signal.SIGTERM)))
    plan.allowed |= {INTERRUPTED, -signal.SIGTERM}
