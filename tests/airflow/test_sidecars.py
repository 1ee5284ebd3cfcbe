"""Check the process beside a worker."""

from __future__ import annotations

import pytest

from celeriac.airflow import sidecars


@pytest.mark.parametrize("serves_logs", [True, False])
def test_stale_bundles_are_removed_also_if_the_log_server_fails(monkeypatch, serves_logs):
    intervals: list[float] = []

    def fail() -> None:
        raise OSError("the port is taken")

    monkeypatch.setattr(sidecars, "end_with_parent", lambda: None)
    monkeypatch.setattr(sidecars, "serve_logs", fail)
    monkeypatch.setattr(sidecars, "remove_stale_bundles", intervals.append)
    sidecars.run_attached(serves_logs, 5.0)
    assert intervals == [5.0]
