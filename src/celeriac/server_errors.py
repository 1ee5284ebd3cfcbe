"""Classify the errors of brokers, result backends and ledgers: the only place that does.

    error ─► diagnose ─► UNREACHABLE   no connection, or no reply                      wait
                     ─► REFUSING      the server cannot serve the request for now     wait; every client gets this reply
                     ─► REFUSED       the server refuses until a setting is changed   stop at the start, later wait
                     ─► None          not an error of a server: a bug, or a malformed value

Celery, Kombu and SQLAlchemy wrap the errors of the clients, so the chain of causes is searched. No client is imported
here: a class is recognised by its package and its name, a reply by its code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum, auto
from typing import NamedTuple


class ServerProblem(Enum):
    """The meaning of a server's error for its client."""

    UNREACHABLE = auto()
    """There is no connection, or no reply. Whether others can reach the server is not known."""

    REFUSING = auto()
    """The server replied that it cannot serve the request for now. It gives every client the same reply."""

    REFUSED = auto()
    """The server replied that it refuses the request. It does so until a person changes a setting here or there."""


class Diagnosis(NamedTuple):
    """The meaning of an error."""

    problem: ServerProblem
    remedy: str | None = None
    """An imperative: the action that a person can take."""


FAILED_TRANSACTION = "25P02"
"""The SQLSTATE of a statement after one that failed: the error of that one says what happened."""

BROKEN_TRANSACTION = "PendingRollbackError"
"""SQLAlchemy's error for a statement after one that lost the connection. Celery 5.7 may read a result twice."""

UNREACHABLE = Diagnosis(ServerProblem.UNREACHABLE)


UNKNOWN_HOST = Diagnosis(ServerProblem.UNREACHABLE, "correct the host name in the URL, or the name resolution")
CLOSED_PORT = Diagnosis(ServerProblem.UNREACHABLE, "start the server, or correct the host and the port in the URL")


def refusing(remedy: str | None = None) -> Diagnosis:
    return Diagnosis(ServerProblem.REFUSING, remedy)


def refused(remedy: str) -> Diagnosis:
    return Diagnosis(ServerProblem.REFUSED, remedy)


LOGIN = refused("correct the user name or the password in the URL")
RIGHTS = refused("give this user the right to do it")
CLUSTER = refused("name a server that is not a Redis Cluster; Celery cannot use one")
DATABASE = refused("correct the name or the number of the database in the URL")
CERTIFICATE = refused("set the certificate authority, or correct the host name")
MEMORY = refusing("raise maxmemory, or remove data")
READ_ONLY = refusing("connect to the primary server, or make this one writable")
CONNECTIONS = refusing("allow more connections, or use fewer")
DISK = refusing("free disk space on the server")

# — Redis and Valkey —

REDIS_CODES = {
    "OOM": MEMORY,
    "READONLY": READ_ONLY,
    "NOREPLICAS": refusing("connect the replicas, or lower min-replicas-to-write"),
    "MISCONF": refusing("make the server able to save its data: see its log"),
    "LOADING": refusing(),
    "BUSY": refusing("wait for the script that runs on the server, or end it with SCRIPT KILL"),
    "MASTERDOWN": refusing(),
    "TRYAGAIN": refusing(),
    "CLUSTERDOWN": refusing("repair the cluster: see its log"),
    "IOERR": refusing(),
    "UNBLOCKED": refusing(),
    "NOSCRIPT": refusing(),
    "EXECABORT": refusing(),
    "NOAUTH": LOGIN,
    "WRONGPASS": LOGIN,
    "NOPERM": RIGHTS,
    "DENIED": refused("set a password on the server, or turn its protected mode off"),
    "MOVED": CLUSTER,
    "ASK": CLUSTER,
    "CROSSSLOT": CLUSTER,
}
"""By the first word of a reply."""

