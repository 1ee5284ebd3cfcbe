"""Settings: which source wins, and the errors for values that cannot be used."""

from __future__ import annotations

import json
import re
import ssl
from pathlib import Path
from typing import Any

import pytest

from celeriac.broker.app import app_for
from celeriac.config.masking import masked
from celeriac.config.schema import SETTINGS
from celeriac.config.settings import Settings, read_settings
from celeriac.config.url_files import UrlFile
from celeriac.errors import InvalidConfig
from tests.support.cli_runner import run
from tests.support.servers import free_port

pytestmark = pytest.mark.celery


def read(folder: Path, environment: dict[str, str] | None = None, **options: object) -> Settings:
    return read_settings(options, environment=environment or {}, folder=folder)


def test_an_option_beats_a_variable_beats_a_file_beats_the_default(tmp_path):
    (tmp_path / "celeriac.toml").write_text('parallelism = 2\nqueues = ["a", "b"]\npool = "prefork"\n')
    environment = {"CELERIAC_PARALLELISM": "3", "CELERIAC_QUEUES": "c, d"}
    settings = read(tmp_path, environment, parallelism=4, queues=None)
    assert settings.executor.parallelism == 4
    assert settings.worker.queues == ("c", "d")
    assert settings.worker.pool == "prefork"
    assert settings.worker.grace == 30
    assert [settings.values[name].origin for name in ("parallelism", "queues", "pool", "grace")] == [
        "--parallelism",
        "CELERIAC_QUEUES",
        f"{tmp_path}/celeriac.toml: pool",
        "default",
    ]


def test_only_the_nearest_file_with_settings_is_read(tmp_path):
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text("[tool.celeriac]\nconcurrency = 7\ngrace = 1.5\n")
    (tmp_path / "a" / "pyproject.toml").write_text("[tool.other]\nx = 1\n")
    assert read(inner).worker.concurrency == 7
    (inner / "celeriac.toml").write_text("concurrency = 8\n")
    worker = read(inner).worker
    assert (worker.concurrency, worker.grace) == (8, 30)


def test_a_file_can_be_named(tmp_path):
    (tmp_path / "other.toml").write_text("parallelism = 9\nqueue_limits = {gpu = 2}\n")
    for settings in (
        read_settings(config=str(tmp_path / "other.toml"), environment={}, folder=tmp_path),
        read(tmp_path, {"CELERIAC_CONFIG": str(tmp_path / "other.toml")}),
    ):
        assert settings.executor.parallelism == 9
        assert settings.executor.queue_limits == {"gpu": 2}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('parallelism = "many"', "parallelism: 'many' is not a whole number; give for example 5"),
        ("parallelism = 0", "parallelism: 0 is not a whole number; give 1 or more"),
        ("concurrency = 0", "concurrency: 0 is too few; give 1 or more"),
        ("concurrency = true", "concurrency: True is not a whole number; give for example 5"),
        ("grace = -1", "grace: -1 is not a number of seconds; give for example 2 or 0.5"),
        ("operation_timeout = 0", "operation_timeout: 0.0 is not a number of seconds; give for example 2 or 0.5"),
        ('pool = "green"', "pool: 'green' is not known; give one of threads, prefork"),
        ("queues = []", "queues: [] names no queues; write for example default,gpu; in a file, a list of texts"),
        ('autoscale = "2,8"', "autoscale: at most 2 is less than at least 8; give the larger number first, as in 8,2"),
        ("queue_limits = {gpu = 0}", "queue_limits: 0 is too few; give 1 or more"),
        ("paralelism = 3", "paralelism: there is no such setting; did you mean parallelism?"),
        ("xyz = 3", "xyz: there is no such setting; `celeriac config` lists all settings"),
        ('tls_ca = "redis://h"', "tls_ca: is a URL, not the name of a file; write it into a file, and name that file"),
        ('tls_ca = "no such file"', "tls_ca: 'no such file' cannot be read; name a readable file"),
    ],
)  # fmt: skip
def test_an_invalid_line_is_reported_with_its_file_and_a_remedy(tmp_path, line, message):
    (tmp_path / "celeriac.toml").write_text(line + "\n")
    with pytest.raises(InvalidConfig) as error:
        read(tmp_path)
    assert str(error.value) == f"{tmp_path}/celeriac.toml: {message}"


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("CELERIAC_GRACE", "soon", "CELERIAC_GRACE: 'soon' is not a number of seconds; give for example 2 or 0.5"),
        ("CELERIAC_QUEUE_LIMITS", "gpu", "names no limits"),
        ("CELERIAC_BROKER_URL", "redis://h", "there is no such setting; did you mean CELERIAC_BROKER?"),
        ("CELERIAC_CONCURENCY", "3", "there is no such setting; did you mean CELERIAC_CONCURRENCY?"),
    ],
)
def test_an_invalid_variable_is_reported(tmp_path, variable, value, message):
    with pytest.raises(InvalidConfig) as error:
        read(tmp_path, {variable: value})
    assert message in str(error.value)


