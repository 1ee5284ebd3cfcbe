"""The access to a web server: tokens, hosts, origins, CSRF tokens and sessions."""

from __future__ import annotations

import os
import socket
from contextlib import closing

import pytest

from celeriac.errors import InvalidConfig
from celeriac.web.access import (
    ONLY_READS,
    OTHER_ORIGIN,
    OTHER_USER,
    SESSION_DURATION,
    UNKNOWN_HOST,
    WITHOUT_CSRF,
    WITHOUT_TOKEN,
    WRONG_TOKEN,
    Access,
    AccessRules,
    Request,
    Sessions,
    check_embedding,
)
from celeriac.web.address import Address, bind, parse_address
from celeriac.web.peer import user_of
from celeriac.web.site import access_rules
from celeriac.web.tokens import Role, Tokens, read_tokens

OWN = "http://box:8730"
READER, OPERATOR = "r" * 16, "o" * 16
TOKENS = Tokens([(Role.READER, READER), (Role.OPERATOR, OPERATOR)])
EVERYWHERE = Address("0.0.0.0", 8730)
LOOPBACK = Address("127.0.0.1", 8730)


def request(method: str = "GET", *, cookie: str | None = None, own_user: bool = False, **headers: str) -> Request:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Request(method, {"host": "box:8730", **named}, cookie, is_own_user=lambda: own_user)


# — tokens —


@pytest.mark.parametrize(("token", "role"), [(READER, Role.READER), (OPERATOR, Role.OPERATOR), ("x" * 16, None)])
def test_a_token_gives_its_role(token, role):
    assert TOKENS.role_of(token) is role


def test_a_file_has_one_token_a_line(tmp_path):
    file = tmp_path / "tokens"
    file.write_text(f"# for the dashboard\nread-only {READER}\n\noperator   {OPERATOR}\n")
    assert [read_tokens(str(file)).role_of(token) for token in (READER, OPERATOR)] == [Role.READER, Role.OPERATOR]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "holds no token"),
        ("# nothing\n", "holds no token"),
        ("operator short\n", ":1: the token has fewer than 16 characters"),
        (f"\nadmin {OPERATOR}\n", ":2: is not a role and a token"),
        (f"{OPERATOR}\n", ":1: is not a role and a token"),
    ],
)
def test_a_bad_file_of_tokens_is_refused_without_showing_a_token(tmp_path, content, problem):
    file = tmp_path / "tokens"
    file.write_text(content)
    with pytest.raises(InvalidConfig) as error:
        read_tokens(str(file))
    assert problem in str(error.value)
    assert OPERATOR not in str(error.value)


def test_a_file_of_tokens_that_others_may_write_is_refused(tmp_path):
    file = tmp_path / "tokens"
    file.write_text(f"operator {OPERATOR}\n")
    file.chmod(0o666)
    with pytest.raises(InvalidConfig, match="may be written by other users"):
        read_tokens(str(file))


# — admission —


def test_without_a_file_of_tokens_only_the_own_user_is_admitted():
    rules = AccessRules(LOOPBACK, None)
    admitted = rules.admit(request(own_user=True))
    assert isinstance(admitted, Access)
    assert admitted.role is Role.OPERATOR
    assert rules.admit(request()) is OTHER_USER
    assert rules.admit(request(authorization=f"Bearer {OPERATOR}")) is OTHER_USER


def test_with_a_file_of_tokens_the_own_user_needs_one_too():
    rules = AccessRules(LOOPBACK, TOKENS)
    assert rules.admit(request(own_user=True)) is WITHOUT_TOKEN
    assert rules.admit(request(authorization=f"Bearer {READER}")) == Access(Role.READER, None)
    assert rules.admit(request(authorization=f"bearer {OPERATOR}")) == Access(Role.OPERATOR, None)
    for wrong in ("Bearer", "Bearer ", f"Basic {OPERATOR}", OPERATOR, f"Bearer {OPERATOR}x"):
        assert rules.admit(request(authorization=wrong)) is WRONG_TOKEN


def test_a_session_has_the_role_of_its_token_until_it_ends():
    now = 0.0
    sessions = Sessions(lambda: now)
    cookie = sessions.begin(Role.READER)
    access = sessions.find(cookie)
    assert access is not None
    assert access.role is Role.READER
    assert sessions.find("x") is None
    now = SESSION_DURATION
    assert sessions.find(cookie) is None
    now = 0.0
    sessions.end(cookie)
    assert sessions.find(cookie) is None


def test_beyond_loopback_a_file_of_tokens_is_needed():
    with pytest.raises(InvalidConfig, match="can be reached from other machines without a token"):
        access_rules(EVERYWHERE, None)


# — hosts —


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9000", "127.0.0.1:8730", "[::1]:1"])
def test_names_of_loopback_are_known(host):
    assert AccessRules(LOOPBACK, None).check_host({"host": host}) is None


@pytest.mark.parametrize(
    "host", ["", "evil.example", "evil.example:8730", "127.0.0.1.evil.example", "a/b", "::1", "a:b"]
)
def test_other_names_are_refused_on_loopback(host):
    assert AccessRules(LOOPBACK, None).check_host({"host": host}) is UNKNOWN_HOST


def test_any_name_may_be_that_of_a_server_for_other_machines():
    rules = AccessRules(EVERYWHERE, TOKENS)
    assert rules.check_host({"host": "celeriac.example"}) is None
    assert rules.check_host({}) is UNKNOWN_HOST


