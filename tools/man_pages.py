"""Write the man pages and the completion scripts of the command line, or check them: tools/man_pages.py [--check].

They are written into `share/`, as they are installed below the prefix of an environment.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from celeriac import __version__
from celeriac.cli import COMMANDS, main

ROOT = Path(__file__).parents[1]
SHARE = ROOT / "share"
PROGRAM = "celeriac"
COMPLETION_VARIABLE = "_CELERIAC_COMPLETE"
WIDTH = 10_000  # columns: each paragraph, and each option, is one line of the help
SHELLS: dict[str, type[ShellComplete]] = {
    "bash-completion/completions/celeriac": BashComplete,
    "zsh/site-functions/_celeriac": ZshComplete,
    "fish/vendor_completions.d/celeriac.fish": FishComplete,
}


def main_program(arguments: list[str]) -> int:
    files = {f"man/man1/{name}.1": text for name, text in pages()}
    files |= {path: shell(main, {}, PROGRAM, COMPLETION_VARIABLE).source() for path, shell in SHELLS.items()}
    if "--check" in arguments:
        stale = [path for path, text in files.items() if not is_current(SHARE / path, text)]
        stale += [str(page) for page in SHARE.glob("man/man1/*.1") if f"man/man1/{page.name}" not in files]
        print("\n".join(f"share/{path} is out of date: make docs" for path in stale) or "man pages: up to date")
        return bool(stale)
    for path, text in files.items():
        (SHARE / path).parent.mkdir(parents=True, exist_ok=True)
        (SHARE / path).write_text(text)
    return 0


def is_current(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text


def pages() -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each page."""
    with main.make_context(
        PROGRAM, [], resilient_parsing=True, terminal_width=WIDTH, max_content_width=WIDTH
    ) as context:
        yield PROGRAM, page(PROGRAM, str(main.help).split(".")[0], main.get_help(context), see=[*COMMANDS])
        for name, short_help in COMMANDS.items():
            command = main.commands[name].make_context(name, [], context, resilient_parsing=True)
            text = command.command.get_help(command)
            yield f"{PROGRAM}-{name}", page(f"{PROGRAM}-{name}", short_help.rstrip("."), text, see=[])


def page(name: str, short_help: str, help_text: str, *, see: list[str]) -> str:
    """Return the man page of a command, made of its help."""
    usage, *blocks = re.split(r"\n\n(?=\S)|\n\n(?=  \S)", help_text)
    lines = [
        f'.TH {name.upper()} 1 "" "Celeriac {__version__}" "User commands"',
        *(".SH NAME", f"{escaped(name)} \\- {escaped(short_help)}"),
        *(".SH SYNOPSIS", ".nf"),
        *(escaped(line.removeprefix("Usage:").strip()) for line in usage.splitlines()),
        *(".fi", ".SH DESCRIPTION"),
    ]
    for block in sorted(blocks, key=is_section):  # examples stand between the paragraphs of the help
        first, *rest = block.splitlines()
        if is_section(block):
            lines += [f".SH {escaped(first[:-1].upper())}", *(line for each in rest for line in entry(each))]
        else:
            lines += [".PP", *(escaped(line.strip()) for line in (first, *rest))]
    others = [f".BR {escaped(f'{PROGRAM}-{other}')} (1)" for other in see] or [f".BR {PROGRAM} (1)"]
    return "\n".join([*lines, ".SH SEE ALSO", *(f"{line}," for line in others[:-1]), others[-1]]) + "\n"


def is_section(block: str) -> bool:
    first = block.splitlines()[0]
    return first.endswith(":") and not first.startswith(" ")


def entry(line: str) -> list[str]:
    """Return the roff of a line of a list: an option or a command, and its text."""
    if line.startswith("    "):  # the text of a term that was too long for its column
        return [escaped(line.strip())]
    term, _, text = line.strip().partition("  ")
    if not text:
        return [".TP", f".B {escaped(term)}"]
    return [".TP", f".B {escaped(term)}", escaped(text.strip())]


def escaped(text: str) -> str:
    """Return text that roff prints as it is."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("…", "...")
    return f"\\&{text}" if text.startswith((".", "'")) else text


if __name__ == "__main__":
    sys.exit(main_program(sys.argv[1:]))
