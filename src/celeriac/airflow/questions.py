"""Questions about waiting workloads, which the scheduler's executor answers in each heartbeat, and in the log."""

from __future__ import annotations

from typing import Any

from celeriac.airflow.explanations import ExplainChannel, Explainer
from celeriac.airflow.options import Options
from celeriac.airflow.queued_watch import QueuedLog, queued_limit
from celeriac.airflow.submitted import SubmittedWorkloads
from celeriac.cluster.cluster import Cluster
from celeriac.executor.executor import CeleryExecutor as Engine
from celeriac.surviving_loop import Survivor


class Questions:
    """The answers to what was asked since the last heartbeat, and the log of tasks that are queued for long."""

    def __init__(self, executor: Any, submitted: SubmittedWorkloads, cluster: Cluster, engine: Engine) -> None:
        """Raise `InvalidAirflowConfig` for a wrong option."""
        self._survivor = Survivor("of the scheduler, which explains tasks,")
        options = Options(executor.conf)
        explainer = Explainer(executor, submitted, cluster, engine)
        self._log = QueuedLog(executor, submitted, explainer.explain, after=queued_limit(executor.conf))
        timeout = options.seconds("celery", "operation_timeout")
        is_open = options.boolean("celeriac", "explain_channel")
        self._channel = ExplainChannel(cluster, explainer, timeout=timeout) if is_open else None

    def answer(self) -> None:
        """Do both. A bug here ends no scheduler: it is logged once."""
        with self._survivor.guard():
            if self._channel is not None:
                self._channel.answer()
            self._log.look()

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
