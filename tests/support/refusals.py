"""Make a real server refuse: each is a context; the server serves again when the context ends.

    with redis.full(): ...
    with postgres.read_only(): ...

The classes of servers.py inherit from these.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import redis as redis_client
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support.cli_runner import until

NOTHING_LISTENS = 1  # a port
FILLER_KEYS = 400
SECONDS_PER_KEY = 0.05  # while a server loads slowly


class RedisRefusals:
    """The refusals of a Redis: each method is a context manager. Needs `port` and `folder`."""

    port: int
    folder: Path
    password: str | None = None
    """The password of this server now, which `password_changed` changes."""

    def command(self, *words: str | int) -> Any:
        """Send one command on a connection of its own."""
        with self._client() as client:
            return client.execute_command(*words)

    def configure(self, **settings: str | int) -> None:
        """Change settings: `configure(min_replicas_to_write=1)`."""
        for name, value in settings.items():
            self.command("CONFIG", "SET", name.replace("_", "-"), value)

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """Refuse writes by `OOM`."""
        self.configure(maxmemory=1)
        try:
            yield
        finally:
            self.configure(maxmemory=0)

    @contextlib.contextmanager
    def read_only(self) -> Iterator[None]:
        """Refuse writes by `READONLY`: it is the replica of a server that is gone."""
        self.command("REPLICAOF", "127.0.0.1", NOTHING_LISTENS)
        try:
            yield
        finally:
            self.command("REPLICAOF", "NO", "ONE")

    @contextlib.contextmanager
    def master_down(self) -> Iterator[None]:
        """Refuse reads and writes by `MASTERDOWN`."""
        self.configure(replica_serve_stale_data="no")
        try:
            with self.read_only():
                yield
        finally:
            self.configure(replica_serve_stale_data="yes")

    @contextlib.contextmanager
    def no_replicas(self) -> Iterator[None]:
        """Refuse writes by `NOREPLICAS`."""
        self.configure(min_replicas_to_write=1)
        try:
            yield
        finally:
            self.configure(min_replicas_to_write=0)

    @contextlib.contextmanager
    def misconf(self) -> Iterator[None]:
        """Refuse writes by `MISCONF`: its snapshots fail, because a folder has the name of their file."""
        obstacle = self.folder / "dump.rdb"
        obstacle.mkdir()
        (obstacle / "file").touch()  # a rename replaces an empty folder
        self.configure(save="3600 1")
        self.command("BGSAVE")
        until(lambda: self.command("INFO", "persistence")["rdb_last_bgsave_status"] == "err", "a failed snapshot")
        try:
            yield
        finally:
            self.configure(save="")
            shutil.rmtree(obstacle)

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Refuse everything by `BUSY`: a script runs that does not end."""
        self.configure(busy_reply_threshold=1)
        script = threading.Thread(target=self._run_endless_script)
        script.start()
        until(self._is_busy, "a script that keeps it busy")
        try:
            yield
        finally:
            self.command("SCRIPT", "KILL")
            script.join()
            self.configure(busy_reply_threshold=5000)

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        """Refuse everything by `LOADING`: it restarts, and reads its data slowly."""
        self.command("EVAL", f"for i = 1, {FILLER_KEYS} do redis.call('set', 'filler-' .. i, ('x'):rep(4096)) end", 0)
        self.configure(rdbcompression="no")  # it replies between two pieces of 4 KiB that it reads
        self.command("BGREWRITEAOF")  # the delay applies to the snapshot that this writes
        until(self._is_rewritten, "a rewritten log")
        self.kill()
        self._start_loading()
        try:
            yield
        finally:
            self.command("CONFIG", "SET", "key-load-delay", 0)
            until(lambda: self._reply("PING") == "True", "the end of loading")
            self.command("EVAL", f"for i = 1, {FILLER_KEYS} do redis.call('del', 'filler-' .. i) end", 0)

    @contextlib.contextmanager
    def password_changed(self) -> Iterator[None]:
        """Refuse everybody by `NOAUTH`, or by `WRONGPASS` if the URL has a password: connections are closed."""
        before, changed = self.password, uuid4().hex
        self.configure(requirepass=changed)
        self.password = changed
        self.command("CLIENT", "KILL", "SKIPME", "yes")
        try:
            yield
        finally:
            self.configure(requirepass=before or "")
            self.password = before

    def user(self, *rules: str) -> str:
        """Return the URL of a new user with these rules of `ACL SETUSER`, as `"+@all", "~celeriac*", "&*"`."""
        name, password = f"u{uuid4().hex[:8]}", uuid4().hex
        self.command("ACL", "SETUSER", name, "on", f">{password}", *rules)
        return f"redis://{name}:{password}@127.0.0.1:{self.port}/0"

    def user_without_scripts(self) -> str:
        return self.user("+@all", "-@scripting", "~*", "&*")

    def user_without_channels(self) -> str:
        return self.user("+@all", "~*", "resetchannels")

    def user_without_keys(self) -> str:
        return self.user("+@all", "resetkeys", "&*")

    @contextlib.contextmanager
    def without_rights(self, url: str) -> Iterator[None]:
        """Refuse a user of `user` its keys, by `NOPERM`."""
        name = url.removeprefix("redis://").partition(":")[0]
        self.command("ACL", "SETUSER", name, "resetkeys")
        try:
            yield
        finally:
            self.command("ACL", "SETUSER", name, "allkeys")

    def _client(self) -> Any:
        never = Retry(NoBackoff(), 0)
        return redis_client.Redis(port=self.port, password=self.password, socket_timeout=30, retry=never)

    def _reply(self, *words: str | int) -> str:
        """Return what it replies, or the refusal."""
        try:
            return str(self.command(*words))
        except redis_client.RedisError as error:
            return str(error)

    def _is_busy(self) -> bool:
        return "busy" in self._reply("PING").lower()

    def _is_rewritten(self) -> bool:
        found = self.command("INFO", "persistence")
        return not found["aof_rewrite_in_progress"] and not found["aof_rewrite_scheduled"]

    def _run_endless_script(self) -> None:
        with contextlib.suppress(redis_client.RedisError), self._client() as client:
            client.connection_pool.connection_kwargs["socket_timeout"] = None
            client.eval("while true do end", 0)

    def kill(self) -> None:
        raise NotImplementedError

    def _start_loading(self) -> None:
        raise NotImplementedError