REDIS_CLASSES = {
    "OutOfMemoryError": "OOM",
    "ReadOnlyError": "READONLY",
    "BusyLoadingError": "LOADING",
    "MasterDownError": "MASTERDOWN",
    "TryAgainError": "TRYAGAIN",
    "ClusterDownError": "CLUSTERDOWN",
    "AuthenticationError": "WRONGPASS",
    "AuthenticationWrongNumberOfArgsError": "WRONGPASS",
    "AuthorizationError": "NOPERM",
    "NoPermissionError": "NOPERM",
    "MovedError": "MOVED",
    "AskError": "ASK",
    "ClusterCrossSlotError": "CROSSSLOT",
    "NoScriptError": "NOSCRIPT",
    "ExecAbortError": "EXECABORT",
}
"""The classes of redis-py, which removes these codes from the replies."""

REDIS_TEXTS = (
    ("max number of clients", CONNECTIONS),
    ("DB index is out of range", DATABASE),
    ("invalid DB index", DATABASE),
    ("SELECT is not allowed in cluster mode", CLUSTER),
    ("unknown command", refused("enable this command on the server")),
    ("AUTH <password> called without any password configured", LOGIN),
    ("invalid password", LOGIN),
)

REPLY_CODE = r"(?:^|[\s:-])-?([A-Z]{3,})\b"
"""A code at the start of a reply, or of the reply inside the error of a script before Redis 7."""

# — RabbitMQ —

AMQP_CODES = {
    311: refusing("raise max_message_size on the server"),
    313: refusing(),
    320: refusing(),
    402: refused("correct the virtual host in the URL"),
    403: RIGHTS,
    404: refused("create it again, or correct its name"),
    405: refusing("end the client that holds the queue"),
    406: refused("make the arguments the same as those that exist on the server"),
    506: refusing("free memory or disk space on the server"),
    530: refused("correct the virtual host in the URL, or give this user access to it"),
    540: refused("use a server that supports it"),
    541: refusing("see the log of the server"),
}
AMQP_TEXTS = (
    ("delivery acknowledgement on channel", UNREACHABLE),
    ("unknown delivery tag", UNREACHABLE),
    ("is down or inaccessible", refusing("start the node of the cluster that has this queue")),
    ("Login was refused", LOGIN),
)
"""Replies whose text says more than their code. After the first two, a new connection is all that is needed."""

# — databases —

SQL_STATES = {
    "0A000": refused("use a server that supports it"),
    "08P01": refusing(),
    "25006": READ_ONLY,
    "28": LOGIN,
    "3D000": DATABASE,
    "3F000": refused("create the schema, or correct its name"),
    "40": refusing(),
    "42501": RIGHTS,
    "42P01": refused("create the table again"),
    "42703": refused("restore the columns of the table"),
    "53100": DISK,
    "53200": refusing("give the server more memory"),
    "53300": CONNECTIONS,
    "53": refusing(),
    "55P03": refusing(),
    "55000": refusing(),
    "57014": refusing(),
    "57": refusing(),
    "58": refusing("see the log of the server"),
    "XX": refusing("see the log of the server"),
    "08": UNREACHABLE,
}
"""By SQLSTATE, or by its first characters."""

MYSQL_CODES = {
    **dict.fromkeys((1044, 1142, 1143, 1227), RIGHTS),
    **dict.fromkeys((1045, 1698), LOGIN),
    **dict.fromkeys((1040, 1203, 1226), CONNECTIONS),
    **dict.fromkeys((1290, 1792, 1836), READ_ONLY),
    **dict.fromkeys((1021, 1114, 3675), DISK),
    **dict.fromkeys((1037, 1038, 1041, 1053, 1205, 1213, 3101), refusing()),
    1049: DATABASE,
    1146: refused("create the table again"),
}

SQL_TEXTS = (
    ("password authentication failed", LOGIN),
    ("no password supplied", LOGIN),
    ("pg_hba.conf", LOGIN),
    ("is not permitted to log in", LOGIN),
    ("no such user", LOGIN),
    ("auth failed", LOGIN),
    ("no such database", DATABASE),
    ("too many clients", CONNECTIONS),
    ("too many connections", CONNECTIONS),
    ("connection slots are reserved", CONNECTIONS),
    ("no more connections allowed", CONNECTIONS),
    ("starting up", refusing()),
    ("shutting down", refusing()),
    ("in recovery", refusing()),
    ("not yet accepting connections", refusing()),
    ("server login has been failing", refusing()),
    ("server login failed", refusing()),
    ("query_wait_timeout", refusing()),
    ("server conn crashed", refusing()),
    ("pgbouncer cannot connect to server", refusing()),
    ("certificate verify failed", CERTIFICATE),
    ("database is locked", refusing()),
    ("disk is full", DISK),
    ("readonly database", READ_ONLY),
    ("unable to open database file", RIGHTS),
)
MISSING_PRINCIPAL = r'(role|user|database) "[^"]*" does not exist'
"""A refused login has no SQLSTATE in psycopg. So its texts, and PgBouncer's, are searched."""

