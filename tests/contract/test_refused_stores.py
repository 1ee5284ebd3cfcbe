"""The stores of refused messages: one suite for every kind."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pytest
from redis import Redis
from sqlalchemy import create_engine, text

from celeriac.backend.refused import RefusedMessage, RefusedStore, refused_store_for
from celeriac.backend.refused.message import KEPT
from celeriac.broker.app import make_app

pytestmark = pytest.mark.celery


@dataclass
class Site:
    """A store with two clients, as two processes have them."""

    url: str
    one: RefusedStore
    other: RefusedStore


@pytest.fixture(params=["redis", "sqlite", "postgres"])
def site(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[Site]:
    match request.param:
        case "sqlite":
            url = f"db+sqlite:///{tmp_path}/results.db"
        case "postgres":
            postgres = request.getfixturevalue("postgres")
            postgres.sql("DROP TABLE IF EXISTS celeriac_refused")
            url = postgres.url
        case _:
            url = request.getfixturevalue("redis").url
    with closing(make_app(broker_url="memory://", result_backend=url)) as app:
        one, other = refused_store_for(app, timeout=5.0), refused_store_for(app, timeout=5.0)
        assert one is not None
        assert other is not None
        with closing(one), closing(other):
            yield Site(url, one, other)


def message(number: int, **fields: Any) -> RefusedMessage:
    known: dict[str, Any] = {"at": float(number), "queue": "q", "worker": "w@h", "id": str(number), "why": "x"}
    return RefusedMessage(**{**known, "size": 5, "about": "", **fields})


def test_the_newest_messages_are_kept_and_read_first(site):
    assert list(site.other.newest()) == []
    for number in range(KEPT + 20):
        site.one.add(message(number))
    assert [one.id for one in site.other.newest()] == [str(n) for n in range(KEPT + 19, 19, -1)]


def test_workers_may_add_at_the_same_time(site):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: (site.one if n % 2 else site.other).add(message(n)), range(40)))
    assert {one.id for one in site.one.newest()} >= {str(n) for n in range(40)}


def test_any_text_can_be_kept(site):
    added = message(1, queue="ü\x1b[31m", why='"quotes" \\ \n', id=None, size=None, about="x" * 500)
    site.one.add(added)
    assert site.other.newest()[0] == added


def test_a_value_that_is_no_message_is_left_out(site):
    site.one.add(message(1))
    if site.url.startswith("redis"):
        with Redis.from_url(site.url) as client:
            client.lpush("celeriac-refused", b"garbage", b"\xff", b"{}", b"null", b"[" * 10_000)
    else:
        engine = create_engine(site.url.removeprefix("db+"))
        with engine.begin() as connection:
            for value in ("garbage", "{}", "null", "[" * 10_000):
                connection.execute(text("INSERT INTO celeriac_refused (content) VALUES (:value)"), {"value": value})
        engine.dispose()
    site.one.add(message(2))
    assert [one.id for one in site.other.newest()] == ["2", "1"]


def test_other_backends_keep_none():
    with closing(make_app(broker_url="memory://", result_backend="cache+memory://")) as app:
        assert refused_store_for(app, timeout=1.0) is None
