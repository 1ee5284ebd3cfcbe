"""`--help` in sections: the commands by what they are for, the options by what they are about."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from inspect import cleandoc

import click

OTHER = "Other options"
SECTIONS = {
    "Where commands run": (
        *("parallelism", "local", "broker", "broker_file", "backend", "backend_file"),
        *("tls_ca", "tls_cert", "tls_key", "queue_type", "queues", "workers", "concurrency", "pool", "autoscale"),
    ),
    "Jobs from a template": ("template", "key_template", "grid", "is_pipe", "block"),
    "Defaults of jobs": ("format_", "timeout", "grace", "retries", "retry_delay", "scratch", "not_before", "deadline"),
    "Course of the run": (
        "name",
        "tags",
        "resume",
        "resume_failed",
        "dry_run",
        "keep_going",
        "max_failures",
        "wait",
        "failed",
    ),
    "Limits": (
        *("queue_limits", "concurrency_limits", "concurrency_rates", "queue_rates"),
        *("cpus", "memory", "gpus", "max_load", "min_free_memory", "delay"),
    ),
    "At the end": ("on_end", "notify", "notify_file", "notify_first_failure"),
    "Output": (
        *("group", "line_buffer", "keep_order", "tag", "quiet_output"),
        *("output", "output_limit", "events", "job_log", "quiet", "as_json", "log_format", "log_level"),
        *("stream", "attempt", "follow", "states", "where", "slowest", "limit"),
    ),
}
"""The names of options by section. All other options are in the last one, `OTHER`."""

DEFAULT_COLUMNS = 80  # of standard output that is no terminal
MIN_CLICK_WIDTH = 50  # columns; click's help is never narrower by itself
MIN_WIDTH = 28  # columns of our narrowest help
NAME_WIDTH, NARROW_NAME_WIDTH = 30, 10  # columns before the text of an option or a command, at the most
EXAMPLE_WIDTH = 40  # columns of an example, before what it does
MIN_OPTIONS = 10  # a command with fewer has one section
WORDS = {
    "slot": "The room for one running task. A run has as many slots as -j says; a task may take several.",
    "ledger": "The database that remembers runs and their tasks: by default a file of yours, of SQLite.",
    "lease": "A worker's proof of life, which it renews every 2 s. One without a renewal for 10 s is dead.",
    "claim": "A worker's right to start one attempt of a task. It gives it to one worker only.",
}
"""The terms that a newcomer meets first. `docs/glossary.md` has all of them."""


class SectionedCommand(click.Command):
    """A command whose options are listed in sections. Examples come first, after the first paragraph of its help."""

    EXAMPLES: Sequence[tuple[str, str]] = ()

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if not self.EXAMPLES or self.help is None:
            super().format_help_text(ctx, formatter)
            return
        first, _, rest = cleandoc(self.help).partition("\n\n")
        for paragraphs in (first, rest):
            formatter.write_paragraph()
            with formatter.indentation():
                formatter.write_text(paragraphs)
            if paragraphs is first:
                write_section(formatter, "Examples", self.EXAMPLES, EXAMPLE_WIDTH)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        given = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        options = [(option.name, record) for option in given if (record := option.get_help_record(ctx))]
        if len(options) < MIN_OPTIONS:
            write_section(formatter, "Options", [record for _, record in options])
            return
        section_of = {name: section for section, names in SECTIONS.items() for name in names}
        for section in (*SECTIONS, OTHER):
            records = [record for name, record in options if section_of.get(str(name), OTHER) == section]
            if records:
                write_section(formatter, section, records)


class SectionedGroup(click.Group):
    """A group whose commands are listed in sections, followed by the words that a newcomer meets."""

    def __init__(self, *args: object, command_sections: Mapping[str, Mapping[str, str]], **kwargs: object) -> None:
        """`command_sections` has, for each section, its commands with their short help."""
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self._command_sections = command_sections

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(len(name) for commands in self._command_sections.values() for name in commands)
        for section, commands in self._command_sections.items():
            write_section(formatter, section, [(name.ljust(width), text) for name, text in commands.items()])
        write_section(formatter, "Words", [(word.ljust(width), text) for word, text in WORDS.items()])


def write_section(
    formatter: click.HelpFormatter, title: str, records: Sequence[tuple[str, str]], width: int = NAME_WIDTH
) -> None:
    """Write a list of terms, of `width` columns at the most, with their texts.

    On a narrow terminal, a text begins below a long term.
    """
    with formatter.section(title):
        formatter.write_dl(records, col_max=width if formatter.width >= MIN_CLICK_WIDTH else NARROW_NAME_WIDTH)


def narrow_width() -> int | None:
    """Return the width of a terminal that is narrower than click's narrowest help; None for any other."""
    width = terminal_columns() - 2
    return max(MIN_WIDTH, width) if width < MIN_CLICK_WIDTH else None


def terminal_columns() -> int:
    """Return what `shutil.get_terminal_size` does, without loading `shutil` with its formats of archives."""
    with suppress(ValueError):
        if (columns := int(os.environ.get("COLUMNS", "0"))) > 0:
            return columns
    with suppress(AttributeError, ValueError, OSError):  # there is no standard output, or it is no terminal
        return os.get_terminal_size(sys.__stdout__.fileno()).columns or DEFAULT_COLUMNS  # type: ignore[union-attr]
    return DEFAULT_COLUMNS
