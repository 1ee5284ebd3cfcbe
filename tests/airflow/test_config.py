"""The [celery] section, read as Airflow's own Celery provider reads it; then what is ours."""

from __future__ import annotations

import json

import pytest
from airflow.exceptions import AirflowConfigException
from airflow.executors.base_executor import ExecutorConf
from celery import current_app

from celeriac.airflow.config import InvalidAirflowConfig, Options, app_of, celery_settings, executor_config
from celeriac.errors import InvalidConfig

USERS = {"worker_max_tasks_per_child": 7, "task_default_queue": "mine", "broker_url": "redis://users/3"}
NO_DICT = 5

BROKER, BACKEND = "AIRFLOW__CELERY__BROKER_URL", "AIRFLOW__CELERY__RESULT_BACKEND"
OPTION, TRANSPORT = "AIRFLOW__CELERY__", "AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__"
OF_BACKEND = "AIRFLOW__CELERY_RESULT_BACKEND_TRANSPORT_OPTIONS__"
DATABASE = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"
CERTIFICATES = {f"{OPTION}SSL_KEY": "/key", f"{OPTION}SSL_CERT": "/cert", f"{OPTION}SSL_CACERT": "/ca"}
TLS = {f"{OPTION}SSL_ACTIVE": "True"}

CONFIGURATIONS = {
    "nothing": {},
    "addresses": {BROKER: "redis://:hush@host:6380/2", BACKEND: "redis://:hush@host:6380/3"},
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
        f"{OF_BACKEND}MASTER_NAME": "master",
        f"{OF_BACKEND}SENTINEL_KWARGS": '{"password": "hush"}',
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
    "prepared statements after all": {
        BACKEND: "db+postgresql+psycopg://u:p@host/db",
        f"{OPTION}RESULT_BACKEND_SQLALCHEMY_ENGINE_OPTIONS": '{"connect_args": {"prepare_threshold": 3}}',
    },
    "Airflow's database": {DATABASE: "postgresql://u:p@host/db"},
    "Airflow's database, by a driver": {DATABASE: "postgresql+psycopg2://u:p@host/db"},
    "of the worker": {
        f"{OPTION}WORKER_CONCURRENCY": "5",
        f"{OPTION}WORKER_PREFETCH_MULTIPLIER": "3",
        f"{OPTION}WORKER_ENABLE_REMOTE_CONTROL": "False",
        f"{OPTION}TASK_ACKS_LATE": "f",
        f"{OPTION}TASK_TRACK_STARTED": "0",
        f"{OPTION}BROKER_CONNECTION_RETRY_ON_STARTUP": "False",
        "AIRFLOW__OPERATORS__DEFAULT_QUEUE": "first",
    },
    "more of Celery's": {
        f"{OPTION}EXTRA_CELERY_CONFIG": '{"worker_max_tasks_per_child": 10, "worker_redirect_stdouts": true}'
    },
    "certificates for Redis": {**TLS, **CERTIFICATES, BROKER: "rediss://host/0"},
    "certificates for RabbitMQ": {**TLS, **CERTIFICATES, BROKER: "amqps://host//"},
    "one-way TLS": {**TLS, f"{OPTION}SSL_MUTUAL_TLS": "False", BROKER: "amqp://host//"},
    "an address that a command tells": {
        f"{BROKER}_CMD": "printf redis://told/4",
        f"{BACKEND}_CMD": "printf redis://told/5",
    },
}


