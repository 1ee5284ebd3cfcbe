"""Commands that are imported when they are called, so that `celeriac --help` starts fast."""

from __future__ import annotations

import importlib
from typing import Any

import click

from celeriac.cli.exit_status import BAD_INPUT
from celeriac.cli.json_errors import print_json_error
from celeriac.cli.messages import print_message


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
        from celeriac.cli.warning_printer import print_unhandled_warnings  # imports the log, as most commands do

        print_unhandled_warnings()
        command: click.Command = getattr(module, str(self.name))
        context = command.make_context(info_name, args, parent, **extra)
        if not context.resilient_parsing:
            refuse_empty_values(command, context)
        return context


def refuse_empty_values(command: click.Command, context: click.Context) -> None:
    """Exit with one line if an argument or an option has an empty value: no file, name or key is empty.

    Without this check, an empty variable of a script would count as an option that was not given.
    """
    for parameter in command.params:
        value = context.params.get(str(parameter.name))
        if value == "" or (isinstance(value, tuple) and "" in value):
            is_option = isinstance(parameter, click.Option)
            name = max(parameter.opts, key=len) if is_option else parameter.human_readable_name.split()[-1].strip("[].")
            remedy = "give a value, or leave the option out" if is_option else "give a value"
            line = f"{name}: it is empty; {remedy}"
            print_message(line)
            print_json_error(line, context=context)
            context.exit(BAD_INPUT)
