"""`airflow celeriac worker`: a Celery worker for workloads, with Celeriac's connections, acknowledgements and shutdown.

options, [celery], [celeriac] ─► WorkerPlan ─► prepare ─► run ─► Celery's consumer ─► prefork child ─► task.py
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from celery import Celery, signals
from kombu.serialization import prepare_accept_content

from celeriac.airflow.api_server import ApiServerWait
from celeriac.airflow.config import make_app
from celeriac.airflow.options import invalid_option
from celeriac.airflow.prefork_control import WorkloadPoolControl
from celeriac.airflow.request import HideHandledFailures
from celeriac.airflow.sidecars import sidecar
from celeriac.airflow.stats import StatsReporter, initialize_client, reporter_for
from celeriac.airflow.task import TASK_NAME, register_workload_task
from celeriac.airflow.task_end import TaskEnd
from celeriac.airflow.worker_plan import WorkerPlan
from celeriac.airflow.worker_preparation import preload_modules, show_debug_lines
from celeriac.airflow.worker_versions import let_term_reach_tasks, run_workload, watch_supervisor
from celeriac.airflow.workload_names import WORKER_LOGGERS, WorkloadNames, names_shown
from celeriac.doctor.at_start import warn_of
from celeriac.doctor.machine import machine_subject
from celeriac.doctor.redis import app_state_subject
from celeriac.log_lines import logger_for
from celeriac.worker.build import build_worker, open_parts, run_worker
from celeriac.worker.consumer import Worker
from celeriac.worker.gate import Gate, check_json_object
from celeriac.worker.parts import WorkerParts
from celeriac.worker.pool import ProcessPool

log = logger_for(__name__)


def run(plan: WorkerPlan) -> None:
    """Run a worker and its sidecar until a signal ends it. Raises `InvalidAirflowConfig`."""
    app = make_app(plan.conf, team_name=plan.team, operation_timeout=plan.operation_timeout, for_worker=True)
    pool_control = WorkloadPoolControl(plan.cleanup_time)
    names, task_end = WorkloadNames(), TaskEnd()
    watch_supervisor(task_end.on_supervisor_kill, task_end.on_end)
    let_term_reach_tasks()
    with (
        names_shown(names.find, WORKER_LOGGERS),
        open_parts(
            app,
            pool_control,
            operation_timeout=plan.operation_timeout,
            grace=plan.grace,
            keys=plan.keys,
            gate=gate_for(app, plan.max_message_size),
            log_refusal=log_refusal,
            backend_setting="[celery] result_backend",
            track_started=app.conf.task_track_started,
        ) as parts,
    ):
        run_one = partial(run_workload, to_stdout=plan.shows_task_logs)
        api_server = ApiServerWait(plan.api_server)
        api_server.install()
        register_workload_task(app, pool_control, parts, api_server, run_one, names=names, task_end=task_end)
        app.log.setup(plan.log_level, hostname=plan.hostname)
        if plan.log_level == "DEBUG":
            show_debug_lines()
        initialize_client()
        warn_at_start(app, plan)
        logging.getLogger("celery.worker.request").addFilter(HideHandledFailures())
        logging.getLogger("celery.pool").setLevel(logging.INFO)  # on DEBUG it logs whole messages, with their tokens
        preload_modules(serves_logs=plan.serves_logs)
        # Forked here, the process shares the modules with the worker and its children.
        with sidecar(serves_logs=plan.serves_logs, bundle_interval=plan.bundle_interval):
            run_processes(app, plan, parts, pool_control)


def run_processes(app: Celery, plan: WorkerPlan, parts: WorkerParts, pool_control: WorkloadPoolControl) -> None:
    """Run the worker, its children and the task reaper until a signal ends the worker."""
    worker = make_worker(app, plan, parts)
    pool_control.attach(worker)
    if parts.lease_manager is None:
        log.warning(
            "This result backend cannot store claims: only Airflow's API server rejects messages delivered twice."
            " Use Redis, Valkey or a database"
        )
    with reporting(worker, plan):
        run_worker(worker)


@contextmanager
def reporting(worker: Any, plan: WorkerPlan) -> Iterator[None]:
    """Send the worker's own metrics to Airflow's client in the block, from when the worker is ready.

    Before that it forks its children: a lock that the thread holds at that moment would stay locked in them.
    """
    worker.reporter = reporter = reporter_for(worker.parts.measures.telemetry, plan.team, worker=plan.hostname)
    try:
        yield
    finally:
        if reporter is not None:
            reporter.close()


def warn_at_start(app: Celery, plan: WorkerPlan) -> None:
    """Make the cheap checks of `airflow celeriac doctor`: one warning for each problem."""
    warn_of([machine_subject(plan.concurrency)], app_state_subject(app), log.warning)


def gate_for(app: Celery, max_size: int) -> Gate:
    """Return the gate for workloads in the formats that the app's settings allow."""
    return Gate(
        task_name=TASK_NAME,
        argument=str,
        check_argument=check_json_object,
        max_size=max_size,
        accept=frozenset(prepare_accept_content(app.conf.accept_content)),
        is_compressed=app.conf.task_compression is not None,
    )


def log_refusal(event: str, *, level: int, id: str | None, why: str, queue: str, **_: Any) -> None:
    log.log(level, "[%s] %s: %s (queue %r)", id or "no id", event, why, queue)


class WorkloadWorker(Worker):
    """A worker that also sends the signals of the program `celery worker`: users may have connected handlers."""

    reporter: StatsReporter | None = None

    def on_before_init(self, **options: Any) -> None:
        signals.celeryd_init.send(sender=self.hostname, instance=self, conf=self.app.conf, options=options)

    def on_start(self) -> None:
        super().on_start()
        signals.celeryd_after_setup.send(sender=self.hostname, instance=self, conf=self.app.conf)

    def on_consumer_ready(self, consumer: Any) -> None:
        self.take_up_lease()
        if self.reporter is not None:
            self.reporter.start()
        signals.worker_ready.send(sender=consumer)
        log.info("%s is ready; queues: %s", self.hostname, ",".join(self.app.amqp.queues.consume_from))


def make_worker(app: Celery, plan: WorkerPlan, parts: WorkerParts) -> Worker:
    return build_worker(
        app,
        parts,
        hostname=plan.hostname,
        unsupported_broker=unsupported_broker,
        worker_class=WorkloadWorker,
        pool=ProcessPool,
        concurrency=plan.concurrency,
        autoscale=plan.autoscale,
        queues=plan.queues,
        loglevel=plan.log_level,
        optimization="fair",
        without_gossip=plan.without_gossip,
        without_mingle=plan.without_mingle,
    )


def unsupported_broker(kind: str) -> Exception:
    problem = f"a worker cannot consume from {kind!r}"
    return invalid_option("celery", "broker_url", problem, "use Redis, Valkey or RabbitMQ")