@pytest.fixture
def set_all(monkeypatch):
    def set_them(environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return set_them


@pytest.fixture
def sections_in_a_file():
    """Airflow 3.2 overlooks variables of a section that is in no file."""
    from airflow.configuration import conf

    names = ("celery_broker_transport_options", "celery_result_backend_transport_options")
    added = [name for name in names if not conf.has_section(name)]
    for name in added:
        conf.add_section(name)
    yield
    for name in added:
        conf.remove_section(name)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_it_reads_what_the_other_provider_reads(set_all, sections_in_a_file, name):
    other = pytest.importorskip("airflow.providers.celery.executors.default_celery")
    set_all(CONFIGURATIONS[name])
    conf = ExecutorConf()
    assert celery_settings(conf) == other.get_default_celery_config(conf)


def test_the_end_of_the_line_that_a_command_tells_is_no_part_of_an_address(set_all):
    set_all({f"{BROKER}_CMD": "echo redis://told/4", f"{BACKEND}_CMD": "echo redis://told/5"})
    settings = celery_settings(ExecutorConf())
    assert (settings["broker_url"], settings["result_backend"]) == ("redis://told/4", "redis://told/5")


def test_a_dict_of_the_users_goes_over_everything(set_all):
    set_all({f"{OPTION}CELERY_CONFIG_OPTIONS": f"{__name__}.USERS", BROKER: "redis://here/0"})
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
def test_the_default_of_celery_config_options_says_nothing(set_all, path):
    plain = celery_settings(ExecutorConf())
    set_all({f"{OPTION}CELERY_CONFIG_OPTIONS": path})
    assert celery_settings(ExecutorConf()) == plain


WRONG = [
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
    ("[celery_result_backend_transport_options] sentinel_kwargs", {f"{OF_BACKEND}SENTINEL_KWARGS": "5"}),
    ("[celery] celery_config_options", {f"{OPTION}CELERY_CONFIG_OPTIONS": "no.such.thing"}),
    ("[celery] celery_config_options", {f"{OPTION}CELERY_CONFIG_OPTIONS": f"{__name__}.NO_DICT"}),
    ("[celery] ssl_key", {**TLS, BROKER: "rediss://:hush@host/0"}),
    ("[celery] ssl_active", {**TLS, **CERTIFICATES, BROKER: "sqs://hush@host"}),
]


@pytest.mark.parametrize(("option", "environment"), WRONG, ids=[f"{n} {option}" for n, (option, _) in enumerate(WRONG)])
def test_what_is_wrong_is_one_line_with_the_option_and_no_secret(set_all, option, environment):
    set_all(environment)
    with pytest.raises(InvalidAirflowConfig) as told:
        celery_settings(ExecutorConf())
    assert isinstance(told.value, AirflowConfigException)
    assert isinstance(told.value, InvalidConfig)
    assert str(told.value).startswith(f"{option}: ")
    assert "\n" not in str(told.value)
    assert "hush" not in str(told.value)


@pytest.mark.parametrize("value", ["soon", "0", "-1", "nan", "inf"])
def test_no_timeout_that_is_none(set_all, value):
    set_all({f"{OPTION}OPERATION_TIMEOUT": value})
    with pytest.raises(InvalidAirflowConfig, match=r"^\[celery\] operation_timeout: "):
        executor_config(ExecutorConf(), 4)


def test_the_executors_own(set_all):
    config = executor_config(ExecutorConf(), 4)
    assert (config.parallelism, config.operation_timeout, config.delete_results) == (4, 1.0, True)
    set_all({f"{OPTION}OPERATION_TIMEOUT": "2.5", "AIRFLOW__CELERIAC__DELETE_RESULTS": "False"})
    config = executor_config(ExecutorConf(), 0)  # which has no limit
    assert (config.operation_timeout, config.delete_results) == (2.5, False)
    assert config.parallelism > 10**6


REDIS = {BROKER: "redis://:hush@127.0.0.1:1/0", BACKEND: "redis://:hush@127.0.0.1:1/1"}


def test_the_app_is_nobody_elses_and_bounded(set_all):
    set_all({**REDIS, f"{TRANSPORT}GLOBAL_KEYPREFIX": "mine"})
    app = app_of(ExecutorConf(), team_name=None, operation_timeout=1.5)
    assert current_app._get_current_object() is not app
    assert app.main == "airflow.providers.celery.executors.celery_executor"
    assert app.conf.broker_transport_options == {"visibility_timeout": 86400, "global_keyprefix": "mine"}
    assert (app.conf.redis_socket_timeout, app.conf.result_backend_always_retry) == (1.5, False)


def test_the_app_of_a_worker_lasts(set_all):
    set_all({**REDIS, f"{TRANSPORT}SOCKET_TIMEOUT": "9", f"{OPTION}EXTRA_CELERY_CONFIG": '{"broker_heartbeat": 30}'})
    app = app_of(ExecutorConf(), team_name=None, operation_timeout=1.5, for_worker=True)
    options = app.conf.broker_transport_options
    assert (options["socket_timeout"], options["socket_keepalive"]) == (9, True)
    assert (app.conf.broker_heartbeat, app.conf.result_backend_always_retry) == (30, True)


def test_queues_are_declared_as_the_other_provider_declares_them_unless_told(set_all):
    set_all({BROKER: "amqp://guest:guest@127.0.0.1:1//", BACKEND: REDIS[BACKEND]})
    assert app_of(ExecutorConf(), team_name=None, operation_timeout=1.0).conf.task_queue_max_priority is None
    set_all({"AIRFLOW__CELERIAC__BROKER_PRIORITY": "True"})
    assert app_of(ExecutorConf(), team_name=None, operation_timeout=1.0).conf.task_queue_max_priority == 10
    set_all(REDIS)
    app = app_of(ExecutorConf(), team_name=None, operation_timeout=1.0)
    assert app.conf.broker_transport_options["priority_steps"] == list(range(10))


@pytest.mark.parametrize(("variable", "option"), [(BROKER, "broker_url"), (BACKEND, "result_backend")])
def test_an_address_of_no_kind_that_is_known(set_all, variable, option):
    set_all({**REDIS, variable: "carrier-pigeon://user:hush@host/0"})
    with pytest.raises(InvalidAirflowConfig) as told:
        app_of(ExecutorConf(), team_name=None, operation_timeout=1.0)
    assert str(told.value).startswith(f"[celery] {option}: Celery does not support 'carrier-pigeon'")
    assert "hush" not in str(told.value)


needs_teams = pytest.mark.skipif(not hasattr(ExecutorConf, "getsection"), reason="teams came with Airflow 3.2")


@needs_teams
def test_a_team_has_addresses_of_its_own(set_all):
    of_team = "AIRFLOW__TEAM_A___CELERY__"
    set_all({**REDIS, f"{of_team}BROKER_URL": "redis://team/0", f"{of_team}RESULT_BACKEND": "redis://team/1"})
    app = app_of(ExecutorConf(team_name="team_a"), team_name="team_a", operation_timeout=1.0)
    assert app.main == "airflow.providers.celery.executors.celery_executor_team_a"
    assert (app.conf.broker_url, app.conf.result_backend) == ("redis://team/0", "redis://team/1")


@needs_teams
def test_no_dict_gives_a_team_the_addresses_of_others(set_all):
    of_team = "AIRFLOW__TEAM_A___CELERY__"
    set_all({f"{of_team}BROKER_URL": "redis://team/0", f"{of_team}RESULT_BACKEND": "redis://team/1"})
    set_all({f"{of_team}CELERY_CONFIG_OPTIONS": f"{__name__}.USERS"})
    settings = celery_settings(ExecutorConf(team_name="team_a"))
    assert (settings["broker_url"], settings["worker_max_tasks_per_child"]) == ("redis://team/0", 7)


@needs_teams
def test_a_team_without_a_result_backend_is_told(set_all):
    set_all(REDIS)
    with pytest.raises(InvalidAirflowConfig, match="AIRFLOW__TEAM_A___CELERY__RESULT_BACKEND"):
        celery_settings(ExecutorConf(team_name="team_a"))


def test_variables_are_enough(set_all):
    set_all(CONFIGURATIONS["kinds of values"])
    assert celery_settings(ExecutorConf())["broker_transport_options"] == {
        "visibility_timeout": 300,
        "fanout_prefix": False,
        "socket_timeout": 1.5,
        "global_keyprefix": "airflow",
    }


def test_airflows_whole_configuration_reads_the_same():
    from airflow.configuration import conf

    assert celery_settings(conf) == celery_settings(ExecutorConf())
    assert json.dumps(Options(conf).section("celery_broker_transport_options")) == "{}"
