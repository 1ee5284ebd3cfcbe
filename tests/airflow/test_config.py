"""The section [celery] must mean the same as to Airflow's own Celery provider. The section [celeriac] is ours."""

from __future__ import annotations

import json

import pytest
from airflow.exceptions import AirflowConfigException, AirflowException
from airflow.executors.base_executor import ExecutorConf
from celery import current_app

from celeriac.airflow.config import carries_priority, celery_settings, executor_config, make_app
from celeriac.airflow.options import InvalidAirflowConfig, Options
from celeriac.errors import InvalidConfig

USER_SETTINGS = {"worker_max_tasks_per_child": 7, "task_default_queue": "mine", "broker_url": "redis://users/3"}
NOT_A_DICT = 5

BROKER, BACKEND = "AIRFLOW__CELERY__BROKER_URL", "AIRFLOW__CELERY__RESULT_BACKEND"
OPTION, TRANSPORT = "AIRFLOW__CELERY__", "AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__"
BACKEND_TRANSPORT = "AIRFLOW__CELERY_RESULT_BACKEND_TRANSPORT_OPTIONS__"
DATABASE = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"
CERTIFICATES = {f"{OPTION}SSL_KEY": "/key", f"{OPTION}SSL_CERT": "/cert", f"{OPTION}SSL_CACERT": "/ca"}
TLS = {f"{OPTION}SSL_ACTIVE": "True"}

CONFIGURATIONS = {
    "nothing": {},
    "URLs": {BROKER: "redis://:hush@host:6380/2", BACKEND: "redis://:hush@host:6380/3"},
    "RabbitMQ has no visibility timeout": {BROKER: "amqp://guest:guest@host//"},
    "TLS to Redis by its URL": {BROKER: "rediss://host/0"},
    "SQS": {
        BROKER: "sqs://",
        f"{TRANSPORT}PREDEFINED_QUEUES": '{"q": {"url": "https://host/q"}}',
        f"{TRANSPORT}REGION": "eu-1",
    },
    "Sentinel": {
        BROKER: "sentinel://host:26379/0",
        f"{TRANSPORT}MASTER_NAME": "master",
        f"{TRANSPORT}SENTINEL_KWARGS": '{"password": "hush"}',
        f"{BACKEND_TRANSPORT}MASTER_NAME": "master",
        f"{BACKEND_TRANSPORT}SENTINEL_KWARGS": '{"password": "hush"}',
    },
    "kinds of values": {
        f"{TRANSPORT}VISIBILITY_TIMEOUT": "300",
        f"{TRANSPORT}FANOUT_PREFIX": "False",
        f"{TRANSPORT}SOCKET_TIMEOUT": "1.5",
        f"{TRANSPORT}GLOBAL_KEYPREFIX": "airflow",
    },
    "psycopg": {BACKEND: "db+postgresql+psycopg://u:p@host/db"},
    "psycopg2": {BACKEND: "db+postgresql+psycopg2://u:p@host/db"},
    "options of the engine": {
        BACKEND: "db+postgresql+psycopg://u:p@host/db",
        f"{OPTION}RESULT_BACKEND_SQLALCHEMY_ENGINE_OPTIONS": '{"pool_recycle": 9, "connect_args": {"options": "-c"}}',
    },
    "prepared statements enabled": {
        BACKEND: "db+postgresql+psycopg://u:p@host/db",
        f"{OPTION}RESULT_BACKEND_SQLALCHEMY_ENGINE_OPTIONS": '{"connect_args": {"prepare_threshold": 3}}',
    },
    "Airflow's database": {DATABASE: "postgresql://u:p@host/db"},
    "Airflow's database, by a driver": {DATABASE: "postgresql+psycopg2://u:p@host/db"},
    "options of the worker": {
        f"{OPTION}WORKER_CONCURRENCY": "5",
        f"{OPTION}WORKER_PREFETCH_MULTIPLIER": "3",
        f"{OPTION}WORKER_ENABLE_REMOTE_CONTROL": "False",
        f"{OPTION}TASK_ACKS_LATE": "f",
        f"{OPTION}TASK_TRACK_STARTED": "0",
        f"{OPTION}BROKER_CONNECTION_RETRY_ON_STARTUP": "False",
        "AIRFLOW__OPERATORS__DEFAULT_QUEUE": "first",
    },
    "extra Celery settings": {
        f"{OPTION}EXTRA_CELERY_CONFIG": '{"worker_max_tasks_per_child": 10, "worker_redirect_stdouts": true}'
    },
    "certificates for Redis": {**TLS, **CERTIFICATES, BROKER: "rediss://host/0"},
    "certificates for RabbitMQ": {**TLS, **CERTIFICATES, BROKER: "amqps://host//"},
    "one-way TLS": {**TLS, f"{OPTION}SSL_MUTUAL_TLS": "False", BROKER: "amqp://host//"},
    "URLs from commands": {
        f"{BROKER}_CMD": "printf redis://command/4",
        f"{BACKEND}_CMD": "printf redis://command/5",
    },
}


