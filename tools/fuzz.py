"""Fuzz the decoders with atheris, which sees which code each value reaches: `make fuzz SECONDS=3600`.

    tools/fuzz.py TARGET [OPTION OF LIBFUZZER...]     such as -max_total_time=600 -rss_limit_mb=2048 -timeout=5

The targets are those of `tests/support/fuzz_targets.py`. A finding ends the run, and its value is in a file crash-….
"""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path

import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]

sys.path.insert(0, str(Path(__file__).parents[1]))

with atheris.instrument_imports(include=["celeriac", "kombu.utils.json", "celery.backends.base"]):
    from tests.support.fuzz_targets import SEEDS, TARGETS


def main() -> None:
    name = sys.argv.pop(1)
    logging.disable()
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(SEEDS[name]):
            Path(corpus, str(number)).write_bytes(seed)
        atheris.Setup([*sys.argv, corpus], TARGETS[name])
        atheris.Fuzz()


main()
