"""Copy the files that an attempt leaves, its artifacts, into a folder beside its output.

patterns ─► walk of the attempt's folder ─► regular files ─► copies, with the same paths below DIR/KEY.artifacts

The command may still have processes, and may have left anything there. So each folder and file is opened relative to
its parent and without following links: what is outside the folder of the attempt is never read.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from fnmatch import fnmatchcase

TYPE_CHECKING = False

if TYPE_CHECKING:
    from celeriac.worker.supervisor.messages import CommandRequest

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
SOURCE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
TARGET = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
ANY_DEPTH = "**"
MAX_DEPTH = 100  # folders in each other
CHUNK_SIZE = 1024 * 1024  # bytes


class NoArtifactsFolder(Exception):
    """The output of commands is not kept here, so their artifacts have no place."""

    about = "artifacts"


def keep_artifacts(request: CommandRequest, scratch: str | None) -> str | None:
    """Copy the artifacts of a command that has ended, from its scratch folder or its working folder. Return as
    `copy_artifacts` does."""
    folder = scratch or request.cwd or os.curdir
    is_scratch = scratch is not None
    return copy_artifacts(folder, request.artifacts or (), request.artifacts_to or "", is_scratch=is_scratch)


def copy_artifacts(source: str, patterns: Sequence[str], target: str, *, is_scratch: bool = False) -> str | None:
    """Copy the files below `source` that match the patterns into the folder `target`, in place of one that is there.

    Return a sentence about the first problem, None without one. A pattern without a file is a problem; the files of the
    others are copied all the same. If the copy fails, nothing of it is kept. A scratch folder cannot be a link; a
    working folder may be one.
    """
    parts = {pattern: parts_of(pattern) for pattern in patterns}
    unmatched = dict.fromkeys(patterns)

    def is_wanted(folder: str) -> bool:
        return any(places_after(folder, pattern) for pattern in parts.values())

    try:
        shutil.rmtree(target, ignore_errors=True)
        os.mkdir(target)
        root = os.open(source, FOLDER if is_scratch else FOLDER & ~os.O_NOFOLLOW)
        try:
            for path, parent, name in files_below(root, is_wanted, (os.path.dirname(target), target)):
                matching = [pattern for pattern in patterns if is_match(path, parts[pattern])]
                if matching and copy_file(parent, name, os.path.join(target, path)):
                    for pattern in matching:
                        unmatched.pop(pattern, None)
        finally:
            os.close(root)
    except OSError as error:
        shutil.rmtree(target, ignore_errors=True)
        return f"{error.filename or target}: {error.strerror or error}"
    with contextlib.suppress(OSError):
        os.rmdir(target)  # if nothing is in it
    missing = next(iter(unmatched), None)
    return None if missing is None else f"no file matches {missing!r}"


def parts_of(pattern: str) -> list[str]:
    return [part for part in pattern.split("/") if part not in ("", ".")]


def is_match(path: str, pattern: Sequence[str]) -> bool:
    """Return whether a file, or a folder that it is in, has a path of these parts: each may have `*`, `?` and `[...]`,
    and `**` stands for any number of folders."""
    return len(pattern) in places_after(path, pattern)


def places_after(path: str, pattern: Sequence[str]) -> set[int]:
    """Return how many parts of a pattern may stand for a path. Nothing in a folder matches if there is no such
    number."""
    places = skip_any_depth({0}, pattern)
    for name in path.split("/"):
        reached = set()
        for place in places:
            if place == len(pattern) or pattern[place] == ANY_DEPTH:
                reached.add(place)
            elif fnmatchcase(name, pattern[place]):
                reached.add(place + 1)
        places = skip_any_depth(reached, pattern)
    return places


def skip_any_depth(places: set[int], pattern: Sequence[str]) -> set[int]:
    """Return these places of a pattern, and those behind each `**` there: it may stand for no folder."""
    reached = set(places)
    for place in sorted(places):
        while place < len(pattern) and pattern[place] == ANY_DEPTH:
            place += 1
            reached.add(place)
    return reached


def files_below(
    folder: int, is_wanted: Callable[[str], bool], left_out: Collection[str], prefix: str = "", depth: int = 0
) -> Iterator[tuple[str, int, str]]:
    """Yield the relative path of each file below an open folder, with its open parent and its name there. Follow no
    link. Enter the folders that are wanted, but none of `left_out`: those of the copies. Raises `OSError`."""
    with os.scandir(folder) as entries:
        names = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    for name, is_folder in names:
        if not is_folder:
            yield prefix + name, folder, name
            continue
        if depth >= MAX_DEPTH or not is_wanted(prefix + name):
            continue
        with contextlib.suppress(FileNotFoundError):  # a process of the command has removed it
            child = os.open(name, FOLDER, dir_fd=folder)
            try:
                if not any(is_same(child, path) for path in left_out):
                    yield from files_below(child, is_wanted, left_out, f"{prefix}{name}/", depth + 1)
            finally:
                os.close(child)


def is_same(folder: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(folder), os.stat(path))
    except OSError:
        return False


def copy_file(folder: int, name: str, target: str) -> bool:
    """Copy a regular file. Return False for anything else, and for what is gone. Raises `OSError`."""
    try:
        source = os.open(name, SOURCE, dir_fd=folder)
    except OSError as error:
        if isinstance(error, PermissionError):
            raise
        return False  # a link, a socket, or it is gone
    try:
        status = os.fstat(source)
        if not stat.S_ISREG(status.st_mode):
            return False
        os.makedirs(os.path.dirname(target), exist_ok=True)
        copy = os.open(target, TARGET, stat.S_IMODE(status.st_mode) & 0o777 | stat.S_IWUSR)
        try:
            copy_bytes(source, copy, status.st_size, target)
            os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
        finally:
            os.close(copy)
    finally:
        os.close(source)
    return True


def copy_bytes(source: int, target: int, size: int, name: str) -> None:
    """Copy a file to its end, but no more than `size`: a process may write on. Holes stay holes.

    Raises `OSError` with the name of the copy."""
    position = 0
    try:
        while position < size:
            position = min(next_data(source, position, size), size)
            data = os.pread(source, min(CHUNK_SIZE, size - position), position)
            if not data:
                break
            position += os.pwrite(target, data, position)
        os.ftruncate(target, position)  # if a hole is at the end
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), name) from None


def next_data(file: int, position: int, size: int) -> int:
    """Return where the next data begins at or after a position; the end of the file, or `size`, if none follows."""
    try:
        return os.lseek(file, position, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return min(size, os.fstat(file).st_size)
