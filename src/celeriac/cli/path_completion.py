"""Completion of files and folders in the shell."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeAlias

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

Completions: TypeAlias = "list[CompletionItem]"


def complete_file(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> Completions:
    return items([incomplete], kind="file")


def complete_folder(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> Completions:
    return items([incomplete], kind="dir")


def items(values: Iterable[str], *, kind: str = "plain") -> Completions:
    """Return the values for click. The kinds "file" and "dir" let the shell complete a path."""
    from click.shell_completion import CompletionItem  # only a shell that completes needs it

    return [CompletionItem(value, type=kind) for value in values]
