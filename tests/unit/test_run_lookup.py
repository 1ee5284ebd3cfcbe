"""The meaning of a run's name in a folder."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from celeriac.ledger.run_lookup import name_in_folder


class Run(NamedTuple):
    name: str
    source: str | None


LATEST_FIRST = [
    Run("jobs-4", "/b/jobs.csv"),
    Run("jobs-3-old", "/b/jobs.csv"),
    Run("jobs-3", "/b/jobs.csv"),
    Run("tools-2", "/b/../a/tools.txt"),
    Run("jobs-2", "/b/other.txt"),
    Run("stdin", None),
    Run("jobs", "/a/jobs.csv"),
]


@pytest.mark.parametrize(
    ("name", "folder", "meant"),
    [
        ("jobs", "/a", "jobs"),
        ("jobs", "/b", "jobs-4"),
        ("jobs-3", "/b", "jobs-3"),
        ("jobs-2", "/b", "jobs-2"),
        ("tools", "/a", "tools-2"),
        ("tools", "/b", None),
        ("jobs", "/c", None),
        ("stdin", "/a", None),
        ("job", "/b", None),
    ],
)
def test_a_name_means_the_run_of_the_folder(name, folder, meant):
    assert name_in_folder(name, folder, LATEST_FIRST) == meant
