"""The counters of the kernel about processes that it has killed, in files of both versions of cgroups."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from celeriac.worker.kill_evidence import KillWatch, MemoryCounters, describe_kill, ran_out_of_memory, read_memory

MIB = 2**20
FIRST = {
    "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
    "memory.max_usage_in_bytes": f"{5 * MIB}\n",
    "memory.limit_in_bytes": "9223372036854771712\n",
}
SECOND = {
    "memory.events": "low 0\nhigh 0\nmax 7\noom 3\noom_kill 3\noom_group_kill 0\n",
    "memory.peak": f"{5 * MIB}\n",
    "memory.max": f"{8 * MIB}\n",
}


@pytest.mark.parametrize(
    ("cgroup", "folder", "files", "limit"),
    [
        ("0::/pod/worker", "pod/worker", SECOND, 8 * MIB),
        ("0::/", "", SECOND, 8 * MIB),
        ("0::/outside/of/the/container", "", SECOND, 8 * MIB),
        ("4:memory:/a\n0::/", "memory/a", FIRST, None),
        ("4:cpu,memory:/outside", "memory", FIRST, None),
        ("1:name=systemd:/\n0::/b:c", "unified/b:c", {**SECOND, "memory.max": "max\n"}, None),
    ],
)
def test_counters_are_read_in_both_versions_of_cgroups(tmp_path, cgroup, folder, files, limit):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(cgroup + "\n")
    (tmp_path / "proc/vmstat").write_text("nr_free_pages 1\noom_kill 40\n")
    place = tmp_path / "cgroup" / folder
    place.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (place / name).write_text(text)
    counters = read_memory(tmp_path / "proc", tmp_path / "cgroup")
    assert replace(counters, child_peak=None) == MemoryCounters(3, None, 5 * MIB, limit)


def test_counters_that_cannot_be_read_are_none(tmp_path):
    assert replace(read_memory(tmp_path, tmp_path), child_peak=None) == MemoryCounters()
    (tmp_path / "vmstat").write_text("oom_kill 40\n")
    assert read_memory(tmp_path, tmp_path).machine_kills == 40


def test_kill_of_a_command_is_explained_if_memory_ran_out_since_the_last_one():
    readings = iter([MemoryCounters(1), MemoryCounters(1), MemoryCounters(3), MemoryCounters(3)])
    watch = KillWatch(lambda: next(readings))
    text = "; in the last 1 s the kernel killed 2 processes of its cgroup for lack of memory"
    assert [watch.explain() for _ in range(3)] == ["", text, ""]


BEFORE = MemoryCounters(3, 40, 5 * MIB, 8 * MIB, 2 * MIB)
CASES = [
    (
        {"group_kills": 4, "peak": 8 * MIB},
        True,
        "meanwhile the kernel killed 1 process of its cgroup for lack of memory",
    ),
    ({"group_kills": 5}, True, "meanwhile the kernel killed 2 processes of its cgroup for lack of memory"),
    ({"machine_kills": 41}, False, "the kernel killed no process for lack of memory: another program or a person sent"),
    ({}, False, "the kernel killed no process for lack of memory: another program or a person sent the signal"),
]


@pytest.mark.parametrize(("changes", "is_short", "text"), CASES)
def test_kill_is_explained_by_the_growth_of_the_counters(changes, is_short, text):
    after = replace(BEFORE, **changes)
    assert describe_kill(BEFORE, after).startswith(text)
    assert ran_out_of_memory(BEFORE, after) is is_short


def test_kill_without_counters_of_a_cgroup_is_explained_by_those_of_the_machine():
    before = MemoryCounters(machine_kills=1)
    text = "meanwhile the kernel killed 1 process of this machine for lack of memory"
    assert describe_kill(before, MemoryCounters(machine_kills=2)) == text
    assert describe_kill(MemoryCounters(), MemoryCounters()).startswith("whether memory ran out is not known")


def test_use_of_memory_is_told_as_far_as_it_is_known():
    text = describe_kill(BEFORE, replace(BEFORE, child_peak=4 * MIB))
    assert text.endswith("; its largest process had 4.0 MiB; its cgroup had 5.0 MiB at most, of 8.0 MiB")
    assert describe_kill(BEFORE, replace(BEFORE, limit=None)).endswith(
        "; its cgroup had 5.0 MiB at most, without a limit"
    )
