"""Connect the parts of a cluster in this process."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from msgspec.structs import replace

from celeriac.backend.claims.memory import MemoryClaims
from celeriac.cluster.local.engine import LocalEngine
from celeriac.cluster.local.journal import Journal
from celeriac.cluster.local.result_store import ResultStore
from celeriac.cluster.local.supervisor_pool import MAX_SUPERVISORS, SupervisorPool
from celeriac.cluster.local.worker import LocalWorker
from celeriac.config.executor_config import Config
from celeriac.control.unix_server import UnixControlServer
from celeriac.executor.executor import CeleryExecutor
from celeriac.executor.interfaces import Ledger
from celeriac.log_lines import logger_for
from celeriac.surviving_loop import thread_health
from celeriac.telemetry import Telemetry
from celeriac.worker.open_files import check_open_files
from celeriac.worker.output import OutputPolicy

if TYPE_CHECKING:
    from celeriac.worker.machine import Machine

logger = logger_for(__name__)


class LocalCluster:
    """Broker, worker and result backend in this process. One cluster serves one executor.

    Use it as a context manager, or call `close`.
    """

    def __init__(
        self,
        parallelism: int | None = None,
        queue_limits: Mapping[str, int] | None = None,
        *,
        config: Config | None = None,
        output_policy: OutputPolicy | None = None,
        control_channel: bool = False,
        journal: Path | None = None,
        folder: Path | None = None,
        telemetry: Telemetry | None = None,
    ) -> None:
        """Start the worker and its supervisors.

        `parallelism` is the number of slots, by default the number of processors; `queue_limits` bounds the slots of
        single queues. `config` has all settings of the executor; `parallelism` and `queue_limits` override its values.
        `output_policy` says where to keep the output of commands: by default the last lines go into the results. With
        `control_channel`, `celeriac cancel` and `celeriac explain` of the same user on this machine reach the executor.

        `folder` is the working folder of the commands, by default that of this process. `telemetry` collects what the
        executor measures; by default the cluster has one of its own.

        With `journal`, a folder, this process may be killed. The next process with the same folder waits until all
        commands of the killed one are dead. If a task is then queued again under the same id and attempt, the journal
        has the end of its command; the command runs only if it had not started before. Raise `InvalidConfig` for an
        unusable folder, and for more GPUs in `config` than there are.
        """
        self.telemetry = telemetry or Telemetry()
        """All that the executor of this cluster measures. Any thread may read it."""

        self._config = config_with(config or Config(), parallelism, queue_limits)
        if self._config.gpus is not None:
            machine_here(self._config)  # raises
        if (warning := check_open_files(self._config.parallelism, supervisors=MAX_SUPERVISORS)) is not None:
            logger.warning(warning)
        self.journal = Journal(journal) if journal is not None else None
        policy = output_policy or OutputPolicy()
        with ExitStack() as stack:
            if self.journal is not None:
                stack.callback(self.journal.close)
            inherits_streams = policy.inherits_input or policy.inherits_output
            supervisors = SupervisorPool(self.journal, folder, inherits_streams=inherits_streams)
            stack.callback(supervisors.close)
            store = ResultStore()
            claims = MemoryClaims(on_cancelled=store.put_revoked)
            self._worker = LocalWorker(
                store=store,
                claims=claims,
                supervisors=supervisors,
                output_policy=policy,
                telemetry=self.telemetry,
                journal=self.journal,
                gpus=lambda: machine_here(self._config).gpus,
            )
            self._engine = LocalEngine(
                worker=self._worker, supervisors=supervisors, store=store, claims=claims, journal=self.journal
            )
            self._control = open_control_server(self._engine) if control_channel else None
            stack.pop_all()  # nothing has interrupted the start

    def executor(self, config: Config | None = None, *, ledger: Ledger | None = None) -> CeleryExecutor:
        """Return the executor, with the cluster's own `Config` unless another is given.

        With `ledger` the executor can resume after a crash: see `celeriac.ledger`.
        """
        config, readings = config or self._config, None
        if config.limits_machine:
            from celeriac.worker.readings import read_machine  # late: few runs have such a limit

            readings = read_machine
        self._engine.has_ledger = ledger is not None
        executor = CeleryExecutor(
            config,
            publisher=self._worker,
            results=self._engine,
            revoker=self._engine,
            control_channel=self._control.requests if self._control is not None else None,
            ledger=ledger,
            threads=thread_health,
            telemetry=self.telemetry,
            readings=readings,
            outbox=False,
        )
        executor.adjustments.limit_resources(lambda: machine_here(self._config).amounts)
        return executor

    def wake(self) -> None:
        """End the executor's current `wait`. May be called from a signal handler or another thread."""
        self._engine.wake()

    def stop_commands(self) -> None:
        """Stop all running commands with SIGSTOP, and the clocks of their timeouts, until `continue_commands`.

        Commands that are started meanwhile start then."""
        self._engine.stop_commands()

    def continue_commands(self) -> None:
        """Let the stopped commands go on."""
        self._engine.continue_commands()

    def close(self) -> None:
        """End all running commands: TERM, a short grace, KILL. Return when their processes are dead."""
        if self._control is not None:
            self._control.close()
        self._engine.end_commands()
        if self.journal is not None:
            self.journal.close()

    def forget(self) -> None:
        """Close in a forked child what it has inherited. Otherwise the commands would outlive the death of this process
        until the child ends."""
        self._engine.forget_commands()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def config_with(config: Config, parallelism: int | None, queue_limits: Mapping[str, int] | None) -> Config:
    """Return the config with the values that are not None in place of its own."""
    if parallelism is not None:
        config = replace(config, parallelism=parallelism)
    return config if queue_limits is None else replace(config, queue_limits=queue_limits)


def machine_here(config: Config) -> Machine:
    """Return what tasks may use. Raise `InvalidConfig` for more GPUs than this process may use."""
    from celeriac.worker.machine import machine_for  # late: few tasks name resources

    return machine_for(config)


def open_control_server(engine: LocalEngine) -> UnixControlServer | None:
    """Return the control server. Log a warning and return None if its socket cannot be created."""
    try:
        return UnixControlServer(wake=engine.wake)
    except OSError as error:
        logger.warning(
            "cannot create the control socket, so celeriac cancel and celeriac explain will not work: %s", error
        )
        return None
