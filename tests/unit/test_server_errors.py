"""The classification of errors: from replies as they stand on the wire, and as the libraries wrap them."""

from __future__ import annotations

import socket
import ssl

import amqp.exceptions
import psycopg
import pytest
import sqlalchemy.exc
from celery.exceptions import BackendStoreError
from hypothesis import given
from hypothesis import strategies as st
from kombu.exceptions import EncodeError, OperationalError
from redis import exceptions
from redis._parsers.base import BaseParser

from celeriac.errors import BrokerBlocked, BrokerUnavailable, InvalidInput, QueueRefused
from celeriac.server_errors import ServerProblem, diagnose, is_client_error, is_server_error, problem_of, remedy_for

UNREACHABLE, REFUSING, REFUSED = ServerProblem.UNREACHABLE, ServerProblem.REFUSING, ServerProblem.REFUSED

REDIS_REPLIES = {
    "OOM command not allowed when used memory > 'maxmemory'.": REFUSING,
    "OOM command not allowed when used memory > 'maxmemory'. script: 9f3, on @user_script:4.": REFUSING,
    "ERR Error running script (call to f_9f3): @user_script:4: @user_script: 4: -OOM command not allowed": REFUSING,
    "READONLY You can't write against a read only replica.": REFUSING,
    "NOREPLICAS Not enough good replicas to write.": REFUSING,
    "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.": REFUSING,
    "LOADING Redis is loading the dataset in memory": REFUSING,
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.": REFUSING,
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.": REFUSING,
    "CLUSTERDOWN Hash slot not served": REFUSING,
    "TRYAGAIN Multiple keys request during rehashing of slot": REFUSING,
    "NOSCRIPT No matching script. Please use EVAL.": REFUSING,
    "ERR max number of clients reached": REFUSING,
    "NOPERM this user has no permissions to run the 'evalsha' command": REFUSED,
    "NOPERM this user has no permissions to access one of the channels used as arguments": REFUSED,
    "NOAUTH Authentication required.": REFUSED,
    "WRONGPASS invalid username-password pair or user is disabled.": REFUSED,
    "ERR invalid password": REFUSED,
    "ERR AUTH <password> called without any password configured for the default user.": REFUSED,
    "ERR DB index is out of range": REFUSED,
    "ERR SELECT is not allowed in cluster mode": REFUSED,
    "MOVED 3999 127.0.0.1:6381": REFUSED,
    "CROSSSLOT Keys in request don't hash to the same slot": REFUSED,
    "DENIED Redis is running in protected mode": REFUSED,
    "ERR unknown command 'EVALSHA', with args beginning with: ": REFUSED,
    "WRONGTYPE Operation against a key holding the wrong kind of value": None,
    "ERR value is not an integer or out of range": None,
    "BUSYGROUP Consumer Group name already exists": None,
}


@pytest.mark.parametrize("reply", REDIS_REPLIES)
def test_a_reply_of_redis_is_classified(reply):
    error = BaseParser.parse_error(reply)

    assert problem_of(error) is REDIS_REPLIES[reply]


@pytest.mark.parametrize("reply", [reply for reply, problem in REDIS_REPLIES.items() if problem is not None])
def test_a_reply_is_classified_behind_wrappers(reply):
    for wrapper in (OperationalError("kombu"), BackendStoreError("failed to store result on the backend")):
        wrapper.__cause__ = BaseParser.parse_error(reply)
        assert problem_of(wrapper) is REDIS_REPLIES[reply]
    assert problem_of(BrokerUnavailable("redis://", BaseParser.parse_error(reply))) is REDIS_REPLIES[reply]


AMQP_REPLIES = {
    (403, "ACCESS_REFUSED - access to queue 'default' in vhost '/' refused for user 'guest'"): REFUSED,
    (403, "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN"): REFUSED,
    (404, "NOT_FOUND - no queue 'default' in vhost '/'"): REFUSED,
    (405, "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue"): REFUSING,
    (406, "PRECONDITION_FAILED - inequivalent arg 'x-max-priority' for queue 'default'"): REFUSED,
    (406, "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out."): UNREACHABLE,
    (406, "PRECONDITION_FAILED - unknown delivery tag 3"): UNREACHABLE,
    (320, "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'"): REFUSING,
    (506, "RESOURCE_ERROR - no memory"): REFUSING,
    (530, "NOT_ALLOWED - vhost other not found"): REFUSED,
    (540, "NOT_IMPLEMENTED - queue 'default' in vhost '/' does not support global qos"): REFUSED,
    (541, "INTERNAL_ERROR"): REFUSING,
    (501, "FRAME_ERROR"): UNREACHABLE,
}


