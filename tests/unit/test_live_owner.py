"""Requests to the owner of a run: for some of its tasks, for the whole run, and none at all."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from celeriac.errors import InvalidConfig
from celeriac.ledger.cancel import insert_requests
from celeriac.ledger.run_store import RunStore
from celeriac.runs.live_owner import LiveOwner

GONE = LiveOwner(run="jobs", label="process 4194305 on another-host", asked_by="a test")


@pytest.mark.parametrize("keys", [["a"], None])
def test_an_owner_that_is_not_found_is_named(keys):
    with pytest.raises(InvalidConfig, match="its owner, process 4194305 on another-host, cannot be asked from here"):
        GONE.cancel(keys)


@pytest.mark.parametrize("none", [[], (), set()])
def test_no_keys_are_not_the_whole_run(none, tmp_path):
    asked = []

    @contextmanager
    def open_connection():
        asked.append(True)
        yield None

    LiveOwner(run="jobs", label=GONE.label, asked_by="a test", open_connection=open_connection).cancel(none)
    assert asked == []
    with RunStore(f"sqlite:///{tmp_path}/ledger.db") as store:
        store.database.write(lambda connection: insert_requests(connection, 1, none))
