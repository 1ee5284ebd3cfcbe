"""The commands that ask running workers: list-workers, shutdown-worker, add-queue and so on, and drain.

They reach workers of Celeriac and of Airflow's own provider, by Celery's remote control over the broker.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from airflow.cli.simple_table import AirflowConsole
from airflow.utils import cli
from celery import Celery

from celeriac.airflow.cli_output import Show
from celeriac.airflow.command_parts import exit_with_one_line, load_app
from celeriac.airflow.worker_replies import ask, ask_all, live_workers, report_silent
from celeriac.broker.session import BrokerSession
from celeriac.cluster.worker_registry import REPLY_TIMEOUT, queue_names
from celeriac.worker.served_queues import MAX_QUEUE_NAME, is_queue_name

QUEUES = "active_queues"
LIVES = "it has a lease, so it lives: wait if its machine is busy, or give it the broker_url of this machine"
CHANGE_TIMEOUT = 5.0  # seconds for a worker to add or remove a queue: the broker may be slow to declare it


class RemoteWorkers:
    """The workers of one broker. Messages for the user raise `SystemExit`."""

    def __init__(self, app: Celery, connection: Any, *, timeout: float, remote_control: bool = True) -> None:
        """`timeout`, in seconds, bounds one operation on the result backend. `remote_control` is whether the options of
        this machine let workers reply."""
        self._app, self._connection, self._timeout = app, connection, timeout
        self._remote_control = remote_control

    def queues(self) -> tuple[dict[str, list[str]], Sequence[str]]:
        """Return the queues of each worker that replies, and the workers that should have. All are sorted by name."""
        replies = ask_all(self._app, self._connection, QUEUES, self._expected())
        return {name: served_queues(reply) for name, reply in sorted(replies.by_worker.items())}, replies.silent

    def queues_of(self, name: str) -> list[str]:
        """Return the queues of one worker, as soon as it replies. One with a lease has more time for it."""
        reply = ask(self._app, self._connection, QUEUES, [name], REPLY_TIMEOUT).get(name)
        if reply is None:
            queues, silent = self.queues()
            if name not in queues:
                raise SystemExit(f"airflow celeriac: worker {name!r} does not reply; {self._why(name, queues, silent)}")
            return queues[name]
        return served_queues(reply)

    def _expected(self) -> Sequence[str]:
        return live_workers(self._app, self._timeout) if self._remote_control else ()

    def _why(self, name: str, queues: Collection[str], silent: Collection[str]) -> str:
        if name in silent:
            return LIVES
        return f"give one of those that do: {', '.join(queues)}" if queues else self.why_none()

    def why_none(self) -> str:
        if not self._remote_control:
            return "set [celery] worker_enable_remote_control = True for all workers"
        return "no worker replies: start one, or check [celery] broker_url"

    def shut_down(self, name: str) -> None:
        self._app.control.shutdown(destination=[name], connection=self._connection)

    def shut_down_all(self) -> None:
        self._app.control.broadcast("shutdown", connection=self._connection)

    def add_queue(self, name: str, queue: str) -> None:
        self._confirm(name, queue, "add_consumer")

    def remove_queue(self, name: str, queue: str) -> None:
        self._confirm(name, queue, "cancel_consumer")

    def _confirm(self, name: str, queue: str, command: str) -> None:
        """Change a queue, and wait until the worker says that it is done."""
        reply = ask(self._app, self._connection, command, [name], CHANGE_TIMEOUT, {"queue": queue}).get(name)
        if reply is None:
            raise SystemExit(
                f"airflow celeriac: {name} has not confirmed queue {queue!r} within {CHANGE_TIMEOUT:.0f} s; see its"
                " queues with list-workers, and its log"
            )
        if "error" in reply:
            raise SystemExit(f"airflow celeriac: {name} refuses queue {queue!r}: {reply['error']}")


@contextmanager
def remote_workers(args: Any) -> Iterator[RemoteWorkers]:
    """Connect to the broker. Raise `BrokerUnavailable`."""
    app, options = load_app(getattr(args, "team", None))
    timeout = options.seconds("celery", "operation_timeout")
    remote_control = options.boolean("celery", "worker_enable_remote_control")
    with BrokerSession(app, timeout=max(timeout, 2 * REPLY_TIMEOUT)).open() as connection:
        yield RemoteWorkers(app, connection, timeout=timeout, remote_control=remote_control)


def served_queues(reply: Any) -> list[str]:
    return sorted(queue_names(reply))


def parse_queues(text: str) -> list[str]:
    """Return the queues of `--queues`, each once."""
    queues = list(dict.fromkeys(queue.strip() for queue in text.split(",")))
    for queue in queues:
        if not is_queue_name(queue):
            raise SystemExit(
                f"airflow celeriac: --queues: {queue!r} is not the name of a queue; give names of 1 to {MAX_QUEUE_NAME}"
                " printable characters, separated by commas"
            )
    return queues


# — the commands —


@cli.action_cli(check_db=False)
@exit_with_one_line
def list_workers(args: Any) -> Show:
    with remote_workers(args) as workers:
        queues, silent = workers.queues()
    report_silent(silent, LIVES)
    rows = [{"worker_name": name, "queues": served} for name, served in queues.items()]
    return lambda: AirflowConsole().print_as(data=rows, output=args.output)


@cli.action_cli(check_db=False)
@exit_with_one_line
def shutdown_worker(args: Any) -> None:
    shut_down(args, args.celery_hostname)


@exit_with_one_line
def drain(args: Any) -> None:
    shut_down(args, args.worker)
    print(f"{args.worker} is draining: it takes no more workloads, and exits when its running ones have ended.")  # noqa: T201


def shut_down(args: Any, name: str) -> None:
    """Have a worker finish and exit. Raise `SystemExit` if it does not reply."""
    with remote_workers(args) as workers:
        workers.queues_of(name)
        workers.shut_down(name)


@cli.action_cli(check_db=False)
@exit_with_one_line
def shutdown_all_workers(args: Any) -> None:
    if not (args.yes or is_confirmed("Shut down all workers of this broker when their workloads have ended? (y/n) ")):
        raise SystemExit("Cancelled")
    with remote_workers(args) as workers:
        workers.shut_down_all()


def is_confirmed(question: str) -> bool:
    try:
        return input(question).strip().upper() in ("Y", "YES")
    except EOFError:
        raise SystemExit("airflow celeriac: no terminal to ask for a confirmation; give --yes") from None


@cli.action_cli(check_db=False)
@exit_with_one_line
def add_queue(args: Any) -> None:
    queues = parse_queues(args.queues)
    with remote_workers(args) as workers:
        workers.queues_of(args.celery_hostname)
        for queue in queues:
            workers.add_queue(args.celery_hostname, queue)


@cli.action_cli(check_db=False)
@exit_with_one_line
def remove_queue(args: Any) -> None:
    queues = parse_queues(args.queues)
    with remote_workers(args) as workers:
        served = workers.queues_of(args.celery_hostname)
        if unserved := [queue for queue in queues if queue not in served]:
            names = f"{', '.join(map(repr, unserved))}; it serves {', '.join(served) or 'none'}"
            print(f"airflow celeriac: {args.celery_hostname} does not serve {names}", file=sys.stderr)  # noqa: T201
        remove(workers, args.celery_hostname, queues)


@cli.action_cli(check_db=False)
@exit_with_one_line
def remove_all_queues(args: Any) -> None:
    name = args.celery_hostname
    with remote_workers(args) as workers:
        queues = workers.queues_of(name)
        remove(workers, name, queues)
    print(f"{name} serves no queue any more; removed: {', '.join(queues)}" if queues else f"{name} serves no queue")  # noqa: T201


def remove(workers: RemoteWorkers, name: str, queues: Sequence[str]) -> None:
    for queue in queues:
        workers.remove_queue(name, queue)
