"""Control groups for limits of memory, on a folder that behaves as the kernel's does, and on a real one if there is."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from celeriac.worker.supervisor import control_groups
from celeriac.worker.supervisor.control_groups import ControlGroups, delegated_group, remove_groups_of
from celeriac.worker.supervisor.memory_limit import MemoryLimit
from celeriac.worker.supervisor.messages import StopReason
from celeriac.worker.supervisor.spawn import spawn

FILES = ("cgroup.procs", "cgroup.subtree_control", "memory.max", "memory.swap.max", "memory.oom.group")
MIB = 2**20


class Kernel:
    """A folder in which each new group has files, and a group without processes can be removed."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.root, self.unit = folder / "proc", folder / "cgroup", folder / "cgroup/unit"
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "self/cgroup").write_text("0::/unit/main\n")
        (self.unit / "main").mkdir(parents=True)
        (self.unit / "cgroup.controllers").write_text("cpu memory\n")
        (self.unit / "cgroup.subtree_control").write_text("\n")
        self._mkdir, self._rmdir, self.files = os.mkdir, os.rmdir, FILES

    def mkdir(self, path: Any, *mode: int) -> None:
        self._mkdir(path, *mode)
        if Path(path).is_relative_to(self.root):
            for name in self.files:
                (Path(path) / name).touch()

    def rmdir(self, path: Any) -> None:
        if any(entry.is_dir() for entry in Path(path).iterdir()):
            raise OSError("a group is in it")
        for file in Path(path).iterdir():
            file.unlink()
        self._rmdir(path)

    def groups(self, mark: str) -> ControlGroups:
        return ControlGroups(mark, proc=str(self.proc), root=str(self.root))

    def bases(self) -> list[str]:
        return sorted(path.name for path in self.unit.glob("celeriac-*"))


@pytest.fixture
def kernel(tmp_path, monkeypatch) -> Kernel:
    kernel = Kernel(tmp_path)
    monkeypatch.setattr(control_groups, "is_delegated", lambda folder: folder == str(kernel.unit))
    monkeypatch.setattr(os, "mkdir", kernel.mkdir)
    monkeypatch.setattr(os, "rmdir", kernel.rmdir)
    return kernel


def run(argv: list[str], enter: Callable[[], None] | None) -> int:
    pid = spawn(argv, os.environb, None, (None, None, None), enter)
    return os.waitpid(pid, 0)[1]


def test_a_command_runs_in_a_group_of_its_own(kernel):
    groups = kernel.groups("one")
    group, other = groups.make(100 * MIB), groups.make(MIB)
    assert group is not None
    assert other is not None
    folder = kernel.unit / "celeriac-one/1"
    limits = [(folder / name).read_text() for name in ("memory.max", "memory.swap.max", "memory.oom.group")]
    assert limits == [str(100 * MIB), "0", "1"]
    assert (kernel.unit / "cgroup.subtree_control").read_text() == "+memory"
    assert run(["true"], group.enter) == 0
    assert ((folder / "cgroup.procs").read_text(), (group.peak(), group.had_kill())) == ("0", (None, False))
    (folder / "memory.peak").write_text("104857600\n")
    (folder / "memory.events").write_text("low 0\noom 1\noom_kill 2\n")
    assert (group.peak(), group.had_kill()) == (100 * MIB, True)
    assert group.remove()
    groups.close()
    assert kernel.bases() == []


def test_groups_of_killed_supervisors_are_removed_and_others_stay(kernel):
    lives, killed, gone = (kernel.groups(mark) for mark in ("lives", "killed", "gone"))
    for groups in (lives, killed, gone):
        assert groups.make(MIB) is not None
    for groups in (killed, gone):
        os.close(groups._lock)  # as the system does when a process ends
    remove_groups_of("gone", "lives", proc=str(kernel.proc), root=str(kernel.root))
    assert kernel.bases() == ["celeriac-killed", "celeriac-lives"]
    assert kernel.groups("next").make(MIB) is not None
    assert kernel.bases() == ["celeriac-lives", "celeriac-next"]


@pytest.mark.parametrize("path", ["0::/\n", "0::/main\n", "4:memory:/unit/main\n0::/\n", ""])
def test_no_group_is_made_where_none_is_delegated(kernel, path):
    (kernel.proc / "self/cgroup").write_text(path)
    assert kernel.groups("one").make(MIB) is None
    assert kernel.bases() == []


def test_no_group_is_made_that_no_process_can_enter(kernel):
    kernel.files = FILES[1:]
    groups = kernel.groups("one")
    assert (groups.make(MIB), groups.make(MIB)) == (None, None)
    groups.close()
    assert kernel.bases() == []


@pytest.mark.parametrize(
    ("kills", "status", "stopped"),
    [(1, signal.SIGKILL, StopReason.MEMORY), (1, 1 << 8, StopReason.MEMORY), (0, signal.SIGKILL, None), (1, 0, None)],
    ids=["killed", "failed after a kill", "killed by others", "succeeded"],
)
def test_a_kill_of_the_kernel_is_told_with_the_peak(kernel, kills, status, stopped):
    limits: Any = SimpleNamespace(groups=kernel.groups("one"), watch=None)
    command: Any = SimpleNamespace(stopped=None, peak_memory=3 * MIB)
    limit = MemoryLimit(limits, command, 5 * MIB)
    assert limit.prepare() is not None
    limit.on_start()
    folder = kernel.unit / "celeriac-one/1"
    (folder / "memory.events").write_text(f"oom_kill {kills}\n")
    (folder / "memory.peak").write_text(f"{5 * MIB}\n")
    limit.on_exit(int(status))
    assert (command.stopped, command.peak_memory) == (stopped, 5 * MIB)
    limit.close()
    assert not folder.exists()


@pytest.mark.skipif(delegated_group("/proc", "/sys/fs/cgroup") is None, reason="no control group is delegated")
def test_the_kernel_keeps_to_a_limit():
    groups = ControlGroups(f"test-{os.getpid()}")
    group = groups.make(30 * MIB)
    assert group is not None
    assert os.WIFSIGNALED(run(["python3", "-c", "bytearray(200 << 20)"], group.enter))
    assert group.had_kill()
    assert group.remove()
    groups.close()
