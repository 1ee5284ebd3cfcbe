"""Write src/celeriac/ledger/prepared.py: the SQL of the ledger's statements for SQLite.

    python tools/prepared_statements.py [--check]

With `--check`, fail if the module is out of date.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy.dialects import sqlite
from sqlalchemy.schema import CreateIndex, CreateTable

from celeriac.ledger.schema import INPUTS, TABLES, VERSION
from celeriac.ledger.statements import INSERTIONS, STATEMENTS, source_of

MODULE = Path(__file__).parents[1] / "src" / "celeriac" / "ledger" / "prepared.py"
DIALECT = sqlite.dialect(paramstyle="qmark")

START = '''"""The SQL for SQLite of `celeriac.ledger.statements`, and of the tables of `celeriac.ledger.schema`.

`make docs` generates this module; `make check` compares them.
"""

from celeriac.ledger.statement import Statement
'''


def module() -> str:
    """Return the text of the module, formatted."""
    lines = [START, f"VERSION = {VERSION}", ""]
    lines += [f"{name} = {statement(name)}" for name in (*STATEMENTS, *INSERTIONS)]
    lines += ["", f"CREATE_TABLES = {list(create_tables())!r}", f"ADD_TABLES = {[create_table(INPUTS)]!r}"]
    formatter = Path(sys.executable).with_name("ruff")
    command = [str(formatter), "format", "--stdin-filename", str(MODULE), "-"]
    return subprocess.run(command, input="\n".join(lines), text=True, capture_output=True, check=True).stdout


def statement(name: str) -> str:
    """Return the expression of one statement."""
    expression = source_of(name, "sqlite")
    compiled = expression.compile(dialect=DIALECT)
    names = tuple(compiled.positiontup or ())
    fixed = [each for each in names if compiled.params[each] is not None]
    if fixed:
        sys.exit(f"{name}: {', '.join(fixed)}: write a literal in place of a value")
    return f"Statement({name!r}, {one_line(compiled.string)!r}, {names!r})"


def create_tables() -> Iterator[str]:
    """Yield the statements that create all tables and their indexes."""
    for table in TABLES.sorted_tables:
        yield create_table(table)
        for index in sorted(table.indexes, key=lambda each: str(each.name)):
            yield one_line(str(CreateIndex(index, if_not_exists=True).compile(dialect=DIALECT)))


def create_table(table: Any) -> str:
    return one_line(str(CreateTable(table, if_not_exists=True).compile(dialect=DIALECT)))


def one_line(sql: str) -> str:
    return " ".join(sql.split())


def main() -> None:
    text = module()
    if "--check" not in sys.argv:
        MODULE.write_text(text, encoding="utf-8")
    elif not MODULE.exists() or MODULE.read_text(encoding="utf-8") != text:
        sys.exit("src/celeriac/ledger/prepared.py does not match its sources; run `make docs`")


if __name__ == "__main__":
    main()
