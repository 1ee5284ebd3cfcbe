"""A scheduler of a cluster on this machine: the programs of Slurm and PBS, whose jobs are processes.

Its folder, `$FAKE_SCHEDULER`, has the file `nodes` with how many jobs run at once, a folder for each job, and `calls`
with the command line of each call. While the file `broken` exists, nothing can be submitted.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VARIABLE = "FAKE_SCHEDULER"
PROGRAMS = ("sbatch", "squeue", "scancel", "qsub", "qstat", "qdel")


class FakeScheduler:
    """The scheduler, as a test sees it."""

    def __init__(self, folder: Path, nodes: int) -> None:
        self.folder = folder
        (folder / "bin").mkdir(parents=True)
        (folder / "jobs").mkdir()
        self.set_nodes(nodes)
        for name in PROGRAMS:
            program = folder / "bin" / name
            program.write_text(f"#!{sys.executable} -I\n{Path(__file__).read_text()}")
            program.chmod(program.stat().st_mode | stat.S_IXUSR)

    @property
    def environment(self) -> dict[str, str]:
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return {"PATH": path, VARIABLE: str(self.folder)}

    def set_nodes(self, number: int) -> None:
        (self.folder / "nodes").write_text(str(number))

    def calls(self, program: str) -> list[list[str]]:
        """Return the arguments of each call of a program."""
        calls = self.folder / "calls"
        lines = [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []
        return [arguments for name, *arguments in lines if name == program]

    def scripts(self) -> list[str]:
        return [path.read_text() for path in self.folder.glob("jobs/*/script")]

    def jobs(self) -> dict[str, str]:
        """Return the states of the jobs that have not ended, by id. None begins here: only programs start jobs."""
        with locked(self.folder):
            return {job.name: state for job in all_jobs(self.folder) if (state := state_of(job)) != "ENDED"}

    def kill(self, number: str) -> None:
        """Kill a job, as when its node dies."""
        os.killpg(int((self.folder / "jobs" / number / "pid").read_text()), signal.SIGKILL)

    def close(self) -> None:
        for number, state in self.jobs().items():
            if state == "RUNNING":
                self.kill(number)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def state_of(job: Path) -> str:
    if (job / "cancelled").exists():
        return "ENDED"
    if not (job / "pid").exists():
        return "PENDING"
    try:
        status = Path(f"/proc/{(job / 'pid').read_text()}/stat").read_text()
    except FileNotFoundError:
        return "ENDED"
    return "ENDED" if status.rpartition(")")[2].split()[0] == "Z" else "RUNNING"


def all_jobs(folder: Path) -> list[Path]:
    return sorted((folder / "jobs").iterdir(), key=lambda job: int(job.name.partition(".")[0]))


def schedule(folder: Path) -> list[Path]:
    """Start pending jobs while there are nodes. Return all jobs."""
    jobs = all_jobs(folder)
    free = int((folder / "nodes").read_text()) - sum(state_of(job) == "RUNNING" for job in jobs)
    for job in [job for job in jobs if state_of(job) == "PENDING"][: max(0, free)]:
        facts = json.loads((job / "facts").read_text())
        with (job / "output").open("wb") as output:
            process = subprocess.Popen(
                ["sh", job / "script"],
                cwd=facts["cwd"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**facts["env"], "SLURM_JOB_ID": job.name, "PBS_JOBID": job.name, "PBS_O_WORKDIR": facts["cwd"]},
                start_new_session=True,
            )
        (job / "pid").write_text(str(process.pid))
    return jobs


def option(arguments: list[str], name: str) -> str:
    return next(argument.partition("=")[2] for argument in arguments if argument.startswith(f"{name}="))


def submit(folder: Path, name: str, suffix: str) -> str:
    if (folder / "broken").exists():
        sys.exit((folder / "broken").read_text())
    number = f"{len([*(folder / 'jobs').iterdir()]) + 1}{suffix}"
    job = folder / "jobs" / number
    job.mkdir()
    (job / "script").write_text(sys.stdin.read())
    facts: dict[str, Any] = {"name": name, "cwd": str(Path.cwd()), "env": dict(os.environ)}
    (job / "facts").write_text(json.dumps(facts))
    schedule(folder)
    return number


def cancel(folder: Path, numbers: list[str], *, only_pending: bool) -> None:
    for number in numbers:
        job = folder / "jobs" / number
        if state_of(job) == "PENDING":
            (job / "cancelled").touch()
        elif not only_pending and state_of(job) == "RUNNING":
            os.killpg(int((job / "pid").read_text()), signal.SIGTERM)


def describe(folder: Path) -> Iterator[tuple[str, str, str]]:
    for job in schedule(folder):
        yield job.name, json.loads((job / "facts").read_text())["name"], state_of(job)


def act(folder: Path, program: str, arguments: list[str]) -> None:
    match program:
        case "sbatch":
            print(submit(folder, option(arguments, "--job-name"), ""))
        case "qsub":
            print(submit(folder, arguments[arguments.index("-N") + 1], ".fake"))
        case "squeue":
            for number, name, state in describe(folder):
                if name == option(arguments, "--name") and state != "ENDED":
                    print(f"{number}|{state}")
        case "qstat":
            for number, name, state in describe(folder):
                letter = {"PENDING": "Q", "RUNNING": "R", "ENDED": "F"}[state]
                owner = f"{getpass.getuser()}@fake"
                print(f"Job Id: {number}\n    Job_Name = {name}\n    Job_Owner = {owner}\n    job_state = {letter}")
                print("    Variable_List = PBS_O_HOME=/home,\n\tjob_state = wrapped\n")
        case "scancel" | "qdel":
            pending_alone = "--state=PENDING" in arguments
            numbers = [argument for argument in arguments if not argument.startswith("-")]
            cancel(folder, numbers, only_pending=pending_alone)


def main() -> None:
    folder, program, arguments = Path(os.environ[VARIABLE]), Path(sys.argv[0]).name, sys.argv[1:]
    with locked(folder):
        with (folder / "calls").open("a") as calls:
            calls.write(json.dumps([program, *arguments]) + "\n")
        act(folder, program, arguments)


if __name__ == "__main__":
    main()
