"""Commands that are imported when they are called, so that `celeriac --help` starts fast."""

from __future__ import annotations

import importlib
from typing import Any

import click


class LazyCommand(click.Command):
    """A stand-in for the command `NAME` of the module `celeriac.cli.NAME`.

    It has only the name and the short help, which the group lists. To invoke a command, click first calls
    `make_context`. Here this returns a context of the real command, which click then invokes.
    """

    def __init__(self, name: str, short_help: str) -> None:
        super().__init__(name, short_help=short_help)

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        module = importlib.import_module(f"celeriac.cli.{self.name}")
        command: click.Command = getattr(module, str(self.name))
        return command.make_context(info_name, args, parent, **extra)