SQL_PACKAGES = frozenset(("sqlalchemy", "psycopg", "psycopg2", "sqlite3", "pymysql", "MySQLdb", "mysql", "asyncpg"))
CLIENT_PACKAGES = SQL_PACKAGES | {"redis", "valkey", "amqp"}

# — all together —

UNREACHABLE_CLASSES = frozenset(
    (
        *("redis.ConnectionError", "redis.TimeoutError", "redis.InvalidResponse", "redis.SlotNotCoveredError"),
        *("amqp.ConnectionError", "amqp.RecoverableChannelError", "kombu.OperationalError", "kombu.InconsistencyError"),
        "celery.TimeoutError",
        *("sqlalchemy.OperationalError", "sqlalchemy.InterfaceError", "sqlalchemy.TimeoutError"),
        *("sqlalchemy.DisconnectionError", "psycopg.OperationalError", "psycopg.InterfaceError"),
        *("psycopg2.OperationalError", "psycopg2.InterfaceError", "pymysql.OperationalError", "pymysql.InterfaceError"),
        *("MySQLdb.OperationalError", "MySQLdb.InterfaceError"),
    )
)
"""Package and name of the classes that say no more than that there was no reply."""

UNKNOWN_HOST_TEXTS = (
    *("Name or service not known", "No address associated", "nodename nor servname", "Temporary failure in name"),
    *("could not translate host name", "failed to resolve host", "Unknown MySQL server host"),
)
CLOSED_PORT_TEXTS = ("Connection refused", "[Errno 111]", "Errno 61")

OWN_CLASSES = {
    "BrokerBlocked": refusing("clear the memory or disk alarm of RabbitMQ"),
    "QueueRefused": Diagnosis(ServerProblem.REFUSED),  # its text has the remedy
    "BrokerUnavailable": UNREACHABLE,
    "BackendUnavailable": UNREACHABLE,
    "LedgerUnavailable": UNREACHABLE,
}


def problem_of(error: BaseException) -> ServerProblem | None:
    """Return what an error means; None if it is not an error of a server."""
    diagnosis = diagnose(error)
    return None if diagnosis is None else diagnosis.problem


def is_server_error(error: BaseException) -> bool:
    """Return whether an error is a server's: what failed can be tried again as it is."""
    return diagnose(error) is not None


def is_client_error(error: BaseException) -> bool:
    """Return whether an error is a server's, or a client library's, as for a value that another program has written."""
    return is_server_error(error) or any(
        package in CLIENT_PACKAGES for link in chain_of(error) for package, _ in names_of(link)
    )


def is_refusal(error: BaseException) -> bool:
    """Return whether a server replied that it does not do what was asked, for now or until a setting is changed."""
    return problem_of(error) in (ServerProblem.REFUSING, ServerProblem.REFUSED)


def remedy_for(error: BaseException) -> str | None:
    """Return what a person can do about an error, as an imperative; None if it is not known."""
    diagnosis = diagnose(error)
    return None if diagnosis is None else diagnosis.remedy


def diagnose(error: BaseException) -> Diagnosis | None:
    """Return the meaning of an error; None if it is not an error of a server.

    A refusal in the chain of causes says more than the wrapper around it.
    """
    found = [diagnosis for link in chain_of(error) if (diagnosis := diagnose_one(link)) is not None]
    return next((diagnosis for diagnosis in found if diagnosis.problem is not ServerProblem.UNREACHABLE), None) or next(
        iter(found), None
    )


def is_unknown_host(error: BaseException) -> bool:
    """Return whether the name of the server's host cannot be resolved."""
    return any(is_in(str(link), UNKNOWN_HOST_TEXTS) for link in chain_of(error))


