"""`airflow celeriac worker`: a Celery worker for workloads, with Celeriac's connection, acknowledgements and way to go.

options, [celery], [celeriac] ─► Plan ─► run ─► Celery's consumer ─► prefork ─► duty ─► Airflow's supervisor

What differs between Airflow's versions is at the end, one small function for each difference.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial, wraps
from importlib import import_module
from typing import Any

from airflow.executors import workloads
from airflow.utils import cli
from celery import Celery, signals
from celery.app.log import TaskFormatter
from celery.app.trace import setup_worker_optimizations
from celery.concurrency.prefork import TaskPool as ProcessPool
from celery.utils.nodenames import default_nodename, host_format

from celeriac.airflow import sidecars
from celeriac.airflow.config import Options, app_of, load_providers_configuration, signing_keys, wrong
from celeriac.airflow.prefork_control import WorkloadPoolControl
from celeriac.airflow.task import TASK_NAME, register_workload_task
from celeriac.backend.claims import claims_for
from celeriac.config.settings import scheme_of
from celeriac.config.signing import SigningKeys
from celeriac.errors import BrokerUnavailable, InvalidInput
from celeriac.worker.acks import Acks, AckStep
from celeriac.worker.consumer import Revokes, WatchedConsumer, Worker
from celeriac.worker.lease_manager import LeaseManager
from celeriac.worker.shutdown import ShutdownCoordinator
from celeriac.worker.signals import signals_to
from celeriac.worker.signature_check import SignatureVerifier
from celeriac.worker.start import keeper_for

PROCESS_NAME = "worker"
ANSWERS = 1.0  # seconds for another worker of the same name to answer
HEAVY = (
    "jinja2.ext",
    "airflow.sdk.execution_time.supervisor",
    "airflow.sdk.execution_time.task_runner",
    "airflow.providers.standard.operators.bash",
    "airflow.providers.standard.operators.python",
    "numpy",
    "kubernetes.client",
)
"""What every task would import again, for some tenths of a second each; those of it that are installed."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a worker is to be."""

    conf: Any
    team: str | None
    hostname: str
    queues: list[str]
    concurrency: int
    autoscale: tuple[int, int] | None
    """The most and the fewest processes."""

    without_mingle: bool
    without_gossip: bool
    log_level: str
    grace: float
    cleanup_time: float
    operation_timeout: float
    keys: SigningKeys | None
    serve_logs: bool
    bundle_interval: float

    def app(self, *, for_worker: bool = True) -> Celery:
        return app_of(self.conf, team_name=self.team, operation_timeout=self.operation_timeout, for_worker=for_worker)


def one_line_of_error(command: Callable[[Any], None]) -> Callable[[Any], None]:
    """What is wrong with the configuration is said without a traceback."""

    @wraps(command)
    def told(args: Any) -> None:
        try:
            load_providers_configuration()
            command(args)
        except (InvalidInput, BrokerUnavailable) as error:
            raise SystemExit(f"airflow celeriac: {error}") from None

    return told


@cli.action_cli(check_db=False)
@one_line_of_error
def worker(args: Any) -> None:
    """Run workloads until a signal says otherwise."""
    set_start_method()
    plan = plan_of(args)
    begin_log(Options(plan.conf))
    if args.celery_hostname:
        refuse_a_second(plan)
    make_tables(plan.app(), plan.operation_timeout)

    from airflow.cli.commands.daemon_utils import run_command_with_daemon_option
    from airflow.settings import DAEMON_UMASK

    pid_file, *_ = cli.setup_locations(process=PROCESS_NAME, pid=args.pid)
    run_command_with_daemon_option(
        args=args,
        process_name=PROCESS_NAME,
        callback=lambda: run(plan),
        should_setup_logging=True,
        umask=args.umask or Options(plan.conf).text("celery", "worker_umask") or DAEMON_UMASK,
        pid_file=pid_file,
    )


