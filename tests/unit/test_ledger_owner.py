"""Which owner of a run counts as alive: the decision alone, without a database."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import NamedTuple

import psutil
import pytest

from celeriac.ledger import owner
from celeriac.ledger.liveness import Machine, is_alive, owner_label
from celeriac.ledger.owner import start_of, start_of_this_process, this_machine

HERE = Machine("here", "boot-1/100")
NOW = 1_000.0
LIVE, EXPIRED = NOW + 5, NOW - 5


class Row(NamedTuple):
    host: str = "here"
    boot_id: str = "boot-1/100"
    pid: int = 12
    process_started: float = 500.0
    until: float = LIVE


def alive(row: Row, *, machine: Machine | None = HERE, start: float | None = None) -> bool:
    return is_alive(row, machine=machine, now=NOW, start_of=lambda pid: start if pid == row.pid else None)


def test_a_running_process_of_this_machine_is_alive_after_its_lease() -> None:
    assert alive(Row(until=EXPIRED), start=500.2)


def test_an_ended_process_of_this_machine_is_dead_before_its_lease_expires() -> None:
    assert not alive(Row(until=LIVE), start=None)


def test_a_later_process_with_the_same_id_is_another() -> None:
    assert not alive(Row(until=LIVE), start=502.0)


def test_a_process_from_before_the_last_boot_is_dead() -> None:
    assert not alive(Row(boot_id="boot-0/100", until=LIVE), start=500.0)


def test_in_another_container_of_this_machine_the_lease_decides() -> None:
    assert alive(Row(boot_id="boot-1/200", until=LIVE), start=None)
    assert not alive(Row(boot_id="boot-1/200", until=EXPIRED), start=500.0)


def test_on_another_host_the_lease_decides() -> None:
    assert alive(Row(host="there", until=LIVE), start=None)
    assert not alive(Row(host="there", until=EXPIRED), start=500.0)


def test_on_a_server_the_lease_decides_also_for_this_machine() -> None:
    assert alive(Row(until=LIVE), machine=None, start=None)
    assert not alive(Row(until=EXPIRED), machine=None, start=500.0)


def test_a_lease_that_ends_now_has_expired() -> None:
    assert not alive(Row(until=NOW), machine=None)


def test_an_owner_is_shown_with_its_process_and_its_host() -> None:
    assert owner_label(Row()) == "process 12 on here"


def test_the_start_of_a_process_is_known_until_it_ends() -> None:
    assert start_of(os.getpid()) is not None
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
        assert start_of(process.pid) is None


def test_the_start_of_a_process_stays_when_the_clock_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    own, before = start_of_this_process(), start_of(os.getpid())
    boot = psutil.boot_time()
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: boot + 60)  # what the kernel tells after a step of 60 s
    assert psutil.Process().create_time() > boot + own + 59
    assert own == before == start_of_this_process() == start_of(os.getpid())


def test_without_proc_the_system_tells_the_start_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "seconds_from_boot", lambda process: None)
    assert start_of_this_process() == start_of(os.getpid()) == psutil.Process().create_time()


def test_a_machine_is_the_same_at_each_look() -> None:
    assert this_machine() == this_machine()
    assert "/" in this_machine().boot_id
