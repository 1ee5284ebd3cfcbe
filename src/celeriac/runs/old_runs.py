"""Remove the runs that exceed a limit of their ledger, with their temporary folders.

The ledger is imported only for type checkers, as in `record`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from celeriac.config.ledger_keep import LedgerKeep

if TYPE_CHECKING:
    from celeriac.ledger.limits import Removed
    from celeriac.ledger.run_recorder import RunRecorder


def remove_old_runs(ledger: RunRecorder, keep: LedgerKeep, *, present: int | None = None) -> Removed:
    """Remove the runs that exceed a limit, except the `present` one, with their temporary folders.

    Raises `LedgerError`.
    """
    removed = ledger.apply_limits(keep, present=present)
    for output in filter(None, (view.output for view in removed.runs)):
        from celeriac.runs.temporary_output import remove_folder  # late: it is seldom needed

        remove_folder(Path(output))
    return removed


def announcement(keep: LedgerKeep, number: int) -> str:
    """Return the line about the first runs that a ledger removes by itself."""
    return (
        f"the ledger keeps {keep}: {number:,} older runs were removed from it, and more will be; "
        "the setting ledger_keep changes that"
    )