@pytest.fixture
def set_environment(monkeypatch):
    def set_variables(environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return set_variables


@pytest.fixture
def sections_in_a_file():
    """Airflow 3.2 ignores variables of a section that is in no file."""
    from airflow.configuration import conf

    names = ("celery_broker_transport_options", "celery_result_backend_transport_options")
    added = [name for name in names if not conf.has_section(name)]
    for name in added:
        conf.add_section(name)
    yield
    for name in added:
        conf.remove_section(name)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_settings_equal_those_of_upstream(set_environment, sections_in_a_file, name):
    upstream = pytest.importorskip("airflow.providers.celery.executors.default_celery")
    set_environment(CONFIGURATIONS[name])
    conf = ExecutorConf()
    assert celery_settings(conf) == upstream.get_default_celery_config(conf)


def test_newline_of_a_command_is_not_part_of_the_url(set_environment):
    set_environment({f"{BROKER}_CMD": "echo redis://command/4", f"{BACKEND}_CMD": "echo redis://command/5"})
    settings = celery_settings(ExecutorConf())
    assert (settings["broker_url"], settings["result_backend"]) == ("redis://command/4", "redis://command/5")


def test_users_dict_overrides_all_settings(set_environment):
    set_environment({f"{OPTION}CELERY_CONFIG_OPTIONS": f"{__name__}.USER_SETTINGS", BROKER: "redis://here/0"})
    settings = celery_settings(ExecutorConf())
    assert settings["worker_max_tasks_per_child"] == 7
    assert settings["task_default_queue"] == "mine"
    assert settings["broker_url"] == "redis://users/3"
    assert settings["task_acks_late"] is True


@pytest.mark.parametrize(
    "path",
    [
        "airflow.providers.celery.executors.default_celery.DEFAULT_CELERY_CONFIG",
        "airflow.config_templates.default_celery.DEFAULT_CELERY_CONFIG",
        "",
    ],
)
def test_default_of_celery_config_options_counts_as_unset(set_environment, path):
    unset = celery_settings(ExecutorConf())
    set_environment({f"{OPTION}CELERY_CONFIG_OPTIONS": path})
    assert celery_settings(ExecutorConf()) == unset


INVALID = [
    ("[celery] worker_concurrency", {f"{OPTION}WORKER_CONCURRENCY": "many"}),
    ("[celery] worker_prefetch_multiplier", {f"{OPTION}WORKER_PREFETCH_MULTIPLIER": "1.5"}),
    ("[celery] task_acks_late", {f"{OPTION}TASK_ACKS_LATE": "perhaps"}),
    ("[celery] extra_celery_config", {f"{OPTION}EXTRA_CELERY_CONFIG": '{"password": "hush"'}),
    ("[celery] extra_celery_config", {f"{OPTION}EXTRA_CELERY_CONFIG": '["hush"]'}),
    (
        "[celery] result_backend_sqlalchemy_engine_options",
        {f"{OPTION}RESULT_BACKEND_SQLALCHEMY_ENGINE_OPTIONS": "hush"},
    ),
    (
        "[celery_broker_transport_options] sentinel_kwargs",
        {BROKER: "sentinel://host/0", f"{TRANSPORT}SENTINEL_KWARGS": "hush"},
    ),
    ("[celery_result_backend_transport_options] sentinel_kwargs", {f"{BACKEND_TRANSPORT}SENTINEL_KWARGS": "5"}),
    ("[celery] celery_config_options", {f"{OPTION}CELERY_CONFIG_OPTIONS": "no.such.thing"}),
    ("[celery] celery_config_options", {f"{OPTION}CELERY_CONFIG_OPTIONS": f"{__name__}.NOT_A_DICT"}),
    ("[celery] ssl_active", {f"{OPTION}SSL_ACTIVE": "yes"}),
    ("[celery] ssl_key", {**TLS, BROKER: "rediss://:hush@host/0"}),
    ("[celery] ssl_active", {**TLS, **CERTIFICATES, BROKER: "sqs://hush@host"}),
]


@pytest.mark.parametrize(
    ("option", "environment"), INVALID, ids=[f"{n} {option}" for n, (option, _) in enumerate(INVALID)]
)
def test_invalid_option_is_named_in_one_line_without_secrets(set_environment, option, environment):
    set_environment(environment)
    with pytest.raises(InvalidAirflowConfig) as raised:
        celery_settings(ExecutorConf())
    assert isinstance(raised.value, AirflowConfigException)
    assert isinstance(
        raised.value, AirflowException
    )  # upstream raises this one for some options, ValueError for others
    assert isinstance(raised.value, InvalidConfig)
    assert isinstance(raised.value, ValueError)
    assert str(raised.value).startswith(f"{option}: ")
    assert "\n" not in str(raised.value)
    assert "hush" not in str(raised.value)


def test_error_is_also_that_of_the_task_sdk():
    exceptions = pytest.importorskip("airflow.sdk.exceptions")
    if not hasattr(exceptions, "AirflowConfigException"):
        pytest.skip("Airflow 3.1 has one class for all")
    assert issubclass(InvalidAirflowConfig, exceptions.AirflowConfigException)


def test_only_a_database_gets_options_of_an_engine(set_environment):
    set_environment(REDIS)
    app = make_app(ExecutorConf(), team_name=None, operation_timeout=1.0)
    assert app.conf.database_engine_options == {}
    set_environment({BACKEND: "db+sqlite:///:memory:"})
    app = make_app(ExecutorConf(), team_name=None, operation_timeout=1.0)
    assert app.conf.database_engine_options == {"pool_pre_ping": True}


@pytest.mark.parametrize("value", ["soon", "0", "-1", "nan", "inf"])
def test_timeout_must_be_a_positive_number(set_environment, value):
    set_environment({f"{OPTION}OPERATION_TIMEOUT": value})
    with pytest.raises(InvalidAirflowConfig, match=r"^\[celery\] operation_timeout: "):
        executor_config(ExecutorConf(), 4)


def test_executor_config_has_the_executors_options(set_environment):
    config = executor_config(ExecutorConf(), 4)
    assert (config.parallelism, config.operation_timeout, config.delete_results) == (4, 1.0, True)
    set_environment({f"{OPTION}OPERATION_TIMEOUT": "2.5", "AIRFLOW__CELERIAC__DELETE_RESULTS": "False"})
    config = executor_config(ExecutorConf(), 0)  # 0 means no limit
    assert (config.operation_timeout, config.delete_results) == (2.5, False)
    assert config.parallelism > 10**6


REDIS = {BROKER: "redis://:hush@127.0.0.1:1/0", BACKEND: "redis://:hush@127.0.0.1:1/1"}


def test_app_is_not_the_current_app_and_has_timeouts(set_environment):
    set_environment({**REDIS, f"{TRANSPORT}GLOBAL_KEYPREFIX": "mine"})
    app = make_app(ExecutorConf(), team_name=None, operation_timeout=1.5)
    assert current_app._get_current_object() is not app
    assert app.main == "airflow.providers.celery.executors.celery_executor"
    assert app.conf.broker_transport_options == {"visibility_timeout": 86400, "global_keyprefix": "mine"}
    assert (app.conf.redis_socket_timeout, app.conf.result_backend_always_retry) == (1.5, False)


def test_app_of_a_worker_retries_and_keeps_connections_alive(set_environment):
    set_environment(
        {**REDIS, f"{TRANSPORT}SOCKET_TIMEOUT": "9", f"{OPTION}EXTRA_CELERY_CONFIG": '{"broker_heartbeat": 30}'}
    )
    app = make_app(ExecutorConf(), team_name=None, operation_timeout=1.5, for_worker=True)
    options = app.conf.broker_transport_options
    assert (options["socket_timeout"], options["socket_keepalive"]) == (9, True)
    assert (app.conf.broker_heartbeat, app.conf.result_backend_always_retry) == (30, True)


def test_queues_have_ten_priorities_only_with_broker_priority(set_environment):
    set_environment({BROKER: "amqp://guest:guest@127.0.0.1:1//", BACKEND: REDIS[BACKEND]})
    app = make_app(ExecutorConf(), team_name=None, operation_timeout=1.0)
    assert (app.conf.task_queue_max_priority, carries_priority(app, ExecutorConf())) == (None, False)
    set_environment({"AIRFLOW__CELERIAC__BROKER_PRIORITY": "True"})
    assert make_app(ExecutorConf(), team_name=None, operation_timeout=1.0).conf.task_queue_max_priority == 10
    set_environment(REDIS)
    app = make_app(ExecutorConf(), team_name=None, operation_timeout=1.0)
    assert app.conf.broker_transport_options["priority_steps"] == list(range(10))


@pytest.mark.parametrize(("variable", "option"), [(BROKER, "broker_url"), (BACKEND, "result_backend")])
def test_url_of_unknown_kind_is_reported(set_environment, variable, option):
    set_environment({**REDIS, variable: "carrier-pigeon://user:hush@host/0"})
    with pytest.raises(InvalidAirflowConfig) as raised:
        make_app(ExecutorConf(), team_name=None, operation_timeout=1.0)
    assert str(raised.value).startswith(f"[celery] {option}: Celery does not support 'carrier-pigeon'")
    assert "hush" not in str(raised.value)


@pytest.mark.parametrize(
    ("variable", "url", "message"),
    [
        (BACKEND, "rediss://:hush@host/0", "rediss:// needs the parameter ssl_cert_reqs; add ?ssl_cert_reqs=required"),
        (BACKEND, "redis://:hush/hush@host/0", "has a raw character in the user name or the password; write %2F for /"),
        (BROKER, "redis://:hush#hush@host/0", "has a raw character in the user name or the password; write %23 for #"),
        (BROKER, "redis://:hush@host:hush/0", "has a port that is not a number"),
        (BROKER, "redis://:hush@host/0?hush=hush", "has a parameter that Celery does not know"),
        (BACKEND, "db+mysql+pymysql://u:hush@host/d", "needs the module pymysql, which is not installed"),
    ],
)
def test_url_that_celery_would_misread_is_reported(set_environment, variable, url, message):
    set_environment({**REDIS, variable: url})
    with pytest.raises(InvalidAirflowConfig) as raised:
        make_app(ExecutorConf(), team_name=None, operation_timeout=1.0)
    option = "broker_url" if variable == BROKER else "result_backend"
    assert str(raised.value).startswith(f"[celery] {option}: {message}")
    assert "hush" not in str(raised.value)


needs_teams = pytest.mark.skipif(not hasattr(ExecutorConf, "getsection"), reason="teams came with Airflow 3.2")


@needs_teams
def test_team_uses_its_own_urls(set_environment):
    team_option = "AIRFLOW__TEAM_A___CELERY__"
    set_environment(
        {**REDIS, f"{team_option}BROKER_URL": "redis://team/0", f"{team_option}RESULT_BACKEND": "redis://team/1"}
    )
    app = make_app(ExecutorConf(team_name="team_a"), team_name="team_a", operation_timeout=1.0)
    assert app.main == "airflow.providers.celery.executors.celery_executor_team_a"
    assert (app.conf.broker_url, app.conf.result_backend) == ("redis://team/0", "redis://team/1")


@needs_teams
def test_users_dict_does_not_override_the_urls_of_a_team(set_environment):
    team_option = "AIRFLOW__TEAM_A___CELERY__"
    set_environment({f"{team_option}BROKER_URL": "redis://team/0", f"{team_option}RESULT_BACKEND": "redis://team/1"})
    set_environment({f"{team_option}CELERY_CONFIG_OPTIONS": f"{__name__}.USER_SETTINGS"})
    settings = celery_settings(ExecutorConf(team_name="team_a"))
    assert (settings["broker_url"], settings["worker_max_tasks_per_child"]) == ("redis://team/0", 7)


@needs_teams
def test_team_without_a_result_backend_is_reported(set_environment):
    set_environment(REDIS)
    with pytest.raises(InvalidAirflowConfig, match="AIRFLOW__TEAM_A___CELERY__RESULT_BACKEND"):
        celery_settings(ExecutorConf(team_name="team_a"))


def test_environment_variables_need_no_section_in_a_file(set_environment):
    set_environment(CONFIGURATIONS["kinds of values"])
    assert celery_settings(ExecutorConf())["broker_transport_options"] == {
        "visibility_timeout": 300,
        "fanout_prefix": False,
        "socket_timeout": 1.5,
        "global_keyprefix": "airflow",
    }


def test_airflows_whole_configuration_gives_the_same_settings():
    from airflow.configuration import conf

    assert celery_settings(conf) == celery_settings(ExecutorConf())
    assert json.dumps(Options(conf).section("celery_broker_transport_options")) == "{}"


def test_quorum_queues_have_no_priorities(set_environment):
    settings = '{"task_default_queue_type": "quorum", "task_create_missing_queue_type": "quorum"}'
    set_environment(
        {
            BROKER: "amqp://guest:guest@127.0.0.1:1//",
            BACKEND: REDIS[BACKEND],
            "AIRFLOW__CELERIAC__BROKER_PRIORITY": "True",
            f"{OPTION}EXTRA_CELERY_CONFIG": settings,
        }
    )
    app = make_app(ExecutorConf(), team_name=None, operation_timeout=1.0)
    assert app.conf.task_queue_max_priority is None
    assert [app.amqp.queues[name].queue_arguments for name in ("default", "other")] == [{"x-queue-type": "quorum"}] * 2


def test_list_of_brokers_of_several_kinds_is_reported(set_environment):
    set_environment({**REDIS, BROKER: "redis://:hush@a/0;amqp://me:hush@b//"})
    with pytest.raises(InvalidAirflowConfig) as raised:
        make_app(ExecutorConf(), team_name=None, operation_timeout=1.0)
    assert str(raised.value).startswith("[celery] broker_url: its URLs are of several kinds: 'redis', 'amqp'; give")
    assert "hush" not in str(raised.value)
