"""The client library of each kind of server, and the command that installs it."""

from __future__ import annotations

import re
from importlib import import_module

from celeriac.config.postgres import driver_of
from celeriac.errors import InvalidConfig, describe_error

REDIS_EXTRA = "'celeriac[redis]'"
POSTGRESQL_EXTRA = "'celeriac[postgresql]'"

PACKAGES = {
    "psycopg": POSTGRESQL_EXTRA,
    "psycopg2": "psycopg2-binary",
    "pg8000": "pg8000",
    "asyncpg": "asyncpg",
    "pymysql": "PyMySQL",
    "MySQLdb": "mysqlclient",
    "mysql.connector": "mysql-connector-python",
    "oracledb": "oracledb",
    "pyodbc": "pyodbc",
}
"""By module."""

DEFAULT_DRIVERS = {"mysql": "mysqldb", "mariadb": "mysqldb", "mssql": "pyodbc", "oracle": "oracledb"}
MODULES = {"mysqldb": "MySQLdb", "mysqlconnector": "mysql.connector"}
"""The modules of the drivers of SQLAlchemy that have another name."""


def check_client(setting: str, url: str) -> None:
    """Raise `InvalidConfig` if the client library for a URL is missing or cannot be loaded. Name its package."""
    module = client_of(url)
    if module is None:
        return
    package = REDIS_EXTRA if module == "redis" else PACKAGES[module]
    try:
        import_module(module)
    except ModuleNotFoundError:
        problem = f"needs the module {module}, which is not installed"
        raise InvalidConfig(setting, problem, f"pip install {package}") from None
    except ImportError as error:  # such as psycopg without libpq
        problem = f"the module {module} cannot be loaded: {describe_error(error)}"
        raise InvalidConfig(setting, problem, f"pip install {package}") from None


def client_of(url: str) -> str | None:
    """Return the module that a URL needs; None if Celeriac always has it, or does not know it."""
    scheme = url.partition("://")[0]
    if scheme in ("redis", "rediss", "sentinel", "redis+socket"):
        return "redis"
    kind, _, driver = scheme.removeprefix("db+").partition("+")
    name = driver or driver_of(url) or DEFAULT_DRIVERS.get(kind, "")
    module = MODULES.get(name, re.sub("_async$", "", name))
    return module if module in PACKAGES else None
