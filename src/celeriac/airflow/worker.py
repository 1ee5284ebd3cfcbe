"""`airflow celeriac worker`: a Celery worker for workloads, with Celeriac's connections, acknowledgements and shutdown.

options, [celery], [celeriac] ─► WorkerPlan ─► prepare ─► run ─► Celery's consumer ─► prefork child ─► task.py
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from functools import partial
from typing import Any

from celery import Celery, signals
from celery.app.trace import setup_worker_optimizations
from celery.concurrency.prefork import TaskPool as ProcessPool

from celeriac.airflow import sidecars
from celeriac.airflow.config import make_app
from celeriac.airflow.options import invalid_option
from celeriac.airflow.prefork_control import WorkloadPoolControl
from celeriac.airflow.task import TASK_NAME, register_workload_task
from celeriac.airflow.worker_plan import WorkerPlan
from celeriac.airflow.worker_preparation import preload_modules
from celeriac.airflow.worker_versions import run_workload
from celeriac.config.settings import scheme_of
from celeriac.worker.acks import Acks, AckStep
from celeriac.worker.consumer import Revokes, WatchedConsumer, Worker
from celeriac.worker.lease_manager import LeaseManager
from celeriac.worker.shutdown import ShutdownCoordinator
from celeriac.worker.signals import signals_to
from celeriac.worker.signature_check import SignatureVerifier
from celeriac.worker.start import keeper_for

log = logging.getLogger(__name__)


def run(plan: WorkerPlan) -> None:
    """Run a worker and its sidecars until a signal ends it. Raises `InvalidAirflowConfig`."""
    with ExitStack() as stack:
        if plan.serves_logs:
            stack.enter_context(sidecars.sidecar(sidecars.serve_logs))
        if plan.bundle_interval > 0:
            stack.enter_context(sidecars.sidecar(sidecars.remove_stale_bundles, plan.bundle_interval))
        run_worker(plan)


def run_worker(plan: WorkerPlan) -> None:
    pool_control = WorkloadPoolControl(plan.cleanup_time)
    lease_manager: LeaseManager | None = None
    try:
        app = make_app(plan.conf, team_name=plan.team, operation_timeout=plan.operation_timeout, for_worker=True)
        acks = Acks()
        lease_manager = keeper_for(app, pool_control, plan.operation_timeout, track_started=app.conf.task_track_started)
        shutdown = ShutdownCoordinator(pool_control, plan.grace, lease_manager)
        verifier = SignatureVerifier(plan.keys, TASK_NAME)
        run_one = partial(run_workload, to_stdout=plan.shows_task_logs)
        register_workload_task(app, pool_control, acks, lease_manager, verifier, run_one)
        app.steps["consumer"].update((Revokes, AckStep))
        app.log.setup(plan.log_level, hostname=plan.hostname)
        logging.getLogger("celery.pool").setLevel(logging.INFO)  # on DEBUG it logs whole messages, with their tokens
        preload_modules()
        celery_worker = make_worker(app, plan, pool_control, shutdown, acks, lease_manager, verifier)
        if lease_manager is None:
            log.warning(
                "This result backend cannot store claims: only Airflow's API server rejects messages delivered twice."
                " Use Redis, Valkey or a database"
            )
        with signals_to(shutdown.request_shutdown):
            shutdown.watch(celery_worker)
            celery_worker.start()
    finally:
        pool_control.close()
        if lease_manager is not None:
            lease_manager.end_lease()


class WorkloadWorker(Worker):
    """Also sends the signals that the program `celery worker` sends, for what users have connected to them."""

    def on_before_init(self, **options: Any) -> None:
        signals.celeryd_init.send(sender=self.hostname, instance=self, conf=self.app.conf, options=options)

    def on_start(self) -> None:
        super().on_start()
        signals.celeryd_after_setup.send(sender=self.hostname, instance=self, conf=self.app.conf)

    def on_consumer_ready(self, consumer: Any) -> None:
        self.take_up_lease()
        signals.worker_ready.send(sender=consumer)
        log.info("%s is ready; queues: %s", self.hostname, ",".join(self.app.amqp.queues.consume_from))


def make_worker(
    app: Celery,
    plan: WorkerPlan,
    pool_control: WorkloadPoolControl,
    shutdown: ShutdownCoordinator,
    acks: Acks,
    lease_manager: LeaseManager | None,
    verifier: SignatureVerifier,
) -> WorkloadWorker:
    setup_worker_optimizations(app, plan.hostname)
    worker = WorkloadWorker(
        app=app,
        hostname=plan.hostname,
        hands=pool_control,
        warden=shutdown,
        acks=acks,
        keeper=lease_manager,
        guard=verifier,
        pool=ProcessPool,
        consumer_cls=WatchedConsumer,
        concurrency=plan.concurrency,
        autoscale=plan.autoscale,
        queues=plan.queues,
        loglevel=plan.log_level,
        optimization="fair",
        without_gossip=plan.without_gossip,
        without_mingle=plan.without_mingle,
    )
    if worker.hub is None:
        problem = f"a worker cannot consume from {scheme_of(app.conf.broker_url)!r}"
        raise invalid_option("celery", "broker_url", problem, "use Redis, Valkey or RabbitMQ")
    pool_control.attach(worker)
    return worker
