"""Allocations of OpenPBS, PBS Professional and Torque: one job with one worker each."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence

from celeriac.autoscale.allocation import Allocation, SchedulerError
from celeriac.autoscale.job import JobPlan, script_of
from celeriac.autoscale.program import run_program

PENDING = frozenset("QHWTM")
RUNNING = frozenset("RSUB")
HEAD = "Job Id: "


class Pbs:
    """Submits with `qsub`, looks with `qstat`, cancels with `qdel`."""

    programs = ("qsub", "qstat", "qdel")

    def __init__(self, plan: JobPlan) -> None:
        self._plan = plan

    def script(self) -> str:
        return script_of(self._plan, id_variable="PBS_JOBID", folder_variable="PBS_O_WORKDIR")

    def submit_command(self) -> Sequence[str]:
        plan = self._plan
        resources = () if "-l" in plan.options else ("-l", f"select=1:ncpus={plan.slots}")
        return ("qsub", "-N", plan.job_name, "-j", "oe", "-o", f"{plan.folder}/", "-r", "n", *resources, *plan.options)

    def submit(self) -> str:
        said = run_program(self.submit_command(), self.script()).strip()
        if re.fullmatch(r"[0-9]+\S*", said) is None:
            raise SchedulerError(f"qsub has printed no id of a job, but {said[:80]!r}")
        return said

    def allocations(self) -> list[Allocation]:
        jobs = parse_jobs(run_program(("qstat", "-f")))
        ours = [
            (number, facts.get("job_state", ""))
            for number, facts in jobs
            if facts.get("Job_Name") == self._plan.job_name
            and facts.get("Job_Owner", "").partition("@")[0] == self._plan.user
        ]
        return [Allocation(number, state in RUNNING) for number, state in ours if state in PENDING | RUNNING]

    def cancel(self, ids: Collection[str]) -> None:
        run_program(("qdel", *ids))


def parse_jobs(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the id and the facts of each job in the output of `qstat -f`."""
    number, facts = "", dict[str, str]()
    for line in [*text.splitlines(), HEAD]:
        if line.startswith(HEAD):
            if number:
                yield number, facts
            number, facts = line.removeprefix(HEAD).strip(), {}
        elif " = " in line and not line.startswith("\t"):  # a line that goes on begins with a tab
            name, _, value = line.strip().partition(" = ")
            facts[name] = value
