"""The facts that all processes of Airflow must agree on: version, signing keys, broker and result backend.

    scheduler  ─► at its start ─► an entry of Airflow's audit log ─┐
    API server ─► GET /celeriac/facts, sealed ─────────────────────┼► `airflow celeriac doctor`, which compares
    worker     ─► its lease, in the result backend ────────────────┘

No password and no key is in the facts. A key is a fingerprint, from which it cannot be found out.
"""

from __future__ import annotations

import base64
import hmac
import socket
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

import msgspec
from cryptography.fernet import Fernet, InvalidToken
from sqlalchemy.exc import SQLAlchemyError

from celeriac import __version__
from celeriac.airflow.config import celery_settings, signing_keys
from celeriac.config.masking import masked
from celeriac.errors import describe_error
from celeriac.log_lines import logger_for

EVENT = "celeriac scheduler"
"""The event of the audit log."""

SEAL = b"celeriac facts"
MAX_ENTRIES = 500  # of the audit log that are read, the newest first

log = logger_for(__name__)


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """The facts of one process. The names are JSON keys in the audit log: they stay as they are."""

    version: str
    broker: str
    backend: str
    keys: tuple[str, ...] = ()
    """The fingerprints of the signing keys, that of the one that signs first."""

    team: str | None = None
    job: int | None = None
    """The id of the scheduler's job."""

    host: str | None = None
    """The name of its machine; None from an older version."""


def own_facts(conf: Any, *, team: str | None = None, job: int | None = None) -> Facts:
    """Return what this process uses. Raises `InvalidAirflowConfig`."""
    settings = celery_settings(conf)
    keys = signing_keys(conf)
    return Facts(
        version=__version__,
        broker=str(masked(settings["broker_url"])),
        backend=str(masked(settings["result_backend"])),
        keys=() if keys is None else keys.fingerprints,
        team=team,
        job=job,
        host=socket.gethostname(),
    )


# — schedulers —


def record_start(executor: Any) -> None:
    """Write what a scheduler's executor uses into Airflow's audit log.

    Do nothing without a job, as in a test of a DAG.
    """
    from airflow.models.log import Log
    from airflow.utils.session import create_session

    job = getattr(executor, "job_id", None)
    if not isinstance(job, int):
        return
    facts = own_facts(executor.conf, team=getattr(executor, "team_name", None), job=job)
    try:
        with create_session(scoped=False) as session:
            session.add(Log(event=EVENT, owner="celeriac", extra=msgspec.json.encode(facts).decode()))
    except SQLAlchemyError as error:
        log.warning("airflow celeriac doctor will not know this scheduler: %s", describe_error(error))


def recorded_facts(session: Any, jobs: Collection[int], team: str | None) -> Mapping[int, Facts]:
    """Return what schedulers with these jobs have recorded."""
    from airflow.models.log import Log
    from sqlalchemy import select

    query = select(Log.extra).where(Log.event == EVENT).order_by(Log.id.desc()).limit(MAX_ENTRIES)
    found: dict[int, Facts] = {}
    for extra in session.scalars(query):
        facts = decoded(extra or "")
        if facts is not None and facts.job is not None and facts.job in jobs and facts.team == team:
            found.setdefault(facts.job, facts)
    return found


def decoded(text: str | bytes) -> Facts | None:
    with suppress(msgspec.MsgspecError, RecursionError):
        return msgspec.json.decode(text, type=Facts)
    return None


# — the API server —


def sealed(content: Collection[Facts]) -> bytes | None:
    """Return facts that only holders of Airflow's `[api_auth] jwt_secret` can read; None without such a secret."""
    seal = seal_of_this_airflow()
    return None if seal is None else seal.encrypt(msgspec.json.encode(list(content)))


def unsealed(content: bytes) -> list[Facts] | None:
    """Return the facts; None if they were sealed with another secret."""
    seal = seal_of_this_airflow()
    if seal is None:
        return None
    with suppress(InvalidToken, msgspec.MsgspecError, RecursionError):
        return msgspec.json.decode(seal.decrypt(content), type=list[Facts])
    return None


def seal_of_this_airflow() -> Fernet | None:
    from airflow.configuration import conf

    secret = conf.get("api_auth", "jwt_secret", fallback=None)
    if not secret:
        return None
    return Fernet(base64.urlsafe_b64encode(hmac.digest(secret.encode(), SEAL, "sha256")))
