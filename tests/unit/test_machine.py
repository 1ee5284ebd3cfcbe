"""Test what a machine has for commands: limits of Linux, GPUs, and what a command sees of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celeriac.errors import InvalidConfig
from celeriac.task.amounts import amount_text, shortage_text
from celeriac.worker.machine import quotas, usable_gpus, usable_memory, usable_milli_cpus, visible_gpus
from celeriac.worker.share import GpuPool, default_variables, own_variables

PHYSICAL = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def write(files: dict[Path, str]) -> None:
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_without_control_groups_a_process_has_its_cpus_and_all_memory(tmp_path):
    assert usable_milli_cpus(tmp_path, tmp_path) == len(os.sched_getaffinity(0)) * 1_000
    assert usable_memory(tmp_path, tmp_path) == PHYSICAL


def test_the_smallest_quota_of_the_groups_around_a_process_counts(tmp_path):
    group = tmp_path / "fs" / "a" / "b"
    write(
        {
            tmp_path / "proc/self/cgroup": "0::/a/b\n",
            group / "cpu.max": "max 100000\n",
            group.parent / "cpu.max": "50000 100000\n",
            tmp_path / "fs" / "cpu.max": "40000 20000\n",
            group / "memory.max": "max\n",
            group.parent / "memory.max": "1048576\n",
        }
    )
    proc, cgroups = tmp_path / "proc", tmp_path / "fs"
    assert sorted(quotas(proc, cgroups)) == [500, 2_000]
    assert (usable_milli_cpus(proc, cgroups), usable_memory(proc, cgroups)) == (500, 1_048_576)


def test_control_groups_of_version_1_count(tmp_path):
    write(
        {
            tmp_path / "proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/x\n1:name=systemd:/y\n",
            tmp_path / "fs/cpu/x/cpu.cfs_quota_us": "25000\n",
            tmp_path / "fs/cpu/x/cpu.cfs_period_us": "100000\n",
            tmp_path / "fs/cpu/cpu.cfs_quota_us": "-1\n",
            tmp_path / "fs/cpu/cpu.cfs_period_us": "100000\n",
            tmp_path / "fs/memory/x/memory.limit_in_bytes": "4096\n",
            tmp_path / "fs/memory/memory.limit_in_bytes": "9223372036854771712\n",
        }
    )
    proc, cgroups = tmp_path / "proc", tmp_path / "fs"
    assert (usable_milli_cpus(proc, cgroups), usable_memory(proc, cgroups)) == (250, 4_096)


@pytest.mark.parametrize("text", ["", "max\n", "x y z", "0 0", "1 0"])
def test_malformed_limits_are_none(tmp_path, text):
    write({tmp_path / "self/cgroup": "0::/\n", tmp_path / "cpu.max": text, tmp_path / "memory.max": text})
    assert usable_milli_cpus(tmp_path, tmp_path) == len(os.sched_getaffinity(0)) * 1_000
    assert usable_memory(tmp_path, tmp_path) == PHYSICAL


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ()),
        ("0", ("0",)),
        (" 2, 0", ("2", "0")),
        ("1,-1,0", ("1",)),
        ("NoDevFiles", ()),
        ("0,1,1", ("0", "1")),
        ("GPU-8932f937-d72c,MIG-0123", ("GPU-8932f937-d72c", "MIG-0123")),
    ],
)
def test_the_variable_names_gpus_as_cuda_reads_it(text, names):
    assert visible_gpus(text) == names


@pytest.mark.parametrize(
    ("wanted", "visible", "names"), [(None, "3,4", ("3", "4")), (1, "3,4", ("3",)), (2, None, ("0", "1")), (0, "3", ())]
)
def test_the_user_may_leave_gpus_to_others(wanted, visible, names):
    assert usable_gpus(wanted, visible) == names


def test_more_gpus_than_the_variable_names_are_refused():
    with pytest.raises(InvalidConfig, match="gpus: 3 are more than the 2 of CUDA_VISIBLE_DEVICES"):
        usable_gpus(3, "0,1")


@pytest.mark.parametrize(("script", "number"), [("echo 'GPU 0: A100 (UUID: x)'; echo 'GPU 1: A100'", 2), ("exit 9", 0)])
def test_gpus_are_those_that_the_driver_lists(tmp_path, monkeypatch, script, number):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert len(usable_gpus(None, None)) == number


@given(st.lists(st.integers(0, 3)), st.integers(0, 4))
def test_no_gpu_belongs_to_two_commands(numbers, size):
    pool = GpuPool([f"g{n}" for n in range(size)])
    taken: list[tuple[str, ...]] = []
    for number in numbers:
        names = pool.take(number)
        if names is None:
            assert size - sum(map(len, taken)) < number
            pool.give_back(taken.pop(0) if taken else ())
        else:
            taken.append(names)
        used = [name for names in taken for name in names]
        assert len(used) == len(set(used))


def test_a_command_sees_its_share():
    message = {"cpus": 2.5, "memory": 1024, "gpu_names": ("4", "7")}
    assert default_variables(message) == {"OMP_NUM_THREADS": "2"}
    assert own_variables(message) == {
        "CELERIAC_CPUS": "2.5",
        "CELERIAC_MEMORY": "1024",
        "CELERIAC_GPUS": "2",
        "CUDA_VISIBLE_DEVICES": "4,7",
    }
    assert (default_variables({"cpus": 0.5}), default_variables({}), own_variables({})) == (
        {"OMP_NUM_THREADS": "1"},
        {},
        {},
    )


def test_amounts_are_texts_for_a_person():
    assert [amount_text("milli_cpus", number) for number in (1_000, 1_500)] == ["1 CPU", "1.5 CPUs"]
    assert [amount_text("memory", size) for size in (3, 2**31, 1_610_612_736)] == [
        "3 bytes of memory",
        "2 GiB of memory",
        "1.5 GiB of memory",
    ]
    assert shortage_text("memory", 2**31, 2**31 - 1) == ("2,147,483,648 bytes of memory", "2,147,483,647")
