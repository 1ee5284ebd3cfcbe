"""Where a running task was whose worker is gone: a line for its log in Airflow's page, read by the API server.

Airflow's page, the log of a running task ─► get_task_log ─► claim and lease ─► alive: nothing
                                                                              └─► gone: where it was
"""

from __future__ import annotations

import logging
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

from celery import Celery

from celeriac.airflow.config import make_app
from celeriac.airflow.options import Options
from celeriac.airflow.page.wording import spoken
from celeriac.airflow.task_log import log_line
from celeriac.backend.claims import claims_for
from celeriac.backend.claims.claim import Lease, LeaseRecord, LeaseState
from celeriac.config.lease import LEASE_DURATION
from celeriac.config.masking import masked_text
from celeriac.errors import InvalidInput, describe_error
from celeriac.log_lines import logger_for
from celeriac.server_errors import is_server_error
from celeriac.task.task import is_id

MAX_TIMEOUT = 2.0  # seconds for one read: a viewer waits for it

log = logger_for(__name__)


class GoneWorkers:
    """Reads claims and leases for one executor of the API server. Any thread may call it."""

    def __init__(self, conf: Any, team: str | None) -> None:
        self._conf, self._team = conf, team

    def log_of(self, ti: Any, try_number: int) -> list[str]:
        """Return the lines to add to the log of a running task: none while its worker is alive, or not known."""
        celery_id: Any = getattr(ti, "external_executor_id", None)
        if not is_id(celery_id) or ti.try_number != try_number:
            return []
        try:
            return self._read(celery_id)
        except Exception as error:
            if not isinstance(error, InvalidInput) and not is_server_error(error):
                raise
            log.debug("[%s] its lease cannot be read: %s", celery_id, masked_text(describe_error(error)))
            return []

    @cached_property
    def _app(self) -> Celery:
        return make_app(self._conf, team_name=self._team, operation_timeout=self._timeout)

    @cached_property
    def _timeout(self) -> float:
        return min(MAX_TIMEOUT, Options(self._conf).seconds("celery", "operation_timeout"))

    def _read(self, celery_id: str) -> list[str]:
        claims = claims_for(self._app, timeout=self._timeout)
        if claims is None:
            return []
        with closing(claims):
            claim = claims.read([celery_id]).get(celery_id)
            if claim is None or claim.cancelled:
                return []
            record = claims.leases().get(claim.holder)
            age = claims.heartbeat_ages([claim.holder]).get(claim.holder)
        if not is_gone(record, age):
            return []
        now = datetime.now(UTC)
        text = f"{place_of(record.lease if record else None, age, now)}. {FATE}"
        return [log_line(text, logging.WARNING, now if age is None else now - timedelta(seconds=age))]


FATE = "A scheduler with Celeriac's executor fails this try as lost within seconds, so that its retries apply."


def is_gone(record: LeaseRecord | None, age: float | None) -> bool:
    return record is None or record.state is not LeaseState.LIVE or (age is not None and age > LEASE_DURATION)


def place_of(lease: Lease | None, age: float | None, now: datetime) -> str:
    """Return which worker had the task, and when it was heard of last."""
    where = "a worker whose lease is removed"
    if lease is not None:
        where = f"worker {lease.name} (host {lease.host}, pid {lease.pid})"
    heard = ""
    if age is not None:
        moment = (now - timedelta(seconds=age)).isoformat(sep=" ", timespec="seconds").replace("+00:00", " UTC")
        heard = f": its last heartbeat was {spoken(age)} ago, at {moment}"
    return f"This task ran in {where}, which is gone{heard}"
