"""URLs of brokers, result backends and ledgers: what is read from them, and which are refused."""

from __future__ import annotations

import pytest
from kombu import Connection

from celeriac.cluster.cluster import Cluster
from celeriac.config.postgres import connect_timeouts, engine_options
from celeriac.config.schema import InvalidValue, parse_ledger, parse_url
from celeriac.errors import InvalidConfig

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


# — the form —

GOOD = [
    "redis://h",
    "redis://h/",
    "redis://h:1/0",
    "redis://h//",
    "redis://h//3",
    "redis://:p@h:1/0",
    "redis://u:p%2F%23%3F%40@h/0",
    "redis://[::1]:6379/0",
    "redis://:100%@h/0",
    "redis://u:pa:ss@h/0",
    "rediss://h:6380/1?ssl_cert_reqs=required",
    "redis+socket:///tmp/x.sock?virtual_host=1",
    "sentinel://a:26379;sentinel://b:26379/0",
    "amqp://u:p@h//",
    "amqp://u:p@h/v",
    "amqp://h",
    "amqps://u:p@[::1]:5671/v",
    "amqp://a:1//;amqp://b:2//",
    "amqp://a:1//; amqp://b:2//;",
    "db+sqlite:///x.db",
    "db+postgresql+psycopg://u:p/#?w@h:5432/db",
    "db+postgresql+psycopg://u@/db?host=/tmp",
    "db+postgresql://a:1,b:2/db",
    "db+mysql+pymysql://u:p@h/db?charset=utf8",
    "memory://",
    "cache+memory://",
    "sqs://a/b:c+d/e@",
]


@pytest.mark.parametrize("url", GOOD)
def test_a_url_that_can_be_used_stays_as_it_is(url):
    assert parse_url(url) == url


RAW = {
    "redis://:Pa/Ss@h:6379/0": "write %2F for /",
    "redis://:Pa#Ss@h/0": "write %23 for #",
    "redis://:Pa?Ss@h/0": "write %3F for ?",
    "redis://:Pa@Ss@h/0": "write %40 for @",
    "redis://:Pa;Ss@h/0": "write %3B for ;",
    "redis://:Pa[Ss@h/0": "write %5B for [, %5D for ]",
    "redis://Pa:12/34@h/0": "write %2F for /",
    "redis://Pa:12?34@h/0": "write %3F for ?",
    "redis://Pa:1/2?3@h/0": "write %2F for /, %3F for ?",
    "redis://:Pa/#Ss?@@h/0": "write %2F for /, %23 for #, %3F for ?, %40 for @",
    "amqp://u:Pa/Ss@h//": "write %2F for /",
    "amqp://u:Pa#Ss@h//": "write %23 for #",
    "amqps://u:Pa?Ss@h//": "write %3F for ?",
    "amqp://u:Pa@Ss@h//": "write %40 for @",
    "db+postgresql+psycopg://u:Pa@Ss@h/db": "write %40 for @",
}


@pytest.mark.parametrize("url", RAW)
def test_a_raw_character_in_a_password_is_named_with_its_escape(url):
    assert refusal(url) == f"has a raw character in the user name or the password; {RAW[url]}"


WRONG = {
    "redis://h:Pa/0": "has a port that is not a number",
    "redis://user:PaSs": "has a port that is not a number",
    "redis://h:99999/0": "has a port that is not a number",
    "redis://h:0/0": "has a port that is not a number",
    "redis://h:-1/0": "has a port that is not a number",
    "amqp://u:p@h:Pa/v": "has a port that is not a number",
    "db+postgresql+psycopg://u:p@h:Pa/db": "has a port that is not a number",
    "redis://": "names no host; write localhost for this machine",
    "redis:///0": "names no host; write localhost for this machine",
    "redis://:PaSs@/0": "names no host; write localhost for this machine",
    "amqp://u:PaSs@:5672//": "names no host; write localhost for this machine",
    "redis://h/Pa": "has a database that is not a number",
    "redis://h/-1": "has a database that is not a number",
    "redis://h/0/1": "has a database that is not a number",
    "rediss://h/0?ssl_cert_reqs=Pa": "has an unknown ssl_cert_reqs",
    " redis://:Pa@h/0": "has a space or a line break in it",
    "redis://:Pa@h/0\n": "has a space or a line break in it",
    "redis://:Pa Ss@h/0": "has a space or a line break in it",
    "'redis://:Pa@h/0'": "is in quotes; remove the quotes",
    '"redis://:Pa@h/0"': "is in quotes; remove the quotes",
    "redis:h": "is not a URL",
    "http://h/Pa": "begins with http://, which names no broker, backend or ledger",
    "valkey://:Pa@h/0": "begins with valkey://; write redis:// or rediss:// for Valkey, too",
    __file__: "is the name of a file, not a URL; add -file to the option, or _file to the setting",
    "": "is not a URL",
}


@pytest.mark.parametrize("url", WRONG)
def test_a_wrong_url_is_refused_without_showing_it(url):
    assert refusal(url).startswith(WRONG[url])


def refusal(url: str) -> str:
    with pytest.raises(InvalidConfig) as caught:
        parse_url(url)
    text = f"{caught.value.problem}; {caught.value.remedy}"
    assert "Pa" not in text
    assert "Ss" not in text
    return text


@pytest.mark.parametrize("url", [None, 5, ["redis://h"]])
def test_a_value_that_is_no_text_is_refused(url):
    with pytest.raises(InvalidValue):
        parse_url(url)


@pytest.mark.parametrize(
    ("ledger", "problem"),
    [
        ("postgresql://u:Pa@Ss@h/db", "has a raw character"),
        ("postgresql+psycopg://u:p@h:port/db", "has a port"),
        ("postgresql://h /db", "has a space"),
        ("'postgresql://h/db'", "is in quotes"),
    ],
)
def test_the_url_of_a_ledger_is_checked(ledger, problem):
    with pytest.raises(InvalidConfig) as caught:
        parse_ledger(ledger)
    assert caught.value.problem.startswith(problem)


@pytest.mark.parametrize("ledger", ["sqlite:////a folder/l.db", "postgresql://u:p/#w@h:5432/db", "none"])
def test_a_good_url_of_a_ledger_stays_as_it_is(ledger):
    assert parse_ledger(ledger) == ledger


# — the servers of URLs —


@pytest.mark.parametrize("url", [url for url in GOOD if url.startswith(("redis://", "amqp"))])
def test_kombu_reads_the_same_host_as_was_checked(url):
    for one in filter(None, url.split(";")):
        read = Connection(one.strip())
        assert (read.hostname or "").strip("[]") in ("h", "::1", "a", "b")


def test_a_tls_backend_without_cert_reqs_names_the_parameter():
    with pytest.raises(InvalidConfig) as caught:
        Cluster("redis://h/0", "rediss://h/0")
    assert str(caught.value) == (
        "backend: rediss:// needs the parameter ssl_cert_reqs; add ?ssl_cert_reqs=required to the URL"
    )


def test_a_parameter_that_celery_does_not_know_is_refused():
    with pytest.raises(InvalidConfig, match=r"^broker: has a parameter"):
        Cluster("redis://h/0?nonsense=1")


def test_the_urls_of_a_cluster_are_checked():
    with pytest.raises(InvalidConfig, match=r"^broker: has a raw character"):
        Cluster("redis://:a/b@h/0")
