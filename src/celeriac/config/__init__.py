"""Settings: read and checked here, and nowhere else.

settings         reads files, the environment and the command line; hands out `Settings`
schema           each setting: how it is parsed, its default, and how it is displayed
executor_config  `Config`: the settings of the executor
signing          signs and verifies messages with the keys of a setting
urls             refuses URLs that would be misread
clients          the client library of each kind of server, and the package that has it
postgres         options of connections to PostgreSQL
lease            the constants of leases

In: text and TOML values. Out: checked values, or `InvalidConfig`. It may import `task` and `errors`.
"""

from celeriac.config.executor_config import Config as Config

__all__ = ["Config"]
