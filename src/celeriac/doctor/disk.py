"""The disk of a path: how much room it has, and whether another machine holds it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from celeriac.doctor.check import Problem, error, warning

MOUNTS = Path("/proc/self/mounts")
NETWORK_TYPES = frozenset(
    ("nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "9p", "ceph", "lustre", "beegfs", "gpfs", "glusterfs")
)
NETWORK_FUSE = ("fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.s3fs", "fuse.rclone", "fuse.gcsfuse", "fuse.davfs")
LITTLE = 200_000_000  # bytes of a disk that is almost full
TOO_LITTLE = 5_000_000  # bytes of a disk on which nothing can be relied on


def space_problem(folder: Path) -> Iterator[Problem]:
    """Yield a problem if the disk of an existing folder is almost full."""
    disk = os.statvfs(folder)
    yield from free_problem(folder, disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize)


def free_problem(folder: Path, free: int, size: int) -> Iterator[Problem]:
    """Yield a problem for so many free bytes on a disk of this size; a size of 0 is one that is not known."""
    if not size:
        return
    text = f"the disk of {folder} has {free / 1e6:,.0f} MB left"
    if free < TOO_LITTLE:
        yield error(text, "free disk space, or use another disk")
    elif free < min(LITTLE, size // 10):
        yield warning(text, "free disk space, or use another disk")


def network_type(path: Path, mounts: Iterable[str]) -> str | None:
    """Return the type of the file system of a path if it is on a network; else None. `mounts` are the lines of
    /proc/mounts, the latest last."""
    best: tuple[int, str] = (-1, "")
    for line in mounts:
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = Path(unescaped(fields[1]))
        if (point == path or point in path.parents) and len(point.parts) >= best[0]:
            best = (len(point.parts), fields[2])
    kind = best[1]
    return kind if kind in NETWORK_TYPES or kind.startswith(NETWORK_FUSE) else None


def unescaped(name: str) -> str:
    """Return the name of a mount point: the kernel writes spaces, tabs and backslashes as octal numbers."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        name = name.replace(code, character)
    return name


def mount_lines() -> list[str]:
    """Return the mounts of this process; none on a system that does not list them."""
    try:
        return MOUNTS.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []


def existing_part(path: Path) -> Path:
    """Return the path, or the nearest folder above it that exists."""
    return next((each for each in (path, *path.parents) if os.path.lexists(each)), Path("/"))
