"""The setting `ledger_keep`."""

from __future__ import annotations

import pytest

from celeriac.config.ledger_keep import LedgerKeep, keep_of
from celeriac.config.settings import read_settings
from celeriac.errors import InvalidConfig


@pytest.mark.parametrize(
    ("text", "days", "size"),
    [
        ("90 days or 2 GB", 90, 2_000_000_000),
        ("1 day", 1, None),
        ("0.5d,100MB", 0.5, 100_000_000),
        ("2 tb", None, 2_000_000_000_000),
        ("512 B", None, 512),
        ("everything", None, None),
    ],
)
def test_limits_are_read_and_written_as_text(text, days, size):
    keep = keep_of(text)
    assert keep == LedgerKeep(days, size)
    assert keep_of(str(keep)) == keep


@pytest.mark.parametrize("text", ["90", "90 weeks", "days", "-1 day", "2 GB of rows", "1 day or"])
def test_other_text_is_refused_in_one_line(text):
    assert keep_of(text) is None
    with pytest.raises(InvalidConfig, match=r'CELERIAC_LEDGER_KEEP.*give for example "90 days or 2 GB"'):
        read_settings(environment={"CELERIAC_LEDGER_KEEP": text})
