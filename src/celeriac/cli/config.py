"""`celeriac config`."""

from __future__ import annotations

import json
from typing import Any

import click

from celeriac.cli.formatting import on_one_line
from celeriac.cli.options import config_option, exit_on_bad_input, json_option
from celeriac.cli.tables import output_width, table_lines
from celeriac.config.schema import SETTINGS
from celeriac.config.settings import read_settings


@click.command
@config_option
@json_option
@exit_on_bad_input
def config(config: str | None, as_json: bool) -> None:
    """Show each setting, its value, and its source: a file, an environment variable, or the default.

    Passwords in URLs and signing keys are masked.
    """
    values = read_settings(config=config).values
    if as_json:
        fields = {n: {"value": SETTINGS[n].display(v.value), "origin": v.origin} for n, v in values.items()}
        click.echo(json.dumps(fields))
        return
    rows = (
        (name, on_one_line(value_text(SETTINGS[name].display(value.value))), on_one_line(value.origin))
        for name, value in values.items()
    )
    for line in table_lines(("setting", "value", "source"), rows, width=output_width(), foldable=("value", "source")):
        click.echo(line)


def value_text(value: Any) -> str:
    match value:
        case None:
            return ""
        case list() | tuple():
            return ",".join(map(str, value))
        case dict():
            return ",".join(f"{name}={number}" for name, number in value.items())
    return str(value)
