"""URLs of brokers, result backends and ledgers: what is read from them, and which are refused."""

from __future__ import annotations

import pytest

from celeriac.config.postgres import connect_timeouts, engine_options

PSYCOPG = "db+postgresql+psycopg://u:p@host/db"


@pytest.mark.parametrize("url", [PSYCOPG, "postgresql+psycopg://host/db"])
def test_psycopg_prepares_no_statements_unless_that_is_configured(url):
    assert engine_options(url, {"echo": True}) == {"echo": True, "connect_args": {"prepare_threshold": None}}
    configured = {"connect_args": {"prepare_threshold": 3, "options": "x"}}
    assert engine_options(url, configured) == configured


@pytest.mark.parametrize("url", ["postgresql+psycopg2://host/db", "postgresql+asyncpg://host/db", "db+sqlite:///x"])
def test_other_drivers_get_no_argument_for_prepared_statements(url):
    assert engine_options(url, {"connect_args": {"a": 1}}) == {"connect_args": {"a": 1}}


def test_only_drivers_of_libpq_get_its_timeouts():
    assert connect_timeouts("postgresql+psycopg2://host/db", 3.0)["connect_timeout"] == 3
    assert connect_timeouts("postgresql+asyncpg://host/db", 3.0) == {}
