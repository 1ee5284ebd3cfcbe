"""Random values before each decoder of what other programs may have written: no error escapes, and each is cheap.

A long run checks a million values, another one 8,000. `make fuzz` runs the same targets under atheris.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.fuzz_targets import SEEDS, TARGETS
from tests.support.long import LONG

pytestmark = pytest.mark.celery

ROOT = Path(__file__).parents[2]
NUMBER = 1_000_000 // len(TARGETS) if LONG else 1_000
MAX_CPU_TIME = 2.0  # seconds for one value
MAX_GROWTH = 300 * 2**20  # bytes of memory for all of them
PIECES = [
    b"null",
    b"[]",
    b"{}",
    b"-1",
    b"1e999",
    b'"\\ud800"',
    b"\xff",
    b"\0",
    b"9" * 5_000,
    b"[" * 2_000,
    b'{"a":' * 500,
]
VALUES: list[Any] = [None, True, -1, 2**70, 1e308, "", "x" * 100_000, "\udcff", [], [[]], {}, {"": None}, [1] * 1_000]


def mutated(value: bytes, random: Random) -> bytes:
    """Return a value that differs from a well-formed one in one or a few places."""
    data = bytearray(value)
    for _ in range(random.choice((1, 1, 2, 5))):
        at = random.randrange(len(data) + 1)
        match random.randrange(5):
            case 0:
                data[at : at + 1] = bytes([random.randrange(256)])
            case 1:
                del data[at : at + random.randrange(1, 20)]
            case 2:
                data[at:at] = random.choice(PIECES)
            case 3:
                data[at:at] = data[: random.randrange(len(data) + 1)]
            case 4:
                return with_another_field(value, random)
    return bytes(data)


def with_another_field(value: bytes, random: Random) -> bytes:
    """Return the value with one of its JSON fields replaced by a value of another type."""
    head, _, text = value.rpartition(b"\n")
    try:
        table = json.loads(text)
    except ValueError:
        return value + random.choice(PIECES)
    if not isinstance(table, dict) or not table:
        return random.choice(PIECES)
    inner = table
    while (tables := [each for each in inner.values() if isinstance(each, dict) and each]) and random.random() < 0.6:
        inner = random.choice(tables)
    inner[random.choice(list(inner))] = random.choice(VALUES)
    return head + (b"\n" if head else b"") + json.dumps(table).encode()


def fuzz(name: str, number: int, seed: int) -> None:
    """Give a target random values. Fail if one of them takes too long."""
    random, target, seeds = Random(seed), TARGETS[name], SEEDS[name]
    for n in range(number):
        value = mutated(random.choice(seeds), random)
        began = time.process_time()
        try:
            target(value)
        except BaseException as error:
            raise AssertionError(f"{name}, seed {seed}, value {n}: {value[:2_000]!r}") from error
        assert time.process_time() - began <= MAX_CPU_TIME, value[:2_000]


@pytest.mark.parametrize("name", TARGETS)
def test_well_formed_values_are_decoded(name):
    for seed in SEEDS[name]:
        TARGETS[name](seed)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.one_of(st.binary(max_size=300), st.text(max_size=100).map(lambda text: text.encode(errors="replace"))))
def test_random_bytes_are_decoded_or_refused(name, data):
    TARGETS[name](data)


@pytest.mark.fault
def test_values_that_are_almost_well_formed_cost_little_time_and_memory():
    """In a process of its own, whose memory can be measured."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4_000:]


PROGRAM = """
import logging, resource
from tests.faults.test_fuzz import *
logging.disable()
def used_memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
for name in TARGETS:
    fuzz(name, 50, seed=0)
    before = used_memory()
    fuzz(name, NUMBER, seed=1)
    assert used_memory() - before <= MAX_GROWTH, (name, used_memory() - before)
"""