def test_unknown_variables_with_our_prefix_are_ignored(tmp_path):
    others = {"CELERIAC_KEY": "k", "CELERIAC_TASK_ID": "x", "CELERIAC_SERVICE_HOST": "10.0.0.1", "CELERIAC_PORT": "tcp"}
    assert read(tmp_path, others).values == read(tmp_path).values


def test_lists_and_tables_can_be_given_as_text_in_the_environment(tmp_path):
    settings = read(tmp_path, {"CELERIAC_QUEUE_LIMITS": "gpu=1,disk=4", "CELERIAC_AUTOSCALE": "8,2"}, pool="prefork")
    assert settings.executor.queue_limits == {"gpu": 1, "disk": 4}
    assert settings.worker.autoscale == (8, 2)


def test_autoscale_needs_a_prefork_pool(tmp_path):
    with pytest.raises(InvalidConfig, match="give --pool prefork with it"):
        _ = read(tmp_path, autoscale="8,2").worker


def test_the_default_backend_is_the_broker_if_it_is_a_redis(tmp_path):
    for broker in ("redis://h/0", "rediss://h/0", "sentinel://h:1/0", "redis+socket:///tmp/s"):
        assert read(tmp_path, broker=broker, sentinel_master="main").connection.backend == broker
    with pytest.raises(InvalidConfig, match=r"backend: none is named, .* 'amqp' keeps no results; give --backend"):
        _ = read(tmp_path, broker="amqp://h//").connection
    with pytest.raises(InvalidConfig, match="broker: none is named; give --broker-file or --broker"):
        _ = read(tmp_path).connection


def test_tls_files_become_the_settings_of_broker_and_backend(tmp_path):
    for name in ("ca", "cert", "key"):
        (tmp_path / name).touch()
    files: dict[str, Any] = {f"tls_{name}": str(tmp_path / name) for name in ("ca", "cert", "key")}
    redis = app_for(read(tmp_path, broker="rediss://h/0", **files).connection)
    assert redis.conf.broker_use_ssl == redis.conf.redis_backend_use_ssl
    assert redis.conf.broker_use_ssl == {
        "ssl_ca_certs": files["tls_ca"],
        "ssl_certfile": files["tls_cert"],
        "ssl_keyfile": files["tls_key"],
        "ssl_cert_reqs": ssl.CERT_REQUIRED,
    }
    assert redis.backend.connparams["ssl_ca_certs"] == files["tls_ca"]
    amqp = app_for(read(tmp_path, broker="amqps://h//", backend="redis://h/0", tls_ca=files["tls_ca"]).connection)
    assert amqp.conf.broker_use_ssl == {"ca_certs": files["tls_ca"], "cert_reqs": ssl.CERT_REQUIRED}
    assert not amqp.conf.redis_backend_use_ssl


def test_priority_levels_are_set_for_both_sides_unless_given(tmp_path):
    redis = read(tmp_path, broker="redis://h/0").connection
    assert app_for(redis).conf.broker_transport_options["priority_steps"] == list(range(10))
    options = app_for(redis, broker_transport_options={"priority_steps": [0, 5]}).conf.broker_transport_options
    assert options == {"priority_steps": [0, 5], "queue_order_strategy": "priority"}
    rabbit = read(tmp_path, broker="amqp://h//", backend="redis://h/0").connection
    assert app_for(rabbit).conf.task_queue_max_priority == 10
    assert app_for(rabbit, task_queue_max_priority=None).conf.task_queue_max_priority is None


