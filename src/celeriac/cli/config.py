"""`celeriac config`: every setting, and where it came from."""

from __future__ import annotations

from typing import Any

import click

from celeriac.cli.options import config_option, or_bad_input


@click.command(short_help="Show each setting and where it came from.")
@config_option
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@or_bad_input
def config(config: str | None, as_json: bool) -> None:
    """Show each setting, its value, and where that came from: a file, a variable, or the default.

    Passwords in URLs and signing keys are masked.
    """
    import json

    from rich.console import Console
    from rich.table import Table

    from celeriac.config.schema import SETTINGS
    from celeriac.config.settings import read_settings

    values = read_settings(config=config).values
    if as_json:
        shown = {n: {"value": SETTINGS[n].display(v.value), "origin": v.origin} for n, v in values.items()}
        click.echo(json.dumps(shown))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("setting", "value", "from"):
        table.add_column(column, overflow="fold")
    for name, value in values.items():
        table.add_row(name, in_words(SETTINGS[name].display(value.value)), value.origin)
    Console(markup=False, highlight=False, soft_wrap=False).print(table)


def in_words(value: Any) -> str:
    match value:
        case None:
            return ""
        case list() | tuple():
            return ",".join(map(str, value))
        case dict():
            return ",".join(f"{name}={number}" for name, number in value.items())
    return str(value)
