"""Where a worker keeps the output of commands."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import quote

from msgspec import Struct

from celeriac.worker.supervisor.messages import OutputRequest

DEFAULT_OUTPUT_CAP = 10 * 1024 * 1024  # bytes kept of each stream
MAX_FILE_NAME = 200  # bytes, of the 255 that file systems allow
DIGEST_LENGTH = 16  # characters of the digest in the name of a long key
ARTIFACTS = ".artifacts"
"""The end of the name of a folder of artifacts."""

LIKE_SHORTENED = re.compile(rf".{{{MAX_FILE_NAME - DIGEST_LENGTH - 1}}}-[0-9a-f]{{{DIGEST_LENGTH}}}", re.DOTALL)


class OutputPolicy(Struct, frozen=True, kw_only=True):
    """Where a worker keeps the output of commands."""

    directory: Path | None = None
    """If None, no files are written, and the result holds the last lines."""

    keep: bool = True
    """Whether to keep the files of every task, empty ones too, and to fail a task whose output cannot be written.
    Otherwise the files of tasks that succeeded are removed, and write errors are ignored."""

    is_read: bool = False
    """Whether another part of this process reads the files of each task that has ended, and removes those that are not
    kept."""

    cap: int = DEFAULT_OUTPUT_CAP
    """Bytes kept of each stream: its head and its end."""

    inherits_input: bool = False
    """Whether commands read the standard input of this process. Only a cluster in this process can do that."""

    inherits_output: bool = False
    """Whether commands write to the standard streams of this process, and nothing is kept."""

    def request(self, key: str, attempt: int, *, sent: int | None = None) -> OutputRequest:
        """Return where to keep the output of one attempt. `sent` is how much of each stream is also sent to the
        worker."""
        if self.directory is None:
            inherits = self.inherits_output
            return OutputRequest(stdout=None, stderr=None, cap=0, keep_empty=False, inherits=inherits, sent=sent)
        stem = os.path.join(self.directory, file_name(key, attempt))  # noqa: PTH118 - `Path` takes ten times as long
        return OutputRequest(stdout=f"{stem}.out", stderr=f"{stem}.err", cap=self.cap, keep_empty=self.keep, sent=sent)

    def artifacts_folder(self, key: str, attempt: int) -> str | None:
        """Return the folder for the artifacts of one attempt; None if no output is kept."""
        if self.directory is None or not self.keep:
            return None
        return os.path.join(self.directory, f"{file_name(key, attempt)}{ARTIFACTS}")  # noqa: PTH118 - as above

    def remove_later_attempts(self, key: str, attempt: int) -> None:
        """Remove the files of attempts after this one, and the artifacts of this one: an earlier run has left them in
        the folder."""
        later = attempt
        while self.directory is not None and self.keep:
            stem = os.path.join(self.directory, file_name(key, later))  # noqa: PTH118
            is_later = later > attempt
            removed = [remove_file(f"{stem}.out"), remove_file(f"{stem}.err")] if is_later else []
            removed.append(remove_folder(f"{stem}{ARTIFACTS}"))
            if is_later and not any(removed):
                return
            later += 1


def remove_file(path: str) -> bool:
    """Remove a file. Return whether that worked."""
    try:
        os.unlink(path)  # noqa: PTH108 - called for every attempt, and pathlib takes twice as long
    except OSError:
        return False
    return True


def remove_folder(path: str) -> bool:
    """Remove a folder with all that is in it. Return whether there was one."""
    if not os.path.isdir(path):  # noqa: PTH112 - as above
        return False
    from celeriac.worker.supervisor.scratch import remove_tree  # late: few attempts have left a folder

    remove_tree(path)
    return True


def file_name(key: str, attempt: int) -> str:
    """Return a name that is safe in any folder, and different for every key and attempt."""
    name = quote(key, safe=" +,=:()[]{}'~", errors="surrogatepass")
    if len(name) > MAX_FILE_NAME or LIKE_SHORTENED.fullmatch(name):  # or else two keys could share a file
        from hashlib import sha256  # late: few keys are so long

        digest = sha256(key.encode(errors="surrogatepass")).hexdigest()[:DIGEST_LENGTH]
        name = f"{name[: MAX_FILE_NAME - DIGEST_LENGTH - 1]}-{digest}"
    if name.startswith("."):
        name = "%2E" + name[1:]
    return name if attempt == 1 else f"{name}@{attempt}"