@pytest.mark.parametrize(
    ("url", "display"),
    [
        ("redis://:hunter2@h/0", "redis://:******@h/0"),
        ("amqp://me:hunter2@h//", "amqp://me:******@h//"),
        ("amqp://me:hunter@2@h//", "amqp://me:******@h//"),
        ("sentinel://:hunter2@a:1;sentinel://:hunter2@b:1", "sentinel://:******@a:1;sentinel://:******@b:1"),
        ("redis+socket:///tmp/s?password=hunter2&virtual_host=1", "redis+socket:///tmp/s?password=******&virtual_host=1"),
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("redis://hunter2@h/0", "redis://******@h/0"),
        ("amqp://me@h//", "amqp://me@h//"),
        ("db+postgresql+psycopg://me@h/n", "db+postgresql+psycopg://me@h/n"),
        ("redis://:hun;ter2@h/0", "redis://:******@h/0"),
        ("redis://:hun/ter2@h/0", "redis://:******@h/0"),
        ("redis://:hun?ter=2@h/0", "redis://:******@h/0"),
        ("redis://:hun#ter2@h/0", "redis://:******@h/0"),
        ("rediss://h/0?ssl_password=hunter2&ssl_cert_reqs=none", "rediss://h/0?ssl_password=******&ssl_cert_reqs=none"),
        ("rediss://h/0?ssl%5Fpassword=hun;ter2", "rediss://h/0?ssl%5Fpassword=******"),
        ("postgresql://h/n?sslpassword=hunter#2", "postgresql://h/n?sslpassword=******"),
        ("postgresql://h/n?user=me&password=hunter@2", "postgresql://h/n?user=me&password=******"),
        ("amqp://me:hunter@a//;me:ter2@b//", "amqp://me:******@b//"),
        (["redis://:hunter2@a/0"], "['redis://******@a/0']"),
        ("sqlite:////srv/a@b.db", "sqlite:////srv/a@b.db"),
        (None, None),
    ],
)  # fmt: skip
def test_passwords_are_masked(url, display):
    assert masked(url) == display


@pytest.mark.parametrize("name", ["broker", "backend", "ledger"])
@pytest.mark.parametrize("kind", ['["URL"]', '{url = "URL"}', '[["URL"], "URL"]'])
def test_a_url_of_a_wrong_type_in_a_file_is_not_shown(tmp_path, name, kind):
    (tmp_path / "celeriac.toml").write_text(f"{name} = {kind.replace('URL', 'redis://:hunter2@h/0')}\n")
    with pytest.raises(InvalidConfig) as error:
        read(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}/celeriac.toml: {name}: is not text; ")
    assert "hunter2" not in str(error.value)


def test_a_url_as_the_value_of_another_setting_is_masked(tmp_path):
    for name in ("parallelism", "pool", "queue_type", "grace", "key_prefix", "autoscale", "tls_ca"):
        with pytest.raises(InvalidConfig) as error:
            read(tmp_path, {f"CELERIAC_{name.upper()}": "redis://me:hunter2@h/0 "})
        assert "hunter2" not in str(error.value)


# — URLs in files —


@pytest.fixture
def url_file(tmp_path):
    path = tmp_path / "url"
    path.write_text("# of the team\nredis://:hunter2@h/0\n")
    return path


def test_a_file_with_a_url_can_be_an_option_a_variable_or_in_a_file(tmp_path, url_file):
    (tmp_path / "celeriac.toml").write_text(f'backend_file = "{url_file}"\n')
    settings = read(tmp_path, {"CELERIAC_LEDGER_FILE": str(url_file)}, broker=UrlFile(url_file))
    origins = ("--broker-file", f"{tmp_path}/celeriac.toml: backend_file", "CELERIAC_LEDGER_FILE")
    for name, origin in zip(("broker", "backend", "ledger"), origins, strict=True):
        assert settings.values[name].value == "redis://:hunter2@h/0"
        assert settings.values[name].origin == f"{origin}: {url_file}"


def test_a_stronger_source_overrides_a_file_with_a_url(tmp_path, url_file):
    (tmp_path / "celeriac.toml").write_text(f'broker_file = "{url_file}"\n')
    assert read(tmp_path, {"CELERIAC_BROKER": "redis://other"}).connection.broker == "redis://other"
    (tmp_path / "celeriac.toml").write_text('broker = "redis://other"\n')
    assert read(tmp_path, {"CELERIAC_BROKER_FILE": str(url_file)}).connection.broker == "redis://:hunter2@h/0"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "' is empty; write the URL into it, in one line"),
        ("redis://:hunter2@h/0\nredis://:hunter2@i/0", "' has 2 lines, not one; write the URL into it, in one line"),
        ("hunter2", "/url: is not a URL; write for example redis://HOST:6379/0 or amqp://USER:PASSWORD@HOST//"),
        ("\udcff", "' cannot be read; name a readable text file"),
    ],
)  # fmt: skip
def test_a_file_without_one_url_is_reported_without_its_content(tmp_path, content, problem):
    (tmp_path / "url").write_text(content, errors="surrogateescape")
    with pytest.raises(InvalidConfig) as error:
        read(tmp_path, {"CELERIAC_BROKER_FILE": str(tmp_path / "url")})
    assert str(error.value).startswith("CELERIAC_BROKER_FILE")
    assert problem in str(error.value)
    assert "hunter2" not in str(error.value)


def test_a_url_and_a_file_in_one_source_are_refused(tmp_path, url_file):
    with pytest.raises(InvalidConfig, match="broker is given too; give only one of them"):
        read(tmp_path, {"CELERIAC_BROKER": "redis://h", "CELERIAC_BROKER_FILE": str(url_file)})
    ended = run("status", "--broker", "redis://h", "--broker-file", url_file, cwd=tmp_path)
    assert ended.status == 2
    assert "give only one of --broker and --broker-file" in ended.err


