"""The processes beside a worker: the log server and the remover of stale DAG bundles. They end with the worker."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import Process
from typing import Any

from celeriac.airflow.processes import end_with_parent


@contextmanager
def sidecar(target: Callable[..., Any], *arguments: Any) -> Iterator[None]:
    """Call `target` in a process of its own. The process is ended with the context."""
    process = Process(target=run_attached, args=(target, *arguments))
    process.start()
    try:
        yield
    finally:
        process.terminate()


def run_attached(target: Callable[..., Any], *arguments: Any) -> None:
    """Call `target` in this process, which ends with its parent: a killed worker could not end it."""
    end_with_parent()
    target(*arguments)


def serve_logs() -> None:
    from airflow.utils.serve_logs import serve_logs

    serve_logs()


def remove_stale_bundles(interval: float) -> None:
    from airflow.dag_processing.bundles.base import BundleUsageTrackingManager

    manager = BundleUsageTrackingManager()
    while True:
        time.sleep(interval)  # a signal ends this process
        manager.remove_stale_bundle_versions()
