"""Measure one machine without a server: the queue, short commands beside rivals, start-up, reading a job file."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import large_file, pages, remembering, telemetry
from bench.table import Row, at_least, at_most

MANY = 1_000_000
TAKEN = 32
AT_ONCE = 4
COMMANDS = {2_000: (0.9, 5.0), 10_000: (1.0, 5.0)}
"""The numbers of short commands, each with its bars: our speed as a multiple of that of xargs, and of GNU parallel."""

START_ROUNDS = 15
ROUNDS = 9
PYTHON = sys.executable
COMPILED = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
"""The environment of the programs that are compared: they use compiled byte code, as an installed program does."""


def taking_from_the_queue() -> list[Row]:
    from celeriac.executor.priority_queue import PriorityQueue
    from celeriac.task.task import Task

    tasks = [Task(key=n, command="true", priority=n * 7919 % 1000, id="same") for n in range(MANY)]
    queue = PriorityQueue()
    for task in tasks:
        queue.push(task)
    ours = min(timed(lambda: take(queue)) for _ in range(ROUNDS))
    waiting = {task.key: task for task in tasks}

    def sort_and_pop() -> None:
        line = sorted(waiting.items(), key=lambda item: item[1].priority, reverse=True)
        for _ in range(TAKEN):
            line.pop(0)

    theirs = min(timed(sort_and_pop) for _ in range(ROUNDS))
    what = f"take {TAKEN} of {MANY:,} waiting tasks, against sorting all and popping"
    return [Row(what, milli(ours), milli(theirs), f"{theirs / ours:,.0f}x", "1,000x", at_least(theirs / ours, 1000))]


def take(queue: object) -> None:
    for _ in range(TAKEN):
        queue.take(queue.head().key)  # type: ignore[attr-defined]


MEMORY_OF_WAITING = f"""
import resource, time
from celeriac import Task
from celeriac.executor.priority_queue import PriorityQueue
queue = PriorityQueue()
def used(): return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
before = used()
for n in range({MANY}):
    queue.push(Task(key=f"job-{{n:07}}", command=("/bin/echo", str(n)), priority=n % 10), time.time())
print((used() - before) / {MANY})
"""


def memory_of_the_queue() -> list[Row]:
    each = float(subprocess.run([PYTHON, "-c", MEMORY_OF_WAITING], check=True, capture_output=True).stdout)
    return [
        Row(f"memory of a waiting task, of {MANY:,}", f"{each:,.0f} bytes", "", "", "1,024 bytes", at_most(each, 1024))
    ]


def short_commands(rounds: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        return [row for number in COMMANDS for row in short_commands_in(Path(folder), number, rounds)]


def short_commands_in(folder: Path, number: int, rounds: int) -> list[Row]:
    """Compare runs with a ledger. xargs starts a shell for each command, as parallel does.

    For the larger number parallel takes half a minute: it gets one round, and none in a quick run.
    """
    file, numbers = folder / f"{number}.jsonl", folder / f"{number}"
    file.write_text('{"command": ["/bin/true"]}\n' * number)
    numbers.write_text("".join(f"{n}\n" for n in range(number)))
    ledger = f"--ledger={folder / 'ledger.db'}"
    ours = [PYTHON, "-m", "celeriac", "run", "-q", ledger, f"-j{AT_ONCE}", str(file)]
    bars = COMMANDS[number]
    rivals = {
        "xargs": (["xargs", "-a", str(numbers), f"-P{AT_ONCE}", "-n1", "sh", "-c", "exec /bin/true"], bars[0]),
        "parallel": (["parallel", f"-j{AT_ONCE}", "-a", str(numbers), "/bin/true"], bars[1]),
    }
    is_slow = number > min(COMMANDS)
    if rounds == 1 and is_slow:
        del rivals["parallel"]
    rows = []
    for name, (command, bar) in rivals.items():
        what = f"{number:,} × `/bin/true`, {AT_ONCE} at a time, with a ledger, start-up included, against {name}"
        if shutil.which(name) is None:
            rows.append(Row(what, "", "NOT INSTALLED", "", f"{bar:g}x", None))
            continue
        pairs = [(wall(command), wall(ours)) for _ in range(1 if name == "parallel" and is_slow else rounds)]
        ratio = statistics.median(theirs / mine for theirs, mine in pairs)
        mine, theirs = (number / statistics.median(column) for column in ([p[1] for p in pairs], [p[0] for p in pairs]))
        all_ratios = ", ".join(f"{theirs / mine:.2f}" for theirs, mine in pairs)
        rows.append(
            Row(
                what,
                f"{mine:,.0f}/s",
                f"{theirs:,.0f}/s",
                f"{ratio:.2f}x ({all_ratios})",
                f"{bar:g}x",
                at_least(ratio, bar),
            )
        )
    return rows


def start_up() -> list[Row]:
    """Compare the start and end of a run with an empty Python program, in turn."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "one.jsonl")
        file.write_text('{"command": ["true"]}\n')
        with_ledger = ["-q", f"--ledger={file.with_suffix('.db')}", str(file)]
        return [
            start_up_of("celeriac run -q -- true", ["-q", "--", "true"], bar=5),
            start_up_of("celeriac run -q FILE", with_ledger, bar=8),
        ]