@pytest.mark.parametrize(("code", "text"), AMQP_REPLIES)
def test_a_reply_of_rabbitmq_is_classified(code, text):
    error = amqp.exceptions.error_for_code(code, text, (50, 10), amqp.exceptions.ChannelError)

    assert problem_of(error) is AMQP_REPLIES[code, text]


SQL_STATES = {
    "25006": REFUSING,  # a read-only transaction, or a server in recovery
    "53100": REFUSING,  # disk full
    "53300": REFUSING,  # too many connections
    "57P01": REFUSING,  # the administrator ended the connection
    "57P03": REFUSING,  # starting up
    "40001": REFUSING,
    "40P01": REFUSING,
    "08006": UNREACHABLE,
    "28P01": REFUSED,
    "3D000": REFUSED,
    "42501": REFUSED,
    "42P01": REFUSED,
    "22001": None,  # a value that is too long
    "23505": None,  # a duplicate
    "42601": None,  # wrong syntax
}


@pytest.mark.parametrize("state", SQL_STATES)
def test_a_reply_of_postgresql_is_classified(state):
    error = psycopg.errors.lookup(state)("some text") if state != "08006" else psycopg.errors.ConnectionFailure("text")
    wrapped = sqlalchemy.exc.DBAPIError.instance("SELECT 1", {}, error, psycopg.Error)

    assert problem_of(error) is SQL_STATES[state]
    assert problem_of(wrapped) is SQL_STATES[state]


LOGIN_ERRORS = {
    'connection failed: FATAL:  password authentication failed for user "u"': REFUSED,
    'connection failed: FATAL:  no pg_hba.conf entry for host "127.0.0.1"': REFUSED,
    'connection failed: FATAL:  database "other" does not exist': REFUSED,
    'connection failed: FATAL:  role "other" does not exist': REFUSED,
    "connection failed: FATAL:  sorry, too many clients already": REFUSING,
    "connection failed: FATAL:  the database system is starting up": REFUSING,
    "connection failed: FATAL:  server login has been failing, cached error: connect failed": REFUSING,
    "connection failed: FATAL:  query_wait_timeout": REFUSING,
    "connection failed: Connection refused": UNREACHABLE,
    "consuming input failed: server closed the connection unexpectedly": UNREACHABLE,
}


@pytest.mark.parametrize("text", LOGIN_ERRORS)
def test_a_failed_login_to_postgresql_or_pgbouncer_is_classified(text):
    assert problem_of(psycopg.OperationalError(text)) is LOGIN_ERRORS[text]


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(111, "Connection refused"),
        TimeoutError("timed out"),
        socket.gaierror(-2, "Name or service not known"),
        exceptions.ConnectionError("Connection closed by server."),
        exceptions.TimeoutError("Timeout reading from socket"),
        OperationalError("[Errno 111] Connection refused"),
        amqp.exceptions.RecoverableConnectionError("connection already closed"),
        sqlalchemy.exc.TimeoutError("QueuePool limit reached"),
    ],
)
def test_a_missing_connection_or_reply_is_unreachable(error):
    assert problem_of(error) is UNREACHABLE


def test_a_closed_port_names_what_to_do():
    for error in (ConnectionRefusedError(111, "Connection refused"), OperationalError("[Errno 111]")):
        assert remedy_for(error) == "start the server, or correct the host and the port in the URL"


def test_a_wrong_certificate_is_refused():
    assert problem_of(ssl.SSLCertVerificationError("certificate verify failed")) is REFUSED


def test_own_errors_are_classified():
    assert problem_of(BrokerBlocked()) is REFUSING
    assert problem_of(QueueRefused("default", "inequivalent arg")) is REFUSED
    assert problem_of(BrokerUnavailable("amqp://", OSError("no route"))) is UNREACHABLE


