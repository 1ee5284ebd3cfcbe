"""The command line in random environments: no traceback, no hang, no surviving process, no wrong exit status."""

from __future__ import annotations

import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import pytest

from tests.support.environments.judge import Finding, judge
from tests.support.environments.oddities import draw_plan
from tests.support.environments.run import Session, run_plan
from tests.support.long import LONG

SEED = os.environ.get("CELERIAC_SEED", "16")
RUN = os.environ.get("CELERIAC_RUN")  # the number of the only run
RUNS = range(2_000 if LONG else 20) if RUN is None else range(int(RUN), int(RUN) + 1)
IS_ROOT = os.geteuid() == 0
AT_ONCE = 5  # most of a run is waiting


@pytest.mark.fault
@pytest.mark.timeout(4 * 3600)
def test_no_environment_causes_a_traceback_a_hang_a_survivor_or_a_wrong_status(tmp_path, redis):
    session = Session(tmp_path / "session", redis)
    databases: SimpleQueue[int] = SimpleQueue()
    for database in range(AT_ONCE):
        databases.put(database)

    def find(number: int) -> Finding | None:
        folder, database = tmp_path / str(number), databases.get()
        plan = draw_plan(f"{SEED}/{number}", is_root=IS_ROOT)
        finding = judge(plan, run_plan(plan, folder, session, database))
        databases.put(database)
        shutil.rmtree(folder, ignore_errors=True)
        if finding is not None:
            print(finding, file=sys.__stderr__, flush=True)  # a long test should not keep it for its end
        return finding

    with ThreadPoolExecutor(AT_ONCE) as threads:
        findings = [str(finding) for finding in threads.map(find, RUNS) if finding is not None]
    assert not findings, "\n\n".join(findings)
