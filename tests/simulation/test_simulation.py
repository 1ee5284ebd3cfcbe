"""A part of the simulated histories, and that a seed makes the same history each time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.changes import NAMES

ROOT = Path(__file__).parents[2]
SOME = "1..60"


def simulate(*options: str) -> subprocess.CompletedProcess[str]:
    """Run histories in a process of their own: they replace clocks and threads."""
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_no_history_violates_an_invariant():
    ended = simulate("--seeds", SOME)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_a_seed_makes_the_same_history_each_time():
    stories = {simulate("--seeds", "7..9", "--story").stdout.rpartition("\n3 histories, ")[0] for _ in range(2)}
    (story,) = stories
    assert story.count("all faults have ended") == 3


@pytest.mark.parametrize("change", NAMES)
def test_a_change_that_breaks_the_protocol_is_found(change):
    ended = simulate("--seeds", "1..400", "--change", change, "--until-violation")
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "VIOLATION" in ended.stdout