# — changes —


def test_a_reader_changes_nothing():
    rules = AccessRules(EVERYWHERE, TOKENS)
    assert rules.check_change(Access(Role.READER, None), request("POST")) is ONLY_READS
    assert rules.check_change(Access(Role.READER, "c"), request("POST", x_csrf_token="c")) is ONLY_READS


def test_a_program_with_a_token_needs_no_csrf_token():
    rules = AccessRules(EVERYWHERE, TOKENS)
    assert rules.check_change(Access(Role.OPERATOR, None), request("POST", origin="http://other")) is None


def test_a_browser_needs_the_own_origin_and_the_csrf_token():
    rules, access = AccessRules(EVERYWHERE, TOKENS), Access(Role.OPERATOR, "secret")
    assert rules.check_change(access, request("POST", cookie="x", x_csrf_token="secret", origin=OWN)) is None
    assert rules.check_change(access, request("POST", cookie="x", origin=OWN)._replace(form_csrf="secret")) is None
    assert rules.check_change(access, request("POST", cookie="x", x_csrf_token="other", origin=OWN)) is WITHOUT_CSRF
    assert rules.check_change(access, request("POST", cookie="x", origin=OWN)) is WITHOUT_CSRF
    assert rules.check_change(access, request("POST", origin=OWN)) is WITHOUT_CSRF
    foreign = request("POST", cookie="x", x_csrf_token="secret", origin="http://evil.example")
    assert rules.check_change(access, foreign) is OTHER_ORIGIN
    framed = request("POST", cookie="x", x_csrf_token="secret", sec_fetch_site="cross-site")
    assert rules.check_change(access, framed) is OTHER_ORIGIN
    assert rules.check_change(access, request("POST", origin="null", x_csrf_token="secret")) is OTHER_ORIGIN


@pytest.mark.parametrize(
    ("site", "mode", "dest", "is_refused"),
    [
        ("cross-site", "navigate", "document", False),  # a link
        ("cross-site", "navigate", "iframe", True),
        ("cross-site", "no-cors", "image", True),
        ("same-site", "cors", "empty", True),  # another port of this machine
        ("same-origin", "cors", "empty", False),
        ("none", "navigate", "document", False),  # an address that was typed
    ],
)
def test_the_page_of_another_server_embeds_nothing(site, mode, dest, is_refused):
    headers = {"sec-fetch-site": site, "sec-fetch-mode": mode, "sec-fetch-dest": dest}
    assert (check_embedding(headers) is not None) is is_refused
    assert check_embedding({}) is None


def test_a_program_of_the_own_user_needs_no_csrf_token():
    rules = AccessRules(LOOPBACK, None)
    access = rules.admit(request(own_user=True))
    assert isinstance(access, Access)
    assert rules.check_change(access, request("POST", own_user=True)) is None
    assert rules.check_change(access, request("POST", own_user=True, referer="http://box:8730/")) is WITHOUT_CSRF


# — addresses —


@pytest.mark.parametrize(
    ("text", "address", "is_loopback"),
    [
        ("127.0.0.1:8730", Address("127.0.0.1", 8730), True),
        ("127.8.8.8:1", Address("127.8.8.8", 1), True),
        ("[::1]:0", Address("::1", 0), True),
        ("localhost:80", Address("localhost", 80), True),
        ("0.0.0.0:80", Address("0.0.0.0", 80), False),
        ("[::]:80", Address("::", 80), False),
        ("10.0.0.1:80", Address("10.0.0.1", 80), False),
        ("localhost.evil.example:80", Address("localhost.evil.example", 80), False),
    ],
)
def test_an_address_is_a_host_and_a_port(text, address, is_loopback):
    assert parse_address(text) == address
    assert parse_address(text).is_loopback is is_loopback


@pytest.mark.parametrize(
    "text", ["", "8730", ":8730", "localhost", "localhost:", "a:b", "a:65536", "::1:80", "a:-1", "a:٣"]
)
def test_anything_else_is_refused(text):
    with pytest.raises(InvalidConfig, match="is not an address; give HOST:PORT"):
        parse_address(text)


def test_a_port_in_use_is_one_line():
    with closing(bind(Address("127.0.0.1", 0))) as used:
        address = Address("127.0.0.1", used.getsockname()[1])
        with pytest.raises(InvalidConfig, match="Address already in use; give another port"):
            bind(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_user_of_a_connection_over_loopback_is_known(host):
    with (
        closing(bind(Address(host, 0))) as listening,
        closing(socket.create_connection(listening.getsockname()[:2])) as client,
    ):
        accepted, _ = listening.accept()
        with closing(accepted):
            assert user_of(client.getsockname()[:2], accepted.getsockname()[:2]) == os.getuid()
            assert user_of((host, 1), accepted.getsockname()[:2]) is None


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_user_of_a_closed_socket_is_unknown(host):
    """Linux lists it as one of root. Another user could send a request and close the socket at once."""
    with closing(bind(Address(host, 0))) as listening:
        client = socket.create_connection(listening.getsockname()[:2])
        accepted, _ = listening.accept()
        with closing(accepted):
            place = client.getsockname()[:2]
            client.sendall(b"a request")
            client.close()
            assert user_of(place, accepted.getsockname()[:2]) is None
