"""The preparation of a worker: set up its log, check that its name is free, create tables, import modules."""

from __future__ import annotations

import contextlib
import gc
import logging
import sys
from contextlib import closing
from importlib import import_module
from typing import Any

from celery import Celery, signals
from celery.app.log import TaskFormatter

from celeriac.airflow.config import make_app
from celeriac.airflow.options import Options
from celeriac.airflow.worker_plan import WorkerPlan, celery_or_logging_flag
from celeriac.backend.claims import claims_for
from celeriac.errors import describe_error, describe_problem, describe_refusal
from celeriac.log_lines import logger_for
from celeriac.server_errors import RIGHTS, ServerProblem, problem_of, remedy_for

PING_TIMEOUT = 1.0  # seconds for another worker of the same name to reply
PRELOADED_MODULES = (
    "jinja2.ext",
    "cffi.cparser",
    "airflow.executors.base_executor",
    "airflow.dag_processing.bundles.local",
    "airflow.dag_processing.dagbag",
    "airflow.models.dagbag",
    "airflow.sdk.execution_time.supervisor",
    "airflow.sdk.execution_time.task_runner",
    "airflow.providers.standard.operators.bash",
    "airflow.providers.standard.operators.python",
    "numpy",
    "kubernetes.client",
)
"""Modules that every child or every task would import again, in tenths of a second. They need not be installed.

Each child ends with its worker by means of cffi, and each task reads its DAG through the dagbag, which has another
module in Airflow 3.1.
"""

LOG_SERVER_MODULES = ("uvicorn", "airflow.utils.serve_logs.log_server")

log = logger_for(__name__)


def prepare(plan: WorkerPlan, *, check_name: bool) -> None:
    """Set up the log, check the name and create tables, in this order, before the worker may become a daemon.

    Raises `InvalidAirflowConfig`, or `SystemExit` with a message for the user.
    """
    set_up_log(Options(plan.conf))
    if check_name:
        check_name_is_free(plan)
    app = make_app(plan.conf, team_name=plan.team, operation_timeout=plan.operation_timeout, for_worker=True)
    create_tables(app, plan.operation_timeout)


# — the log —


def set_up_log(options: Options) -> None:
    from airflow.sdk.log import configure_logging

    configure_logging(output=sys.stdout.buffer, json_output=celery_or_logging_flag(options, "json_logs"))
    if options.boolean("logging", "celery_stdout_stderr_separation"):
        signals.after_setup_logger.connect(send_errors_to_stderr, weak=False)


def show_debug_lines() -> None:
    """Show the lines on DEBUG of Celery and Celeriac, which the handlers of Airflow's log leave out.

    Other loggers stay on INFO: on DEBUG they show connections, and the tokens of requests and of messages.
    """
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    for handler in root.handlers:
        handler.setLevel(logging.DEBUG)
    for name in ("amqp", "celeriac", "celery", "kombu"):
        logging.getLogger(name).setLevel(logging.DEBUG)


class BelowError(logging.Filter):
    """Lets everything pass but errors."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR


def send_errors_to_stderr(logger: logging.Logger, **_: Any) -> None:
    """Log errors to standard error, everything else to standard output."""
    errors, others = logging.StreamHandler(sys.stderr), logging.StreamHandler(sys.stdout)
    errors.setLevel(logging.ERROR)
    others.addFilter(BelowError())
    for handler in (errors, others):
        handler.setFormatter(TaskFormatter("[%(asctime)s: %(levelname)s/%(processName)s] %(message)s"))
    logger.handlers[:] = [others, errors]


# — the name —


def check_name_is_free(plan: WorkerPlan) -> None:
    """Raise `SystemExit` if a worker of this name is running: replies of two such workers cannot be told apart.

    The check is skipped while the broker is unavailable.
    """
    import kombu.pools

    from celeriac.broker.session import BrokerSession

    # Not the worker's app: a daemon forks after this, and must not share connections with this process.
    app = make_app(plan.conf, team_name=plan.team, operation_timeout=plan.operation_timeout)
    session = BrokerSession(app, timeout=max(plan.operation_timeout, 2 * PING_TIMEOUT))
    try:
        with session.connect() as connection:
            inspect = app.control.inspect(destination=[plan.hostname], timeout=PING_TIMEOUT, connection=connection)
            if inspect.ping():
                raise SystemExit(
                    f"airflow celeriac: a worker called {plan.hostname} is already running; give another"
                    " --celery-hostname, or stop that worker"
                )
    except Exception as error:
        if not session.is_broker_error(error):
            raise
        problem = f"{describe_problem(error)}, so the name {plan.hostname} is not checked"
        log.warning("The broker %s: %s", problem, describe_refusal(error))
    finally:
        app.close()
        kombu.pools.reset()


# — tables —

TABLES = "the tables of Celery, celeriac_claim and celeriac_lease"


def create_tables(app: Celery, timeout: float) -> None:
    """Create the tables of a result backend in a database: later, all children would try to at the same time."""
    if hasattr(app.backend, "ResultSession"):
        create_result_tables(app)
        create_claim_tables(app, timeout)


def create_result_tables(app: Celery) -> None:
    from sqlalchemy.exc import IntegrityError, ProgrammingError

    try:
        session = app.backend.ResultSession()
        session.close()
        session.get_bind().dispose()  # else this process would keep a connection until it ends
    except (IntegrityError, ProgrammingError) as error:
        if problem_of(error) is not None:
            report_refusal(error)
        # else another worker is creating them
    except Exception as error:
        if problem_of(error) is None:
            raise
        report_refusal(error)


def create_claim_tables(app: Celery, timeout: float) -> None:
    claims = claims_for(app, timeout=timeout)
    assert claims is not None  # noqa: S101 - a database can store claims
    with closing(claims):
        try:
            claims.leases()
        except Exception as error:
            if problem_of(error) is None:
                raise
            report_refusal(error)


def report_refusal(error: Exception) -> None:
    """Raise `SystemExit` if the result backend refuses this worker for good. Otherwise log a warning."""
    reason = describe_refusal(error)
    if remedy_for(error) == RIGHTS.remedy:
        reason = f"{describe_error(error)}; give this user the right to create {TABLES}, or create them"
    if problem_of(error) is ServerProblem.REFUSED:
        raise SystemExit(f"airflow celeriac: [celery] result_backend: {reason}") from None
    log.warning("The result backend %s; the worker starts, and waits for it: %s", describe_problem(error), reason)


# — modules —


def preload_modules(*, serves_logs: bool) -> None:
    """Import modules before the fork, and hide them from the garbage collector, so that children share the memory."""
    for module in (*PRELOADED_MODULES, *(LOG_SERVER_MODULES if serves_logs else ())):
        with contextlib.suppress(ImportError):
            import_module(module)
    gc.collect()
    gc.freeze()
