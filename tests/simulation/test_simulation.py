"""A part of the simulated histories, and what the simulation is able to find."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.changes import CHANGES, NAMES

ROOT = Path(__file__).parents[2]
SOME = "1..60"
VIOLATED_BEFORE = (
    "14,211,380,528,583,753,785,881,1111,1364,2001,3339,6815,16759,17717,20450,"
    "68611,137062,214557,594495,707931,709525,787940"
)
"""The seeds that have shown a fault, which is mended. docs/proof.md says which."""

WRONG_BEFORE = "61543,65239,67784,120626,135859,152772,318355,546756,550604,798780,865184,869018"
"""The seeds of which histories have told a violation that was none."""

FOUND_SOON = (
    *("no-claim", "claim-of-the-cancelled", "claim-of-the-fenced", "same-token", "renewal-of-the-dead", "no-fence"),
    *("cancel-claimed", "hasty-detector", "timers-go-on", "one-look", "no-scan", "no-resend", "no-slots"),
    *("first-come", "needs-any-end"),
    *("owner-without-renewal", "takeover-without-fence", "hasty-takeover", "needs-of-others-forgotten"),
)
"""Changes that few histories find. The long run has all of them."""


def simulate(*options: str, module: str = "tests.simulation") -> subprocess.CompletedProcess[str]:
    """Run histories in a process of their own: they replace clocks and threads."""
    return subprocess.run(
        [sys.executable, "-m", module, *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_no_history_violates_an_invariant():
    ended = simulate("--seeds", f"{SOME},{VIOLATED_BEFORE},{WRONG_BEFORE}", "--processes", "1")
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_a_seed_makes_the_same_history_each_time():
    stories = {simulate("--seeds", "7..9", "--story").stdout for _ in range(2)}
    (story,) = stories
    assert story.count("all faults have ended") == 3


def test_a_violation_is_shrunk_to_a_story_that_can_be_replayed():
    options = ("--change", "one-look")
    ended = simulate("--seeds", "1..60", "--until-violation", "--processes", "1", *options)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    shrunk = re.search(r"(\d+) of its (\d+) faults are needed: --seeds (\d+) --faults '([0-9,]*)'", ended.stdout)
    assert shrunk is not None
    needed, planned, seed, faults = shrunk.groups()
    assert int(needed) < int(planned)
    replayed = simulate("--seeds", seed, "--faults", faults, "--story", *options)
    assert replayed.returncode == 1
    assert "VIOLATION" in replayed.stdout
    assert replayed.stdout in ended.stdout


def test_changes_that_break_the_protocol_are_found():
    ended = simulate("--seeds", "1..200", *FOUND_SOON, module="tests.simulation.teeth")
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_change_that_breaks_the_protocol_is_found(name):
    ended = simulate("--seeds", "1..10000", name, module="tests.simulation.teeth")
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_there_are_thirty_changes():
    assert len(CHANGES) >= 30
    assert all(change.breaks.endswith(".") for change in CHANGES.values())
