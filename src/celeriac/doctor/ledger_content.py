"""The check of what is in a ledger file. It needs SQLAlchemy, which the other checks of a ledger do not."""

from __future__ import annotations

from collections.abc import Iterator

from celeriac.doctor.check import Check, Problem, error, warning
from celeriac.doctor.ledger import LedgerFile
from celeriac.errors import InvalidConfig, LedgerBroken, LedgerError
from celeriac.ledger.database import Database
from celeriac.ledger.ledger_file import RESTORE


def content_problem(ledger: LedgerFile) -> Iterator[Problem]:
    """Open the ledger to read it. One that does not exist, or has no run yet, is sound."""
    if not ledger.path.is_file() or not ledger.path.stat().st_size:
        return
    try:
        Database(ledger.url, read_only=True).close()
    except InvalidConfig as problem:
        if not any(text in problem.problem for text in ("is no ledger yet", "must be migrated")):
            yield error(f"{problem.setting}: {problem.problem}", problem.remedy)
    except LedgerBroken as problem:
        yield error(str(problem).removesuffix(f"; {RESTORE}"), RESTORE)
    except LedgerError as problem:
        yield warning(str(problem), "see whether another process hangs")


CONTENT: Check[LedgerFile] = Check(
    id="ledger-content",
    sound="the ledger can be read, or has no run yet",
    risk="Commands refuse the ledger.",
    look=content_problem,
)
