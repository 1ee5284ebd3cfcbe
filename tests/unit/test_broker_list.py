"""Which broker of a list is used, and which lists are refused."""

from __future__ import annotations

import pytest
from celery import Celery

from celeriac import Cluster
from celeriac.broker.broker_list import BrokerList, broker_list_of
from celeriac.config.settings import read_settings, split_brokers
from celeriac.errors import InvalidConfig

A, B, C = "redis://:secret@a/0", "redis://:secret@b/0", "redis://:secret@c/0"


def test_the_broker_that_answered_last_is_tried_first(caplog):
    brokers = BrokerList([A, B, C])
    assert (brokers.current, brokers.in_order()) == (A, [A, B, C])
    brokers.use(B)
    assert (brokers.current, brokers.in_order()) == (B, [B, A, C])
    assert caplog.messages == ["redis://:******@b/0 is used from now on instead of redis://:******@a/0"]
    brokers.use(B)
    assert len(caplog.messages) == 1
    assert str(brokers) == "redis://:******@a/0 or redis://:******@b/0 or redis://:******@c/0"


def test_only_servers_that_share_no_messages_are_returned_to():
    nodes, servers = BrokerList([A, B, C]), BrokerList([A, B, C], prefers_first=True)
    for brokers in (nodes, servers):
        assert brokers.better() == []
        brokers.use(C)
    assert (nodes.better(), servers.better()) == ([], [A, B])


def test_all_callers_of_an_app_share_its_list():
    app = Celery(broker=f"{A};{B}", set_as_current=False)
    brokers = broker_list_of(app)
    assert brokers.urls == (A, B)
    assert broker_list_of(app, for_read=True) is brokers
    brokers.use(B)
    assert brokers.better() == [A]
    assert broker_list_of(Celery(broker=[A, B], set_as_current=False)).current == A


def test_sentinels_are_one_broker():
    assert split_brokers("sentinel://a:1;sentinel://b:1") == ("sentinel://a:1;sentinel://b:1",)
    assert split_brokers("amqp://a; amqp://b;amqp://a;") == ("amqp://a", "amqp://b")


@pytest.mark.parametrize(
    ("broker", "problem"),
    [
        ("redis://a;amqp://b", "broker: its URLs are of several kinds: 'redis', 'amqp'; give brokers of one kind"),
        ("amqp://a;amqps://b", "broker: its URLs are of several kinds: 'amqp', 'amqps'; give brokers of one kind"),
        ("amqp://a;b:5672", "broker: its URLs are of several kinds"),
        ("redis://a;redis://b", "backend: none is named, and several brokers cannot keep results together"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused(broker, problem):
    with pytest.raises(InvalidConfig, match="^" + problem):
        _ = read_settings({"broker": broker}, environment={}).connection
    with pytest.raises(InvalidConfig, match="^" + problem):
        Cluster(broker, None if problem.startswith("backend") else "redis://c")


def test_brokers_of_one_kind_are_accepted():
    broker = "amqp://a;pyamqp://b"
    assert read_settings({"broker": broker, "backend": "redis://c"}, environment={}).connection.broker == broker
