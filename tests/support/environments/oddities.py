"""The oddities of an environment. Each changes a plan."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from random import Random

from tests.support.cli_runner import small_files
from tests.support.environments.plan import (
    CANNOT,
    COMMAND_FAILED,
    COMMANDS,
    FOLDER,
    INTERRUPTED,
    MAX_ODDITIES,
    OUTPUT_LOST,
    SERVICE_TIME,
    WAIT_TIME,
    CloseReader,
    CloseTerminal,
    Plan,
    Resize,
    Send,
    Stream,
    Terminal,
    tell_to_stop,
)

MAX_DELAY = 1.5  # seconds until something happens
UNKNOWN_USERS = 54_321, 60_000
LATIN_1 = os.fsdecode(b"caf\xe9")
MIB = 1024**2
ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)
PASSES = (signal.SIGPIPE, signal.SIGWINCH, signal.SIGUSR1)

Oddity = Callable[[Plan, Random], None]

# — streams —


def closed_streams(plan: Plan, random: Random) -> None:
    closed = random.choice(["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
    plan.is_silent |= "2>&-" in closed
    plan.allowed |= {CANNOT} if "<&-" in closed else set()  # a stream of jobs needs its input
    plan.allowed |= {OUTPUT_LOST}
    plan.start_in_shell(f"exec {closed};", rank=9)


def full_streams(plan: Plan, random: Random) -> None:
    plan.is_silent = True
    plan.allowed |= {OUTPUT_LOST}
    plan.start_in_shell(random.choice(["exec >/dev/full;", "exec 2>/dev/full;", "exec >/dev/full 2>&1;"]), rank=9)


def gone_reader(plan: Plan, random: Random) -> None:
    plan.is_silent = True
    plan.allowed |= {OUTPUT_LOST}
    plan.actions.append((random.uniform(0.0, MAX_DELAY), CloseReader()))


def sizes(plan: Plan, random: Random) -> None:
    plan.env["COLUMNS"], plan.env["LINES"] = str(random.randrange(301)), str(random.randrange(100))
    plan.env["TERM"] = random.choice(["dumb", "xterm-256color", "", "no-such-terminal"])


def terminal(plan: Plan, random: Random) -> None:
    chosen = (Stream.PIPE, Stream.PIPE, Stream.PIPE)
    while Stream.TERMINAL not in chosen:
        chosen = (random.choice(list(Stream)), random.choice(list(Stream)), random.choice(list(Stream)))
    plan.terminal = Terminal(random.randrange(301), random.randrange(100), chosen)
    for _ in range(random.choice([0, 0, 1, 5])):
        resize = Resize(random.randrange(301), random.randrange(100))
        plan.actions.append((random.uniform(0.0, MAX_DELAY), resize))
    if random.random() < 0.4:
        plan.is_silent = True
        plan.allowed |= {OUTPUT_LOST, INTERRUPTED, -signal.SIGHUP}
        plan.allowed |= {CANNOT}  # what is read from the terminal ends
        plan.actions.append((random.uniform(0.0, MAX_DELAY), CloseTerminal()))


def locale(plan: Plan, random: Random) -> None:
    plan.env["LC_ALL"] = random.choice(["C", "POSIX", "C.UTF-8", "de_DE.ISO-8859-1", "no-such-locale", ""])
    plan.env |= random.choice([{}, {"PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, {"PYTHONIOENCODING": "latin-1"}])


# — limits —


def descriptors(plan: Plan, random: Random) -> None:
    plan.may_wait = True
    plan.allowed |= {CANNOT, COMMAND_FAILED}
    limit = random.choice([random.randrange(12, 40), random.randrange(40, 300)])
    plan.before.append((8, ("prlimit", f"--nofile={limit}:{limit}")))


def file_sizes(plan: Plan, random: Random) -> None:
    plan.may_wait = True
    plan.allowed |= {OUTPUT_LOST, CANNOT}
    plan.before.append((8, small_files(random.choice([0, 100, 4096, 20_000, 100_000]))))


def memory(plan: Plan, random: Random) -> None:
    plan.is_short_of_memory = True
    plan.allowed |= {CANNOT, COMMAND_FAILED}
    plan.before.append((8, ("prlimit", f"--as={random.randrange(60, 800) * MIB}")))


def processes(plan: Plan, random: Random) -> None:
    plan.is_short_of_memory = plan.may_wait = True
    unknown_user(plan, random)
    plan.allowed |= {COMMAND_FAILED}
    limit = random.randrange(1, 25)
    plan.before.append((6, ("prlimit", f"--nproc={limit}:{limit}")))


# — folders and users —


def no_temporary_folder(plan: Plan, random: Random) -> None:
    plan.allowed |= {CANNOT}
    plan.env["TMPDIR"] = random.choice([f"{FOLDER}/no/such", "/proc", "", LATIN_1])


def state_folder(plan: Plan, random: Random) -> None:
    state = random.choice(
        [f"{FOLDER}/home", "/proc/x", "relative", "", f"{FOLDER}/{LATIN_1}", "/dev/null", "/dev/full"]
    )
    plan.allowed |= {CANNOT}
    plan.env |= {"XDG_STATE_HOME": state, "XDG_RUNTIME_DIR": random.choice([state, "/dev/null", ""])}


def deleted_folder(plan: Plan, random: Random) -> None:
    plan.allowed |= {CANNOT}
    plan.start_in_shell("mkdir gone; cd gone; rmdir ../gone;", rank=7)


def other_folder(plan: Plan, random: Random) -> None:
    plan.allowed |= {CANNOT}
    name = random.choice([LATIN_1, "a" * 200, "new\nline", "\x1b[31m", " "])
    plan.start_in_shell(f"mkdir '{name}'; cp *.* '{name}' 2>&-; cd '{name}';", rank=7)


def unknown_user(plan: Plan, random: Random) -> None:
    plan.allowed |= {CANNOT}
    plan.env |= {"HOME": None, "XDG_STATE_HOME": random.choice([None, f"{FOLDER}/state"])}
    rights = ("--inh-caps", "+dac_override", "--ambient-caps", "+dac_override")
    plan.before.append((5, ("setpriv", "--reuid", str(random.randrange(*UNKNOWN_USERS)), "--clear-groups", *rights)))


def private_folder(plan: Plan, random: Random) -> None:
    plan.allowed |= {CANNOT, COMMAND_FAILED}
    plan.owner = random.randrange(*UNKNOWN_USERS)
    plan.before.append((5, ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")))


def full_file_system(plan: Plan, random: Random) -> None:
    plan.allowed |= {OUTPUT_LOST, CANNOT}
    plan.hides_files = plan.may_wait = True
    plan.env |= {"XDG_STATE_HOME": None, "HOME": "/mnt", "TMPDIR": random.choice(["/mnt", None])}
    size = random.choice([16, 64, 200, 400])
    script = (
        f"mount -t tmpfs -o size={size}k x /mnt && cp *.* /mnt; cd /mnt; head -c {random.randrange(200)}k /dev/zero"
    )
    plan.before.append((1, ("unshare", "-m", "sh", "-c", f'{{ {script} >filler; }} 2>&-; exec "$@"', "sh")))


def read_only_file_system(plan: Plan, random: Random) -> None:
    plan.allowed |= {CANNOT, COMMAND_FAILED}
    script = 'mount --bind "$PWD" "$PWD" && mount -o remount,ro,bind "$PWD" && cd "$PWD" &&'
    plan.before.append((1, ("unshare", "-m", "sh", "-c", f'{script} exec "$@"', "sh")))


def no_proc(plan: Plan, random: Random) -> None:
    plan.allowed |= {CANNOT}
    plan.before.append((1, ("unshare", "-m", "sh", "-c", 'umount -l /proc && exec "$@"', "sh")))


# — signals —


def ending_signal(plan: Plan, random: Random) -> None:
    number = random.choice(ENDS)
    plan.allowed |= {INTERRUPTED, -number}
    plan.actions.append((random.uniform(0.0, MAX_DELAY), Send(number)))
    if random.random() < 0.3:  # once more
        plan.actions.append((random.uniform(0.0, MAX_DELAY), Send(number)))


def passing_signal(plan: Plan, random: Random) -> None:
    number = random.choice(PASSES)
    if number != signal.SIGWINCH:
        plan.allowed |= {-number}
    plan.actions.append((random.uniform(0.0, MAX_DELAY), Send(number)))


def stop(plan: Plan, random: Random) -> None:
    begin, number = random.uniform(0.0, MAX_DELAY), random.choice([signal.SIGTSTP, signal.SIGSTOP])
    plan.actions += [(begin, Send(number)), (begin + random.uniform(0.0, 1.0), Send(signal.SIGCONT))]


ODDITIES: tuple[Oddity, ...] = (
    *(closed_streams, full_streams, gone_reader, sizes, terminal, terminal, locale),
    *(descriptors, file_sizes, memory, no_temporary_folder, state_folder, deleted_folder, other_folder),
    *(ending_signal, ending_signal, passing_signal, stop),
)
ODDITIES_OF_ROOT: tuple[Oddity, ...] = (
    *(processes, unknown_user, private_folder, full_file_system, read_only_file_system, no_proc),
)
EXCLUSIVE: set[Oddity] = {
    *(deleted_folder, other_folder, private_folder, full_file_system, read_only_file_system, no_proc, unknown_user),
    processes,
}
"""At most one of these: each changes the working folder, the mounts or the rights."""


def draw_plan(seed: str, *, is_root: bool) -> Plan:
    """Return the plan of a seed."""
    random = Random(seed)
    plan = Plan(seed, random.choice(COMMANDS), {"XDG_STATE_HOME": f"{FOLDER}/state", "CELERIAC_LEDGER": None})
    pool = ODDITIES + (ODDITIES_OF_ROOT if is_root else ())
    chosen = list(dict.fromkeys(random.sample(pool, random.randint(0, MAX_ODDITIES))))
    exclusive = [oddity for oddity in chosen if oddity in EXCLUSIVE]
    for oddity in (oddity for oddity in chosen if oddity not in exclusive[1:]):
        plan.names.append(oddity.__name__)
        oddity(plan, random)
    if plan.command.is_service:
        tell_to_stop(plan, random.uniform(*SERVICE_TIME))
    elif plan.may_wait:
        tell_to_stop(plan, WAIT_TIME)
        if processes.__name__ in plan.names:  # a command that waits for a process counts as running
            tell_to_stop(plan, WAIT_TIME + 10.0)
    plan.actions.sort(key=lambda action: action[0])
    return plan
