"""The process beside a worker: it serves logs, and removes stale DAG bundles. It ends with the worker."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import Process
from threading import Thread

from celeriac.airflow.processes import end_with_parent
from celeriac.log_lines import logger_for

log = logger_for(__name__)


@contextmanager
def sidecar(*, serves_logs: bool, bundle_interval: float) -> Iterator[None]:
    """Run the process in the block, if it has anything to do. `bundle_interval` is in seconds; 0 removes nothing."""
    if not serves_logs and bundle_interval <= 0:
        yield
        return
    process = Process(target=run_attached, args=(serves_logs, bundle_interval))
    process.start()
    try:
        yield
    finally:
        process.terminate()


def run_attached(serves_logs: bool, bundle_interval: float) -> None:
    """Do the work in this process, which ends with its parent: a killed worker could not end it."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Airflow's handler would only raise `SystemExit`
    end_with_parent()
    work(serves_logs, bundle_interval)


def work(serves_logs: bool, bundle_interval: float) -> None:
    if not serves_logs:
        remove_stale_bundles(bundle_interval)
    elif bundle_interval <= 0:
        serve_logs()
    else:
        remover = Thread(target=remove_stale_bundles, args=(bundle_interval,), daemon=True)
        remover.start()
        try:
            serve_logs()
        except Exception:
            log.exception("The log server has failed")
        finally:
            remover.join()  # bundles are removed also if another program has the port of the log server


def serve_logs() -> None:
    from airflow.utils.serve_logs import serve_logs

    serve_logs()


def remove_stale_bundles(interval: float) -> None:
    from airflow.dag_processing.bundles.base import BundleUsageTrackingManager

    manager = BundleUsageTrackingManager()
    while True:
        time.sleep(interval)  # a signal ends this process
        manager.remove_stale_bundle_versions()
