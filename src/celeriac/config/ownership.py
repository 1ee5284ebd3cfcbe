"""Say whether another user may have written a file, so that nothing that Celeriac runs or trusts comes from it."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

ROOT = 0
BY_OTHERS = 0o002
BY_GROUP_OR_OTHERS = 0o022


def problem_of_file(path: Path, *, writable: int = BY_GROUP_OR_OTHERS, follows: bool = True) -> str | None:
    """Return why a file is not trusted; None if only this user and root may have written it, or if it does not exist.

    `writable` are the bits of the mode that it must not have. Unless it `follows`, a symbolic link is not trusted.
    """
    try:
        status = path.stat() if follows else path.lstat()
    except OSError:  # whoever opens it reports that
        return None
    if not stat.S_ISREG(status.st_mode):
        return "is not a regular file"
    return problem_of(status, writable)


def problem_of_folder(path: Path) -> str | None:
    """Return why a folder is not trusted: other users may put files into it."""
    return problem_of(path.stat(), BY_GROUP_OR_OTHERS)


def problem_of(status: os.stat_result, writable: int) -> str | None:
    if status.st_uid not in trusted_users():
        return f"belongs to {name_of(status.st_uid)}"
    if status.st_mode & writable:
        return f"may be written by other users (its mode is {stat.S_IMODE(status.st_mode):04o})"
    return None


def trusted_users() -> set[int]:
    """Return this user, root, and the user who became root with sudo."""
    users = {os.geteuid(), ROOT}
    sudo_user = os.environ.get("SUDO_UID", "")
    if os.geteuid() == ROOT and sudo_user.isdecimal():
        users.add(int(sudo_user))
    return users


def name_of(user: int) -> str:
    try:
        return f"user {pwd.getpwuid(user).pw_name}"
    except KeyError:  # no user has the number
        return f"user {user}"
