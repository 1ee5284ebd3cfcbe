"""The subjects of a deployment, by its settings."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from celery import Celery

from celeriac.backend.kind import BackendKind, backend_kind
from celeriac.broker.app import app_for
from celeriac.broker.broker_list import broker_list_of
from celeriac.config.clients import check_client
from celeriac.config.masking import masked
from celeriac.config.settings import AMQP_SCHEMES, DEFAULT, REDIS_SCHEMES, Settings, scheme_of
from celeriac.config.signing import SigningKeys
from celeriac.doctor.check import Subject
from celeriac.doctor.database import backend_subject, ledger_server_subject
from celeriac.doctor.files import Given, settings_problem, settings_subject
from celeriac.doctor.ledger import SQLITE, ledger_subject
from celeriac.doctor.ledger_content import CONTENT
from celeriac.doctor.machine import machine_subject
from celeriac.doctor.one_of_several import one_of_several_subject
from celeriac.doctor.rabbitmq import rabbitmq_subject
from celeriac.doctor.redis import redis_subject
from celeriac.doctor.workers import workers_subject
from celeriac.errors import InvalidConfig


def subjects_of(given: Given) -> list[Subject[Any]]:
    """Return all subjects. Servers are left out if the settings do not name them rightly: one line says so."""
    settings = given.settings
    if settings is None:
        return [*local_subjects(1, given)]
    subjects = [*local_subjects(settings.values["concurrency"].value, given), *ledger_of(settings)]
    if settings.values["broker"].value is None or [*settings_problem(given)]:
        return subjects
    try:
        connection = settings.connection
        app = app_for(connection)
    except InvalidConfig:  # a client is missing: `extras` says so
        return subjects
    keys = SigningKeys.of(connection.signing_key)
    timeout = connection.operation_timeout
    queues = settings.values["queues"].value
    return [*subjects, *server_subjects(app, queues, None if keys is None else keys.fingerprints, timeout)]


def local_subjects(concurrency: int, given: Given) -> Iterator[Subject[Any]]:
    yield machine_subject(concurrency)
    yield settings_subject(given)


def ledger_of(settings: Settings) -> Iterator[Subject[Any]]:
    url = settings.ledger
    if url is None:
        return
    if url.startswith(SQLITE):
        is_default = settings.values["ledger"].origin == DEFAULT
        yield ledger_subject(url, is_default=is_default, more=(CONTENT,))
    elif scheme_of(url).startswith("postgres") and has_client(url):
        yield ledger_server_subject(f"ledger {masked(url)}", url, settings.values["operation_timeout"].value)


def has_client(url: str) -> bool:
    try:
        check_client("ledger", url)
    except InvalidConfig:
        return False
    return True


def server_subjects(
    app: Celery, queues: Collection[str], keys: Sequence[str] | None, timeout: float
) -> Iterator[Subject[Any]]:
    """Yield the subjects of an app: its broker, its result backend, and its workers."""
    brokers = broker_list_of(app).urls
    if len(brokers) > 1:
        yield from (one_of_several_subject(app, url, timeout) for url in brokers)
    broker, backend = str(app.conf.broker_url), str(app.conf.result_backend)
    is_redis = scheme_of(broker) in REDIS_SCHEMES
    kind = backend_kind(app)
    is_one = is_redis and kind is BackendKind.REDIS and broker == backend
    if is_redis:
        name = f"broker and result backend {masked(broker)}" if is_one else f"broker {masked(broker)}"
        yield redis_subject(name, app, queues, timeout, as_broker=True, as_backend=is_one)
    elif scheme_of(broker) in AMQP_SCHEMES:
        yield rabbitmq_subject(f"broker {masked(broker)}", app, queues, timeout)
    if kind is BackendKind.REDIS and not is_one:
        name = f"result backend {masked(backend)}"
        yield redis_subject(name, app, queues, timeout, as_broker=False, as_backend=True)
    elif kind is BackendKind.DATABASE:
        yield backend_subject(f"result backend {masked(backend)}", app, timeout)
    yield workers_subject(app, queues, keys, timeout)
