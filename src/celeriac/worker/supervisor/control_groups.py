"""Control groups (cgroup v2) for commands with a limit of memory. The kernel keeps to the limit, without a delay.

PARENT/celeriac-MARK/      the group of the supervisor with this mark, which holds its lock; no process is in it
PARENT/celeriac-MARK/N/    the group of one command

PARENT is the group around that of the supervisor. It must be delegated: for systemd, a unit with `Delegate=memory` and
a `DelegateSubgroup=`. In any other group, the processes of others would have to be moved first.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from itertools import count

from celeriac.worker.supervisor.scratch import make_locked, try_lock

PROC, ROOT = "/proc", "/sys/fs/cgroup"
PREFIX = "celeriac-"
DELEGATED = "user.delegate"  # the attribute by which systemd says that a group is left to the processes in it
TEST_PROGRAM = "/bin/true"


class ControlGroups:
    """The groups of one supervisor."""

    def __init__(self, mark: str, *, proc: str = PROC, root: str = ROOT) -> None:
        self._mark, self._proc, self._root = mark, proc, root
        self._base: str | None = None
        self._lock = -1
        self._is_unusable = False
        self._numbers = count(1)

    def make(self, limit: int) -> ControlGroup | None:
        """Return a new group with this limit in bytes; None if none can be made here."""
        if self._is_unusable:
            return None
        try:
            base = self._base or self._make_base()
            return ControlGroup(os.path.join(base, str(next(self._numbers))), limit)
        except (OSError, subprocess.SubprocessError):
            self._is_unusable = True
            return None

    def _make_base(self) -> str:
        """Make the group of this supervisor, and check that a process can enter a group in it. Raises `OSError`, and
        `SubprocessError` if none can."""
        parent = delegated_group(self._proc, self._root)
        if parent is None:
            raise FileNotFoundError("no group is delegated")
        remove_abandoned(parent)
        enable_memory(parent)
        base = os.path.join(parent, PREFIX + self._mark)
        self._lock, self._base = make_locked(base), base
        enable_memory(base)
        group = ControlGroup(os.path.join(base, "test"), None)
        try:
            subprocess.run([TEST_PROGRAM], preexec_fn=group.enter, check=True)
        finally:
            group.remove()
        return base

    def close(self) -> None:
        """Remove all groups. No command may run any more."""
        if self._base is not None:
            remove_groups(self._base)
        if self._lock >= 0:
            os.close(self._lock)


class ControlGroup:
    """The group of one command."""

    def __init__(self, path: str, limit: int | None) -> None:
        """Make the group. Raises `OSError`."""
        self._path = path
        os.mkdir(path)
        if limit is not None:
            self._write("memory.max", limit)
            for name, value in (("memory.swap.max", 0), ("memory.oom.group", 1)):
                with contextlib.suppress(OSError):  # an older kernel, or one without swap
                    self._write(name, value)

    def enter(self) -> None:
        """Move the calling process into the group. Raises `OSError`."""
        self._write("cgroup.procs", 0)

    def peak(self) -> int | None:
        """Return the largest use of memory so far, in bytes; None if the kernel does not tell it."""
        text = read(os.path.join(self._path, "memory.peak")).strip()
        return int(text) if text.isdigit() else None

    def had_kill(self) -> bool:
        """Return whether the kernel has killed a process because the limit was reached."""
        lines = read(os.path.join(self._path, "memory.events")).splitlines()
        return any(line.startswith("oom_kill ") and line != "oom_kill 0" for line in lines)

    def remove(self) -> bool:
        """Remove the group. Return whether it has gone: not while a process is in it."""
        return remove_folder(self._path)

    def _write(self, name: str, value: int) -> None:
        write(os.path.join(self._path, name), str(value))


def delegated_group(proc: str, root: str) -> str | None:
    """Return the group around that of this process, if it is delegated and has memory; None if not."""
    for line in read(os.path.join(proc, "self/cgroup")).splitlines():
        if line.startswith("0::/") and len(line) > len("0::/"):
            parent = os.path.dirname(os.path.join(root, line[len("0::/") :]))
            has_memory = "memory" in read(os.path.join(parent, "cgroup.controllers")).split()
            return parent if has_memory and is_delegated(parent) else None
    return None


def is_delegated(folder: str) -> bool:
    """Return whether systemd leaves a group to the processes in it."""
    try:
        return os.getxattr(folder, DELEGATED) == b"1"
    except (OSError, AttributeError):  # there is no such attribute; or this is not Linux
        return False


def enable_memory(folder: str) -> None:
    """Let the groups in a group have limits of memory. Raises `OSError`."""
    path = os.path.join(folder, "cgroup.subtree_control")
    if "memory" not in read(path).split():
        write(path, "+memory")


def remove_abandoned(parent: str) -> None:
    """Remove the groups of all supervisors that have ended without removing them."""
    with contextlib.suppress(OSError):
        for name in os.listdir(parent):
            if name.startswith(PREFIX):
                remove_if_abandoned(os.path.join(parent, name))


def remove_if_abandoned(base: str) -> None:
    """Remove the groups of a supervisor, unless that lives."""
    with contextlib.suppress(OSError):
        if (lock := try_lock(base)) is not None:
            remove_groups(base)
            os.close(lock)


def remove_groups_of(*marks: str, proc: str = PROC, root: str = ROOT) -> None:
    """Remove the groups of supervisors that have ended."""
    if (parent := delegated_group(proc, root)) is not None:
        for mark in marks:
            remove_if_abandoned(os.path.join(parent, PREFIX + mark))


def remove_groups(base: str) -> None:
    """Remove the group of a supervisor with those in it, unless processes stay there."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(base):
            if entry.is_dir(follow_symlinks=False):
                remove_folder(entry.path)
    remove_folder(base)


def remove_folder(path: str) -> bool:
    """Remove a group. Return whether it has gone. The kernel removes the files in it."""
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def read(path: str) -> str:
    """Return the content of a file; "" if it cannot be read."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def write(path: str, text: str) -> None:
    """Write a text in one call, as the kernel wants it. Raises `OSError`."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