def test_a_password_in_an_option_is_warned_of_once_and_in_a_file_never(tmp_path, url_file):
    warning = "can read the password in --"
    address = f"127.0.0.1:{free_port()}"
    url_file.write_text(f"redis://:hunter2@{address}/0")
    url = f"redis://:hunter2@{address}/0"
    ended = run("status", "--broker", url, "--backend", url, cwd=tmp_path)
    assert ended.err.count(warning) == 1
    assert "; give --broker-file FILE, or CELERIAC_BROKER_FILE\n" in ended.err
    in_file = run("status", "--broker-file", url_file, cwd=tmp_path, env={"CELERIAC_BACKEND": url})
    assert in_file.err == ended.err.partition("\n")[2]  # the broker does not answer
    assert warning not in run("status", "--broker", f"amqp://guest:guest@{address}//", cwd=tmp_path).err
    assert warning not in run("status", "--ledger", "none", cwd=tmp_path).err


def test_config_shows_each_value_and_its_origin(tmp_path):
    (tmp_path / "celeriac.toml").write_text("concurrency = 3\n")
    environment = {"CELERIAC_BROKER": "redis://:hunter2@h/0"}
    ended = run("config", "--json", cwd=tmp_path, env=environment)
    values = json.loads(ended.out)
    assert values["concurrency"] == {"value": 3, "origin": f"{tmp_path}/celeriac.toml: concurrency"}
    assert values["broker"] == {"value": "redis://:******@h/0", "origin": "CELERIAC_BROKER"}
    assert values["pool"] == {"value": "threads", "origin": "default"}
    assert list(values) == list(SETTINGS)
    table = run("config", cwd=tmp_path, env=environment)
    assert "hunter2" not in table.out + ended.out
    assert "CELERIAC_BROKER" in table.out


def test_an_invalid_setting_ends_the_command_with_one_line_and_status_2(tmp_path):
    (tmp_path / "celeriac.toml").write_text("grace = \n")
    for arguments, message in (
        (["config"], f"celeriac: {tmp_path}/celeriac.toml: is not valid TOML: "),
        (["config", "--config", "gone.toml"], "celeriac: gone.toml: No such file or directory; name a readable file"),
    ):
        ended = run(*arguments, cwd=tmp_path)
        assert (ended.status, ended.out) == (2, "")
        assert ended.err.startswith(message)
        assert ended.err.count("\n") == 1


def test_each_setting_of_the_executor_can_be_given_as_text(tmp_path):
    mixed = {"parallelism": "7", "queue_limits": "gpu=2", "delete_results": "no", "publish_deadline": "1.5"}
    numbers = {"late_binding_margin": "3", "reconcile_rate": "10", "task_publish_max_retries": "4"}
    config = read(tmp_path, {f"CELERIAC_{name.upper()}": text for name, text in {**mixed, **numbers}.items()}).executor
    assert (config.parallelism, config.queue_limits, config.delete_results) == (7, {"gpu": 2}, False)
    assert (config.publish_deadline, config.late_binding_margin) == (1.5, 3)
    assert (config.reconcile_rate, config.task_publish_max_retries) == (10, 4)
    with pytest.raises(
        InvalidConfig, match="CELERIAC_DELETE_RESULTS: 'maybe' is neither true nor false; give true or false"
    ):
        read(tmp_path, {"CELERIAC_DELETE_RESULTS": "maybe"})


def test_run_local_ignores_the_configured_broker(tmp_path):
    (tmp_path / "celeriac.toml").write_text('broker = "amqp://me:hunter2@127.0.0.1:1//"\n')
    remote = run("run", "--", "true", cwd=tmp_path)
    assert remote.status == 2
    assert remote.err.startswith("celeriac: backend: none is named, and a broker of kind 'amqp' keeps no results")
    assert run("run", "--local", "--", "true", cwd=tmp_path).status == 0
    both = run("run", "--local", "--broker", "redis://h/0", "--", "true", cwd=tmp_path)
    assert both.status == 2
    assert "--local takes neither --broker nor --backend" in both.err


@pytest.mark.parametrize("broker", ["redis://:hunter2@h:1/0,", "redis://:hunter2@h:port/0"])
def test_an_invalid_url_is_reported_in_one_line(tmp_path, broker):
    ended = run("status", cwd=tmp_path, env={"CELERIAC_BROKER": broker})
    assert ended.status == 2
    assert re.fullmatch(r"celeriac: CELERIAC_BROKER: has a (database|port) that is not a number; write .*\n", ended.err)
    assert "hunter2" not in ended.err