def start_up_of(what: str, arguments: Sequence[str], *, bar: float) -> Row:
    command, empty = [PYTHON, "-m", "celeriac", "run", *arguments], [PYTHON, "-c", "pass"]
    wall(command)  # compiles its byte code
    pairs = [(wall(empty), wall(command)) for _ in range(START_ROUNDS)]
    theirs, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(mine / their for their, mine in pairs)
    return Row(
        f"`{what}`, against `python -c pass`",
        milli(ours),
        milli(theirs),
        f"{ratio:.1f}x",
        f"at most {bar:g}x",
        at_most(ratio, bar),
    )


def help_at_once() -> list[Row]:
    ours = statistics.median(wall([PYTHON, "-m", "celeriac", "--help"]) for _ in range(10))
    click = statistics.median(wall([PYTHON, "-c", "import click"]) for _ in range(10))
    what = "`celeriac --help`, against importing click"
    return [Row(what, milli(ours), milli(click), f"{ours / click:.2f}x", "under 3x", at_most(ours, 3 * click))]


READING = """
import re, sys
from celeriac.runs.job_file import read_jobs
read_jobs(sys.argv[1])
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024)
"""


def reading_a_file() -> list[Row]:
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        for n in range(MANY):
            file.write(f'{{"key": "job-{n:07}", "command": ["/bin/echo", "{n}"], "priority": {n % 10}}}\n')
        file.flush()
        began = time.perf_counter()
        peak = float(subprocess.run([PYTHON, "-c", READING, file.name], check=True, capture_output=True).stdout)
        took = time.perf_counter() - began
    what = f"read and check {MANY:,} lines of JSON"
    reached = min(at_most(took, 30.0), at_most(peak, 1.5e9))
    return [Row(what, f"{took:.1f} s, {peak / 1e9:.2f} GB", "", "", "30 s, 1.5 GB", reached)]


def timed(work: Callable[[], object]) -> float:
    before = time.perf_counter()
    work()
    return time.perf_counter() - before


def wall(command: Sequence[str]) -> float:
    return timed(
        lambda: subprocess.run(command, check=True, env=COMPILED, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    )


def milli(seconds: float) -> str:
    return f"{seconds * 1e3:,.2f} ms"


def parts(rounds: int) -> dict[str, Callable[[], list[Row]]]:
    return {
        "taking": taking_from_the_queue,
        "memory": memory_of_the_queue,
        "short-commands": lambda: short_commands(rounds),
        "start": start_up,
        "help": help_at_once,
        "reading": reading_a_file,
        "large-file": lambda: large_file.start_and_interrupt(rounds),
        "ledger-million": remembering.million,
        "telemetry": lambda: [*telemetry.all_parts(), *pages.all_parts()],
    }