@pytest.mark.parametrize(
    "error",
    [
        ValueError("OOM"),
        KeyError("READONLY"),
        EncodeError("not JSON"),
        InvalidInput("wrong"),
        exceptions.DataError("Invalid input of type: 'dict'"),
        BackendStoreError("value too large for Redis backend"),
    ],
)
def test_an_error_that_no_server_sent_is_none(error):
    assert not is_server_error(error)
    assert remedy_for(error) is None


MYSQL_ERRORS = {
    (1290, "The MariaDB server is running with the --read-only option", "HY000"): REFUSING,
    (1040, "Too many connections", "08004"): REFUSING,
    (1114, "The table 'celery_taskmeta' is full", "HY000"): REFUSING,
    (1044, "Access denied for user 'c'@'localhost' to database 'nodb'", "42000"): REFUSED,
    (1045, "Access denied for user 'c'@'localhost' (using password: YES)", "28000"): REFUSED,
    (1146, "Table 'c.nope' doesn't exist", "42S02"): REFUSED,
    (2003, "Can't connect to MySQL server on '127.0.0.1' ([Errno 111] Connection refused)", None): UNREACHABLE,
    (2013, "Lost connection to MySQL server during query", None): UNREACHABLE,
}


@pytest.mark.parametrize("reply", MYSQL_ERRORS)
def test_an_error_of_mysql_is_known_by_its_number(reply):
    number, text, state = reply
    pymysql_error = type("OperationalError", (Exception,), {"__module__": "pymysql.err", "sqlstate": state})

    error = sqlalchemy.exc.OperationalError("INSERT", {}, pymysql_error(number, text))

    assert problem_of(error) is MYSQL_ERRORS[reply]


def test_a_refusal_has_a_remedy():
    assert remedy_for(BaseParser.parse_error("OOM command not allowed")) == "raise maxmemory, or remove data"


@given(
    st.sampled_from([exceptions.ResponseError, psycopg.OperationalError, OSError, sqlalchemy.exc.OperationalError]),
    st.text(),
)
def test_any_text_is_classified_without_an_error(error_class, text):
    arguments = (text, {}, Exception(text)) if error_class is sqlalchemy.exc.OperationalError else (text,)

    diagnose(error_class(*arguments))
    try:
        parsed = BaseParser.parse_error(text)
    except ValueError:  # redis-py's own, for an ASK or a MOVED without a slot and a node
        return
    diagnose(parsed)


@pytest.mark.parametrize("second", [sqlalchemy.exc.PendingRollbackError, psycopg.errors.InFailedSqlTransaction])
def test_a_statement_after_a_failed_one_has_the_problem_of_the_first(second):
    def raise_both(first: Exception) -> None:
        try:
            raise first
        except type(first):
            raise second("Can't reconnect until invalid transaction is rolled back")  # noqa: B904 - as SQLAlchemy does

    def error_after(first: Exception) -> BaseException:
        with pytest.raises(second) as caught:
            raise_both(first)
        error: BaseException = caught.value
        return error

    lost = psycopg.OperationalError("server closed the connection unexpectedly")
    read_only = psycopg.errors.ReadOnlySqlTransaction("cannot execute UPDATE in a read-only transaction")
    assert problem_of(error_after(sqlalchemy.exc.OperationalError("SELECT 1", {}, lost))) is UNREACHABLE
    assert problem_of(error_after(sqlalchemy.exc.InternalError("UPDATE", {}, read_only))) is REFUSING
    assert problem_of(error_after(KeyError("a bug"))) is None


def test_a_loop_of_causes_ends():
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first

    assert diagnose(first) is None


@pytest.mark.parametrize(
    ("error", "is_client"),
    [
        (exceptions.ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"), True),
        (sqlalchemy.exc.ProgrammingError("INSERT", {}, psycopg.errors.DatatypeMismatch("wrong type")), True),
        (ConnectionResetError("gone"), True),
        (ZeroDivisionError("a bug"), False),
        (ValueError("a bug"), False),
    ],
)
def test_a_wrong_value_at_a_server_is_no_bug(error, is_client):
    assert is_client_error(error) is is_client
