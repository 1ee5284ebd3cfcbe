"""Check the files that the jobs of make_jobs.py have written: `python check_results.py FOLDER`."""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
from pathlib import Path


def is_correct(module: Path, results: Path) -> bool:
    """Return whether the archive and the hash of a module are complete and match it."""
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
    bad = [module.name for module in modules if not is_correct(module, folder / "results")]
    print(f"{len(modules) - len(bad)} of {len(modules)} modules are compressed, hashed and verified")
    if bad:
        sys.exit(f"wrong or missing: {', '.join(bad)}")


if __name__ == "__main__":
    main()