def plan_of(args: Any) -> Plan:
    """Raises `InvalidAirflowConfig`."""
    conf = conf_of(args.team)
    options = Options(conf)
    pool = options.text("celery", "pool") or "prefork"
    if pool not in ("prefork", "processes"):
        raise wrong("celery", "pool", f"{pool!r} runs workloads beside each other in one process", "set prefork")
    level = options.text("logging", "celery_logging_level") or options.text("logging", "logging_level", "INFO")
    queues = args.queues or options.text("operators", "default_queue", "default")
    return Plan(
        conf=conf,
        team=args.team,
        hostname=host_format(default_nodename(args.celery_hostname)),
        queues=[queue.strip() for queue in queues.split(",") if queue.strip()],
        concurrency=args.concurrency or options.whole("celery", "worker_concurrency", 16),
        autoscale=autoscale_of(args.autoscale or options.text("celery", "worker_autoscale")),
        without_mingle=args.without_mingle,
        without_gossip=args.without_gossip,
        log_level="DEBUG" if args.verbose else level.upper(),
        grace=options.seconds("celeriac", "worker_grace", float("inf")),
        cleanup_time=options.seconds("core", "killed_task_cleanup_time", 60.0),
        operation_timeout=options.seconds("celery", "operation_timeout", 1.0),
        keys=signing_keys(conf),
        serve_logs=not args.skip_serve_logs,
        bundle_interval=options.number("dag_processor", "stale_bundle_cleanup_interval", 1800, "seconds", "1800"),
    )


def autoscale_of(text: str) -> tuple[int, int] | None:
    """The most and the fewest, whichever is said first; one number is the most."""
    if not text:
        return None
    try:
        fewest, most = sorted(int(number) for number in [*text.split(","), "0"][:2])
    except ValueError:
        most = fewest = -1
    if most < 1 or fewest < 0:
        raise wrong("celery", "worker_autoscale", f"{text!r} is not two numbers", "set for example 16,4")
    return most, fewest


# — before the worker —


def begin_log(options: Options) -> None:
    from airflow.sdk.log import configure_logging

    configure_logging(output=sys.stdout.buffer, json_output=has_json_logs(options))
    if options.yes_or_no("logging", "celery_stdout_stderr_separation", default=False):
        signals.after_setup_logger.connect(separate_errors, weak=False)


def has_json_logs(options: Options) -> bool:
    own = options.text("celery", "json_logs")
    section = "celery" if own and own.lower() != "none" else "logging"
    return options.yes_or_no(section, "json_logs", default=False)


def separate_errors(logger: logging.Logger, **_: Any) -> None:
    """Errors to standard error, all else to standard output."""
    errors, others = logging.StreamHandler(sys.stderr), logging.StreamHandler(sys.stdout)
    errors.setLevel(logging.ERROR)
    others.addFilter(lambda record: record.levelno < logging.ERROR)
    for handler in (errors, others):
        handler.setFormatter(TaskFormatter("[%(asctime)s: %(levelname)s/%(processName)s] %(message)s"))
    logger.handlers[:] = [others, errors]


def refuse_a_second(plan: Plan) -> None:
    """Two workers of one name answer for each other. Nobody can be asked while the broker is away."""
    import kombu.pools

    from celeriac.broker.session import BrokerSession

    app = plan.app(for_worker=False)  # not the worker's: its connections must be made after the fork of a daemon
    calls = BrokerSession(app, timeout=max(plan.operation_timeout, 2 * ANSWERS))
    try:
        with calls.connect() as connection:
            inspect = app.control.inspect(destination=[plan.hostname], timeout=ANSWERS, connection=connection)
            if inspect.ping():
                raise SystemExit(
                    f"airflow celeriac: a worker called {plan.hostname} is at work; give another --celery-hostname,"
                    " or stop that one"
                )
    except calls.connection_errors as error:
        log.warning("The broker does not answer: %s", error)
    finally:
        app.close()
        kombu.pools.reset()


