"""Test how the search for lost tasks finds task ids in the messages of Redis."""

from __future__ import annotations

import json

import pytest

from celeriac.cluster.lost_tasks.redis_queues import find_ids

MESSAGE = {"body": "WyJjb3JyZWxhdGlvbl9pZCJd", "properties": {"correlation_id": "an-id.2", "delivery_tag": "tag"}}


@pytest.mark.parametrize(
    "stored",
    [
        json.dumps(MESSAGE),
        json.dumps(MESSAGE, separators=(",", ":")),
        json.dumps([MESSAGE, "exchange", "key"]),
        json.dumps([json.dumps(MESSAGE), "exchange", "key"]),
    ],
    ids=["waiting", "compact", "delivered", "text in text"],
)
def test_each_message_has_one_id(stored):
    assert list(find_ids([stored.encode(), b"no message", b'{"correlation_id": 7}'])) == ["an-id.2"]
