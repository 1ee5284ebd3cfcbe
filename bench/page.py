"""Write the page of all figures, and the README's short table, from one run of the whole benchmark.

rows by section ─► docs/benchmarks.md
headline rows   ─► README.md, between two comments
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.table import Row, markdown

ROOT = Path(__file__).parent.parent
PAGE, README = ROOT / "docs/benchmarks.md", ROOT / "README.md"
SHORT_TABLE = re.compile(r"(<!-- figures -->\n).*?(<!-- end of figures -->)", re.DOTALL)
INTRODUCTION = """\
# Benchmarks

`make bench-docs` measures each figure beside that of a rival, in the same run, and writes this page and the short table
of the README. `make bench PART=publish-redis ROUNDS=9` measures one part with less noise. `make bench-quick` measures
ten parts in some minutes, and fails if a figure falls below half of its bar, twice.

The incumbent is Airflow's own CeleryExecutor. Its `operation_timeout` is raised from 1 s to 10 s, for both: on a busy
machine it fails otherwise. Only while the broker swallows every packet it is 1 s.

Compare ratios, not digits: the machine is shared. A bar is what we want to reach. A figure that misses it says NO.
"""


def write(sections: Mapping[str, Sequence[Row]], headlines: Sequence[Row], machine: str) -> None:
    date = datetime.datetime.now(tz=datetime.UTC).date()
    parts = [INTRODUCTION, f"One run, on {date}: {machine}.\n"]
    parts += [f"## {heading}\n\n{markdown(rows)}\n" for heading, rows in sections.items()]
    PAGE.write_text("\n".join(parts))
    short = f"Measured on {date}. {machine}.\n\n{markdown(headlines)}\n"
    README.write_text(SHORT_TABLE.sub(lambda found: found[1] + short + found[2], README.read_text()))