def make_tables(app: Celery, timeout: float) -> None:
    """Before there are children, who would all make them at once."""
    if hasattr(app.backend, "ResultSession"):
        make_result_tables(app)
        make_tables_of_claims(app, timeout)


def make_tables_of_claims(app: Celery, timeout: float) -> None:
    from sqlalchemy.exc import ProgrammingError

    claims = claims_for(app, timeout=timeout)
    assert claims is not None  # noqa: S101 - a database keeps them
    with closing(claims):
        try:
            claims.leases()
        except ProgrammingError as error:
            reason = str(error.orig).strip().partition("\n")[0]
            what = "its user must be able to make the tables celeriac_claim and celeriac_lease"
            raise SystemExit(f"airflow celeriac: [celery] result_backend: {what}: {reason}") from None
        except claims.errors as error:
            log.warning("The result backend does not answer: %s", type(error).__name__)


def make_result_tables(app: Celery) -> None:
    from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

    try:
        session = app.backend.ResultSession()
        session.close()
        session.get_bind().dispose()  # else this process would hold a connection all along
    except (IntegrityError, ProgrammingError):
        pass  # another worker makes them
    except OperationalError as error:
        reason = str(error.orig).strip().partition("\n")[0]
        raise SystemExit(f"airflow celeriac: [celery] result_backend: the database does not answer: {reason}") from None


# — the worker —


def run(plan: Plan) -> None:
    with ExitStack() as stack:
        if plan.serve_logs:
            stack.enter_context(sidecars.beside(sidecars.serve_logs))
        if plan.bundle_interval > 0:
            stack.enter_context(sidecars.beside(sidecars.clean_bundles, plan.bundle_interval))
        work(plan)


def work(plan: Plan) -> None:
    children = WorkloadPoolControl(plan.cleanup_time)
    keeper: LeaseManager | None = None
    try:
        app = plan.app()
        acks = Acks()
        keeper = keeper_for(app, children, plan.operation_timeout, track_started=app.conf.task_track_started)
        warden = ShutdownCoordinator(children, plan.grace, keeper)
        guard = SignatureVerifier(plan.keys, TASK_NAME)
        run_one = partial(run_workload, to_stdout=shows_task_logs(Options(plan.conf)))
        register_workload_task(app, children, acks, keeper, guard, run_one)
        app.steps["consumer"].update((Revokes, AckStep))
        app.log.setup(plan.log_level, hostname=plan.hostname)
        logging.getLogger("celery.pool").setLevel(logging.INFO)  # it shows whole messages, tokens included
        preload()
        celery_worker = make_worker(app, plan, children, warden, acks, keeper)
        celery_worker.guard = guard
        if keeper is None:
            log.warning("This result backend keeps no claims: only Airflow's API server refuses what comes twice")
        with signals_to(warden.request_shutdown):
            warden.watch(celery_worker)
            celery_worker.start()
    finally:
        children.close()
        if keeper is not None:
            keeper.end_lease()


class WorkloadWorker(Worker):
    """Sends the signals that Celery's own program sends, for what users have connected to them."""

    def on_before_init(self, **options: Any) -> None:
        signals.celeryd_init.send(sender=self.hostname, instance=self, conf=self.app.conf, options=options)

    def on_start(self) -> None:
        super().on_start()
        signals.celeryd_after_setup.send(sender=self.hostname, instance=self, conf=self.app.conf)

    def on_consumer_ready(self, consumer: Any) -> None:
        self.take_up_lease()
        signals.worker_ready.send(sender=consumer)
        log.info("%s is ready, for %s", self.hostname, ",".join(self.app.amqp.queues.consume_from))


