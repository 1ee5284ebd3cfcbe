"""Write a job file that compresses, hashes and verifies each module of Python's standard library.

    python make_jobs.py FOLDER        writes FOLDER/jobs.jsonl; its jobs write FOLDER/results

There are three priorities: first the hashes of the modules, then the archives, and last the jobs that verify an archive
against its hash. Small modules come before large ones.
"""

from __future__ import annotations

import json
import sys
import sysconfig
from pathlib import Path

MODULES = 120  # three jobs each


def jobs_for(module: Path, name: str, results: Path) -> list[dict[str, object]]:
    """Return the three jobs of a module."""
    archive, digest = results / f"{name}.gz", results / f"{name}.sha256"
    wait_for_both = f"while [ ! -e {digest} ] || [ ! -e {archive} ]; do sleep 0.05; done"
    return [
        {"key": f"{name} hash", "priority": 10, "queue": "hash",
         "command": f"sha256sum < {module} > {digest}.part && mv {digest}.part {digest}"},
        {"key": f"{name} compress", "priority": 5, "queue": "compress", "timeout": 60,
         "command": f"gzip -9 -c {module} > {archive}.part && mv {archive}.part {archive}"},
        {"key": f"{name} verify", "priority": 1, "queue": "verify", "timeout": 60, "retries": 1,
         "command": f"{wait_for_both}; gzip -dc {archive} | sha256sum -c {digest}"},
    ]  # fmt: skip


def main() -> None:
    folder = Path(sys.argv[1]).absolute()
    results = folder / "results"
    results.mkdir(parents=True)
    library = Path(sysconfig.get_path("stdlib"))
    modules = sorted(library.glob("*.py"), key=lambda path: path.stat().st_size)[-MODULES:]
    with (folder / "jobs.jsonl").open("w") as file:
        for module in modules:
            for job in jobs_for(module, module.name, results):
                file.write(json.dumps(job) + "\n")
    (folder / "modules.json").write_text(json.dumps([str(module) for module in modules]))


if __name__ == "__main__":
    main()