class PostgresRefusals:
    """The refusals of a PostgreSQL: each method is a context manager."""

    port: int
    dsn: str

    def sql(self, statement: str) -> list[Any]:
        raise NotImplementedError

    @contextlib.contextmanager
    def read_only(self) -> Iterator[None]:
        """Refuse writes by 25006, in every transaction that begins from now on."""
        self._set_for_all("default_transaction_read_only", "on")
        try:
            yield
        finally:
            self._set_for_all("default_transaction_read_only", "off")

    @contextlib.contextmanager
    def too_many_clients(self) -> Iterator[None]:
        """Refuse new connections by 53300. Those that were open are closed."""
        with contextlib.ExitStack() as stack:
            while (filler := self._connect()) is not None:
                stack.callback(filler.close)
                filler.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE backend_type = 'client backend' AND application_name != 'filler'"
                )
            yield

    def role(self) -> tuple[str, str]:
        """Return the name of a new role that may create tables, and the ledger's URL for it. A backend adds `db+`."""
        name = f"r{uuid4().hex[:8]}"
        self.sql(f"CREATE ROLE {name} LOGIN PASSWORD 'secret'")
        self.sql(f"GRANT ALL ON SCHEMA public TO {name}")
        database = self.dsn.partition("dbname=")[2].partition(" ")[0]
        return name, f"postgresql+psycopg://{name}:secret@127.0.0.1:{self.port}/{database}"

    @contextlib.contextmanager
    def no_rights(self, role: str) -> Iterator[None]:
        """Refuse a role its own tables, by 42501. Raise `LockNotAvailable` while a transaction changes one of them."""
        self.sql(f"SET lock_timeout = '1s'; REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {role}")
        try:
            yield
        finally:
            self.sql(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")

    @contextlib.contextmanager
    def no_login(self, role: str) -> Iterator[None]:
        """Refuse a role its login, by 28000. Its connections are closed."""
        self.sql(f"ALTER ROLE {role} NOLOGIN")
        self.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'")
        try:
            yield
        finally:
            self.sql(f"ALTER ROLE {role} LOGIN")

    def _set_for_all(self, name: str, value: str) -> None:
        self.sql(f"ALTER SYSTEM SET {name} = {value}")
        self.sql("SELECT pg_reload_conf()")
        until(lambda: self.sql(f"SHOW {name}") == [(value,)], f"{name} = {value}")

    def _connect(self) -> psycopg.Connection[Any] | None:
        """Return a connection that fills a place, or None if there is none left."""
        try:
            return psycopg.connect(self.dsn, autocommit=True, application_name="filler")
        except psycopg.OperationalError as error:
            if "too many clients" in str(error) or "remaining connection slots" in str(error):
                return None
            raise


class RabbitRefusals:
    """The refusals of a RabbitMQ: each method is a context manager."""

    vhost: str

    def control(self, *arguments: str) -> str:
        raise NotImplementedError

    @contextlib.contextmanager
    def memory_alarm(self) -> Iterator[None]:
        """Block every connection that publishes."""
        self.control("set_vm_memory_high_watermark", "0")
        try:
            yield
        finally:
            self.control("set_vm_memory_high_watermark", "0.4")

    @contextlib.contextmanager
    def no_rights(self) -> Iterator[None]:
        """Refuse all by 403. Connections are closed, because channels remember the rights that they have used."""
        self.control("set_permissions", "--vhost", self.vhost, "guest", "", "", "")
        self.close_connections()
        try:
            yield
        finally:
            self.control("set_permissions", "--vhost", self.vhost, "guest", ".*", ".*", ".*")

    @contextlib.contextmanager
    def no_vhost(self) -> Iterator[None]:
        """Refuse connections by 530: the virtual host is deleted with all in it, and comes back empty."""
        self.control("delete_vhost", self.vhost)
        try:
            yield
        finally:
            self.control("add_vhost", self.vhost)
            self.control("set_permissions", "--vhost", self.vhost, "guest", ".*", ".*", ".*")

    def close_connections(self) -> None:
        """Close all connections by 320, CONNECTION_FORCED."""
        self.control("close_all_connections", "closed by a test")
