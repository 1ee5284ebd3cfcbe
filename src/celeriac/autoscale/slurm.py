"""Allocations of Slurm: one job with one worker each."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from celeriac.autoscale.allocation import Allocation, SchedulerError
from celeriac.autoscale.job import JobPlan, script_of
from celeriac.autoscale.program import run_program

PENDING = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
RUNNING = {"CONFIGURING", "RUNNING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED"}
SIGNAL_MARGIN = 30  # seconds between the end of the worker's grace and the end of the allocation
MAX_SIGNAL_TIME = 65_535  # seconds; Slurm takes no more


class Slurm:
    """Submits with `sbatch`, looks with `squeue`, cancels with `scancel`."""

    programs = ("sbatch", "squeue", "scancel")

    def __init__(self, plan: JobPlan) -> None:
        self._plan = plan

    def script(self) -> str:
        return script_of(self._plan, id_variable="SLURM_JOB_ID")

    def submit_command(self) -> Sequence[str]:
        plan = self._plan
        early = min(MAX_SIGNAL_TIME, int(plan.grace) + SIGNAL_MARGIN)
        return (
            *("sbatch", "--parsable", f"--job-name={plan.job_name}", "--nodes=1", "--ntasks=1"),
            f"--cpus-per-task={plan.slots}",
            f"--output={plan.folder}/%j.log",
            f"--signal=B:TERM@{early}",  # the worker drains before its time is over
            "--no-requeue",
            *plan.options,
        )

    def submit(self) -> str:
        said = run_program(self.submit_command(), self.script()).strip()
        number = said.partition(";")[0]  # ID or ID;CLUSTER
        if re.fullmatch(r"[0-9]+", number) is None:
            raise SchedulerError(f"sbatch has printed no id of a job, but {said[:80]!r}")
        return number

    def allocations(self) -> list[Allocation]:
        command = ("squeue", "--noheader", f"--user={self._plan.user}", f"--name={self._plan.job_name}")
        lines = run_program((*command, "--format=%i|%T")).split()
        pairs = [line.partition("|")[::2] for line in lines]
        return [Allocation(number, state in RUNNING) for number, state in pairs if state in PENDING | RUNNING]

    def cancel(self, ids: Collection[str]) -> None:
        run_program(("scancel", "--state=PENDING", *ids))  # one that has begun meanwhile goes on