def is_wrong_address(error: BaseException) -> bool:
    """Return whether no server is at the address: its name cannot be resolved, or nothing listens at its port."""
    return any(is_in(str(link), (*UNKNOWN_HOST_TEXTS, *CLOSED_PORT_TEXTS)) for link in chain_of(error))


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes: also those that SQLAlchemy and our own errors keep in an attribute."""
    seen: set[int] = set()
    pending: list[object] = [error]
    while pending:
        link = pending.pop(0)
        if isinstance(link, BaseException) and id(link) not in seen:
            seen.add(id(link))
            yield link
            pending += [link.__cause__, getattr(link, "orig", None), getattr(link, "error", None)]
            if getattr(link, "sqlstate", None) == FAILED_TRANSACTION or type(link).__name__ == BROKEN_TRANSACTION:
                pending.append(link.__context__)


def diagnose_one(error: BaseException) -> Diagnosis | None:
    """Return the meaning of one error, without its causes."""
    names = names_of(error)
    packages = {package for package, _ in names}
    diagnosis: Diagnosis | None = None
    if "celeriac" in packages:
        diagnosis = next((OWN_CLASSES[name] for _, name in names if name in OWN_CLASSES), None)
    elif "redis" in packages or "valkey" in packages:
        diagnosis = diagnose_redis(error, [name for _, name in names])
    elif "amqp" in packages:
        diagnosis = diagnose_amqp(error)
    elif packages & SQL_PACKAGES:
        diagnosis = diagnose_sql(error)
    if diagnosis is not None:
        return diagnosis
    if isinstance(error, OSError):
        return diagnose_system_error(error)
    return unreachable(error) if any(f"{package}.{name}" in UNREACHABLE_CLASSES for package, name in names) else None


def names_of(error: BaseException) -> list[tuple[str, str]]:
    """Return the package and the name of an error's class and of its bases."""
    return [(cls.__module__.partition(".")[0].replace("valkey", "redis"), cls.__name__) for cls in type(error).__mro__]


def diagnose_redis(error: BaseException, classes: list[str]) -> Diagnosis | None:
    text = str(error)
    code = next((REDIS_CLASSES[name] for name in classes if name in REDIS_CLASSES), None)
    if code is None and "ResponseError" in classes:
        code = next((word for word in re.findall(REPLY_CODE, text) if word in REDIS_CODES), None)
    return REDIS_CODES[code] if code is not None else find_text(text, REDIS_TEXTS)


def diagnose_amqp(error: BaseException) -> Diagnosis | None:
    code = getattr(error, "reply_code", None)
    return find_text(str(error), AMQP_TEXTS) or (AMQP_CODES.get(code) if isinstance(code, int) else None)


def diagnose_sql(error: BaseException) -> Diagnosis | None:
    """Return the meaning of a driver's error. An error about data or syntax has none: it is a bug."""
    number = error.args[0] if error.args else None
    if isinstance(number, int) and number in MYSQL_CODES:  # it says more than the state that PyMySQL adds
        return MYSQL_CODES[number]
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    if isinstance(state, str):
        return next((SQL_STATES[state[:size]] for size in (5, 2) if state[:size] in SQL_STATES), None)
    if not isinstance(error, Exception) or getattr(error, "orig", None) is not None:
        return None  # SQLAlchemy repeats the driver's text, with the statement and its values
    text = str(error)
    if match := re.search(MISSING_PRINCIPAL, text):
        return DATABASE if match[1] == "database" else LOGIN
    return find_text(text, SQL_TEXTS)


def diagnose_system_error(error: OSError) -> Diagnosis:
    if type(error).__name__ == "SSLCertVerificationError":
        return CERTIFICATE
    return RIGHTS if isinstance(error, PermissionError) else unreachable(error)


def unreachable(error: BaseException) -> Diagnosis:
    if is_in(str(error), UNKNOWN_HOST_TEXTS):
        return UNKNOWN_HOST
    return CLOSED_PORT if is_in(str(error), CLOSED_PORT_TEXTS) else UNREACHABLE


def is_in(text: str, parts: tuple[str, ...]) -> bool:
    return any(part in text for part in parts)


def find_text(text: str, diagnoses: tuple[tuple[str, Diagnosis], ...]) -> Diagnosis | None:
    return next((diagnosis for part, diagnosis in diagnoses if part in text), None)
