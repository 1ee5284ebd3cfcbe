"""Checks on disk what the jobs of make_jobs.py have done: `python check_results.py FOLDER`."""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
from pathlib import Path


def is_right(module: Path, results: Path) -> bool:
    original = module.read_bytes()
    archive, digest = results / f"{module.name}.gz", results / f"{module.name}.sha256"
    return (
        archive.exists()
        and digest.exists()
        and gzip.decompress(archive.read_bytes()) == original
        and digest.read_text().split()[0] == hashlib.sha256(original).hexdigest()
    )


def main() -> None:
    folder = Path(sys.argv[1])
    modules = [Path(name) for name in json.loads((folder / "modules.json").read_text())]
    wrong = [module.name for module in modules if not is_right(module, folder / "results")]
    print(f"{len(modules) - len(wrong)} of {len(modules)} modules are compressed, hashed and verified")
    if wrong:
        sys.exit(f"wrong or missing: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
