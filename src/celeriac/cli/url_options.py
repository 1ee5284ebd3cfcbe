"""`--broker`, `--backend` and `--ledger`: each as a URL, or as a file that holds the URL."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar

import click

from celeriac.cli.messages import print_message
from celeriac.cli.path_completion import complete_file
from celeriac.config.masking import masked
from celeriac.config.url_files import UrlFile

C = TypeVar("C", bound=Callable[..., Any])

KNOWN_LOGIN = "guest:guest@"
"""The login of a new RabbitMQ is no secret."""

WARNED = "celeriac.password_warning"


def url_option(name: str, *, metavar: str, help: str) -> Callable[[C], Callable[..., Any]]:
    """Return a decorator that adds the options --NAME and --NAME-file. The command gets the value of either as NAME."""

    def decorate(command: C) -> Callable[..., Any]:
        @wraps(command)
        def call(*args: Any, **options: Any) -> Any:
            path = options.pop(f"{name}_file")
            if path is not None:
                if options[name] is not None:
                    raise click.UsageError(f"give only one of --{name} and --{name}-file")
                options[name] = UrlFile(path)
            elif has_secret(options[name]):
                warn_of_password(name)
            return command(*args, **options)

        file_help = f"File that holds the URL for --{name}: other users can read an option, with ps."
        option = click.option(f"--{name}-file", metavar="FILE", shell_complete=complete_file, help=file_help)
        with_file = option(call)
        return click.option(f"--{name}", metavar=metavar, help=help)(with_file)

    return decorate


def place_of(options: Mapping[str, Any]) -> str:
    """Return the options that name the servers of a run, to be typed again, without a URL: it may hold a password."""
    place = ""
    for name in ("broker", "backend"):
        if isinstance(value := options.get(name), UrlFile):
            place += f" --{name}-file {shlex.quote(value)}"
        elif value is not None:
            place += f" --{name} URL"
    return place


def has_secret(url: str | None) -> bool:
    return url is not None and masked(url) != url and KNOWN_LOGIN not in url


def warn_of_password(name: str) -> None:
    """Say, once for a command, that other users can read a password."""
    meta = click.get_current_context().meta
    if not meta.get(WARNED):
        meta[WARNED] = True
        print_message(
            f"other users of this machine can read the password in --{name}, for example with ps; give "
            f"--{name}-file FILE, or CELERIAC_{name.upper()}_FILE"
        )