def make_worker(
    app: Celery,
    plan: Plan,
    children: WorkloadPoolControl,
    warden: ShutdownCoordinator,
    acks: Acks,
    keeper: LeaseManager | None,
) -> WorkloadWorker:
    setup_worker_optimizations(app, plan.hostname)
    worker = WorkloadWorker(
        app=app,
        hostname=plan.hostname,
        hands=children,
        warden=warden,
        acks=acks,
        keeper=keeper,
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
        kind = scheme_of(app.conf.broker_url)
        raise wrong("celery", "broker_url", f"no worker of ours can wait on {kind!r}", "use Redis, Valkey or RabbitMQ")
    children.begin(worker)
    return worker


def preload() -> None:
    """In the parent, and out of the garbage collector's sight, so that children share its memory."""
    for module in HEAVY:
        with contextlib.suppress(ImportError):
            import_module(module)
    gc.collect()
    gc.freeze()


def shows_task_logs(options: Options) -> bool:
    own = options.text("celery", "task_logs_to_stdout")
    section = "celery" if own and own.lower() != "none" else "logging"
    return options.yes_or_no(section, "task_logs_to_stdout", default=False)


# — where Airflow's versions differ —


def set_start_method() -> None:
    """How the log server and its like are started: an option of 3.3 and later."""
    from airflow.utils import process_utils

    if hasattr(process_utils, "set_component_mp_start_method"):
        process_utils.set_component_mp_start_method("celery")


def conf_of(team: str | None) -> Any:
    """A worker reads the Task SDK's configuration, with the secrets backend for workers; a team's is with the core."""
    if team is not None:
        return team_conf(team)
    try:
        from airflow.sdk.configuration import conf
    except ImportError:  # 3.1
        from airflow.configuration import conf
    return conf


def team_conf(team: str) -> Any:
    from airflow.configuration import conf
    from airflow.executors.base_executor import ExecutorConf

    if not hasattr(ExecutorConf, "getsection"):
        raise SystemExit("airflow celeriac: --team needs Airflow 3.2 or later")
    if not conf.getboolean("core", "multi_team", fallback=False):
        raise SystemExit("airflow celeriac: --team needs [core] multi_team = True")
    return ExecutorConf(team_name=team)


def run_workload(workload: Any, to_stdout: bool) -> None:
    """In this process, and to its end. Raises what keeps the supervisor from reporting it."""
    from airflow.executors.base_executor import BaseExecutor

    if hasattr(BaseExecutor, "run_workload"):  # 3.3
        BaseExecutor.run_workload(workload, subprocess_logs_to_stdout=to_stdout)
    elif isinstance(workload, workloads.ExecuteTask):
        supervise_task(workload, to_stdout)
    elif hasattr(workloads, "ExecuteCallback") and isinstance(workload, workloads.ExecuteCallback):
        execute_callback(workload)
    else:
        raise TypeError(f"this version of Airflow cannot run a workload of type {type(workload).__name__}")


def supervise_task(workload: Any, to_stdout: bool) -> None:
    """3.1 and 3.2."""
    from airflow.sdk.execution_time.supervisor import supervise

    sentry = getattr(workload, "sentry_integration", None)  # 3.2
    supervise(
        ti=workload.ti,
        bundle_info=workload.bundle_info,
        dag_rel_path=workload.dag_rel_path,
        token=workload.token,
        server=execution_api_url(),
        log_path=workload.log_path,
        subprocess_logs_to_stdout=to_stdout,
        **({} if sentry is None else {"sentry_integration": sentry}),
    )


def execution_api_url() -> str:
    """3.1 and 3.2."""
    options = Options(conf_of(None))
    base = options.text("api", "base_url", "/")
    if base.startswith("/"):
        base = f"http://localhost:8080{base}"
    return options.text("core", "execution_api_server_url", f"{base.rstrip('/')}/execution/")


def execute_callback(workload: Any) -> None:
    """3.2."""
    from airflow.executors.workloads.callback import execute_callback_workload

    done, error = execute_callback_workload(workload.callback, log)
    if not done:
        raise RuntimeError(error or "the callback failed")
