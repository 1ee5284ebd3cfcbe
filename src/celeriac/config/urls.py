"""Check the URLs of servers: Celery reads some wrong ones as URLs of other servers, without a word.

No error shows a URL or a part of it: any part may be the password, if a character in it is not escaped.
"""

from __future__ import annotations

import os
import re
from urllib.parse import parse_qs, quote, urlsplit

from celeriac.errors import InvalidConfig

SCHEME = r"[A-Za-z][\w.+-]*(?=://)"
EXAMPLES = "write for example redis://HOST:6379/0 or amqp://USER:PASSWORD@HOST//"
DATABASES = ("postgresql", "postgres", "mysql", "mariadb", "oracle", "mssql")
AMQP = ("amqp", "amqps", "pyamqp")
SERVERS = ("redis", "rediss", "sentinel", *AMQP)
NO_SERVERS = ("http", "https", "tcp")
VALKEY = ("valkey", "valkeys")
DATABASE_NUMBER = r"/?[0-9]*"
ADDRESS = r"(?:\[[^\[\]]*\]|[^:\[\]]*)(?::([0-9]{0,5}))?"
"""A host, and a port."""

DATABASE_ADDRESS = r"(?:[^:/@]*(?::[^@]*)?@)?([^/?]*)"
RESERVED = "[][/?#@]"
"""The characters that end a password where they stand, or that confuse what reads it."""

CERT_REQS = ("required", "optional", "none", "CERT_REQUIRED", "CERT_OPTIONAL", "CERT_NONE")
MAX_PORT = 65_535


class InvalidUrl(InvalidConfig):
    """The reason why a URL is refused. The caller knows the name of the setting."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__("url", problem, remedy)


def check_form(text: str) -> None:
    """Raise `InvalidUrl` for a text that is no URL, is in quotes, or has a space or a line break in it."""
    if text[:1] in ("'", '"', "`"):
        raise InvalidUrl("is in quotes", "remove the quotes")
    if re.search(r"\s", "".join(split_list(text))):
        raise InvalidUrl("has a space or a line break in it", "remove it; write %20 for a space in a password")
    scheme = re.match(SCHEME, text)
    if scheme is None and os.path.isfile(text):  # noqa: PTH113 - a text may hold what `Path` refuses
        raise InvalidUrl("is the name of a file, not a URL", "add -file to the option, or _file to the setting")
    if scheme is None:
        raise InvalidUrl("is not a URL", EXAMPLES)
    if scheme[0].lower() in NO_SERVERS:
        raise InvalidUrl(f"begins with {scheme[0]}://, which names no broker, backend or ledger", EXAMPLES)
    if scheme[0].lower() in VALKEY:
        raise InvalidUrl(f"begins with {scheme[0]}://", "write redis:// or rediss:// for Valkey, too")


def check_host(text: str) -> None:
    """Raise `InvalidUrl` for an address that Celery would read as localhost, and for a raw @ in a password.

    Call `check_url` first."""
    for url in split_list(text):
        if kind_of(url) in SERVERS:
            parts = urlsplit(url)
            if parts.netloc.count("@") > 1:
                raise unescaped("@")
            if not parts.hostname:
                raise InvalidUrl("names no host", "write localhost for this machine")
            check_host_name(parts.hostname)


def check_host_name(name: str) -> None:
    """Raise `InvalidUrl` for a name that Python cannot look up."""
    try:
        name.encode("idna")
    except UnicodeError:
        raise InvalidUrl("names a host that no machine can have", "write its name, such as redis.example.org") from None


def check_url(text: str) -> None:
    """Raise `InvalidUrl` if Celery or SQLAlchemy would use another server than was meant, or none.

    A text may hold several URLs, with semicolons between them.
    """
    urls = split_list(text)
    if any("@" in url and "://" not in url for url in urls[1:]):
        raise unescaped(";")
    for url in urls:
        kind, rest = kind_of(url), url.partition("://")[2]
        if kind in DATABASES:
            check_database(rest)
        elif kind in SERVERS:
            check_server(url, rest, has_numbers=kind not in AMQP)


def split_list(text: str) -> list[str]:
    """Return the URLs of a text, without the spaces around the semicolons."""
    return re.split(r"\s*;\s*", text)


def kind_of(url: str) -> str:
    """Return the kind of server: the scheme without `db+` and without the driver of a database."""
    scheme = url.partition("://")[0].removeprefix("db+")
    return scheme.partition("+")[0] if scheme.partition("+")[0] in DATABASES else scheme


def check_server(url: str, rest: str, *, has_numbers: bool) -> None:
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    if is_cut(authority, rest[len(authority) :]):
        raise unescaped(*(re.findall(RESERVED, rest.rpartition("@")[0]) or "#"))
    try:
        parts = urlsplit(url)
    except ValueError:  # a bracket that is not of an IPv6 address
        raise unescaped("[", "]") from None
    check_port(authority.rpartition("@")[2])
    if has_numbers and not re.fullmatch(DATABASE_NUMBER, parts.path.removeprefix("/")):
        raise InvalidUrl("has a database that is not a number", "write for example redis://HOST:6379/0")
    if any(value not in CERT_REQS for value in parse_qs(parts.query).get("ssl_cert_reqs", ())):
        raise InvalidUrl("has an unknown ssl_cert_reqs", "write ssl_cert_reqs=required, optional or none")


def is_cut(authority: str, tail: str) -> bool:
    """Return whether the address was cut off inside the password, by a raw character: what follows it has the @."""
    path, _, query = tail.partition("?")
    if "#" in tail or "@" in path:
        return True
    before, at, _ = query.partition("@")
    is_address = re.fullmatch(ADDRESS, authority.rpartition("@")[2]) is not None
    return bool(at) and ("=" not in before or not is_address)


def check_database(rest: str) -> None:
    """Check the URL of a database as SQLAlchemy reads it: a password may hold every character but the @."""
    match = re.match(DATABASE_ADDRESS, rest)
    address = match[1] if match is not None else ""
    if "@" in address:
        raise unescaped("@")
    for one in address.split(","):  # PostgreSQL takes several
        check_port(one)
        check_host_name(one.partition(":")[0])


def check_port(address: str) -> None:
    match = re.fullmatch(ADDRESS, address)
    if match is None or (match[1] and not 0 < int(match[1]) <= MAX_PORT):
        remedy = f"write HOST:PORT, with a port from 1 to {MAX_PORT}, and an @ between a password and the host"
        raise InvalidUrl("has a port that is not a number", remedy)


def unescaped(*characters: str) -> InvalidUrl:
    """Return the error for characters that end the password where they stand."""
    names = ", ".join(f"{quote(character, safe='')} for {character}" for character in dict.fromkeys(characters))
    return InvalidUrl("has a raw character in the user name or the password", f"write {names}")
