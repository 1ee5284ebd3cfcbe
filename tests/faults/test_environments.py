"""The command line in random environments: no traceback, no hang, no surviving process, no wrong exit status."""

from __future__ import annotations

import os
import shutil
from random import Random

import pytest

from tests.support.environments import run_once
from tests.support.long import LONG

RUNS = 2_000 if LONG else 20
SEED = int(os.environ.get("CELERIAC_SEED", "16"))


@pytest.mark.fault
@pytest.mark.timeout(4 * 3600)
def test_no_environment_causes_a_traceback_a_hang_a_survivor_or_a_wrong_status(tmp_path):
    findings = []
    for number in range(RUNS):
        folder = tmp_path / str(number)
        if (finding := run_once(folder, Random(f"{SEED}/{number}"))) is not None:
            findings.append(f"run {number} with CELERIAC_SEED={SEED}: {finding}")
        shutil.rmtree(folder, ignore_errors=True)
    assert not findings, "\n\n".join(findings)
