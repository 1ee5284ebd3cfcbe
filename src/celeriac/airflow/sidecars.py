"""The processes beside a worker: the server of its logs, and the cleaner of old bundles. They end with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import Process
from typing import Any

from celeriac.airflow.prefork_control import end_with_the_parent


@contextmanager
def beside(target: Callable[..., Any], *arguments: Any) -> Iterator[None]:
    process = Process(target=attached, args=(target, *arguments))
    process.start()
    try:
        yield
    finally:
        process.terminate()


def attached(target: Callable[..., Any], *arguments: Any) -> None:
    """A worker that is killed has no chance to end it."""
    end_with_the_parent()
    target(*arguments)


def serve_logs() -> None:
    from airflow.utils.serve_logs import serve_logs

    serve_logs()


def clean_bundles(interval: float) -> None:
    from airflow.dag_processing.bundles.base import BundleUsageTrackingManager

    manager = BundleUsageTrackingManager()
    while True:
        time.sleep(interval)  # a process of its own, which ends by a signal
        manager.remove_stale_bundle_versions()
