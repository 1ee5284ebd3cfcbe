"""Tell a command and a URL that a run has ended, or that its first task has failed.

    Totals or a RunView ─► notice ─► Notifier ─► deliver: the command gets it on standard input, the URL by POST

A run never fails because of that, and never waits long: what goes wrong is one warning.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from http.client import HTTPException, responses
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
)

from celeriac import __version__
from celeriac.broker.deadline_thread import DeadlineThread
from celeriac.config.notice_targets import NoticeTargets
from celeriac.config.settings import EVENT_VARIABLE
from celeriac.config.web_urls import masked_web_url
from celeriac.errors import CeleriacError, describe_error, on_one_line
from celeriac.executor.executor import CeleryExecutor
from celeriac.runs.run import Totals
from celeriac.runs.summary import summary_fields
from celeriac.secret_variables import VARIABLES
from celeriac.task.event import Event
from celeriac.task.task import Command, TaskKey
from celeriac.values_as_text import count, format_seconds
from celeriac.worker.signals import signals_to

END, FIRST_FAILURE = "end", "first_failure"
LABELS = {END: "the end of the run", FIRST_FAILURE: "the first failure"}
MAX_FAILURES = 20  # failures in a notice
MAX_DETAIL = 200  # characters of a detail
COMMAND_TIMEOUT = 30.0  # seconds until the command gets TERM
TERM_TIMEOUT = 2.0  # seconds from TERM to KILL
URL_TIMEOUT = 10.0  # seconds for each step of the request
DELIVERY_TIMEOUT = 45.0  # seconds for all of that
THREAD = "celeriac-notices"
STANDARD_ERROR = 2
BAD_INPUT = 2  # exit status of a run that an error has ended
RUN_AGAIN = frozenset((301, 302, 303, 307, 308))  # statuses of a redirection


# — what is told —


def end_notice(totals: Totals, status: int, error: str | None = None) -> dict[str, Any]:
    """Return the notice that a run has ended. `error` is what ended it early."""
    fields = {**summary_fields(totals), "exit_status": status}
    if error is not None:
        fields["error"] = error
    return notice(END, fields)


def first_failure_notice(totals: Totals) -> dict[str, Any]:
    """Return the notice that the first task has failed."""
    fields = summary_fields(totals)
    return notice(FIRST_FAILURE, {**fields, "failures": fields["failures"][:1], "exit_status": None})


def notice(event: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a notice with these fields of the summary."""
    failures = [shortened(failure) for failure in fields["failures"][:MAX_FAILURES]]
    whole = {"event": event, "text": "", "host": socket.gethostname(), **fields, "failures": failures}
    whole["text"] = text_of(whole)
    return whole


def shortened(failure: Mapping[str, Any]) -> dict[str, Any]:
    detail = failure.get("detail")
    return {**failure, **({} if detail is None else {"detail": detail[:MAX_DETAIL]})}


def text_of(fields: Mapping[str, Any]) -> str:
    """Return a notice as one sentence for a person."""
    name = "a run" if fields["run"] is None else f"run {fields['run']}"
    failures = ", ".join(failure_text(failure) for failure in fields["failures"][:3])
    if fields["event"] == FIRST_FAILURE:
        return on_one_line(f"{name}: the first task has failed: {failures}")
    numbers = [f"{fields['succeeded']:,} succeeded", f"{fields['failed']:,} failed"]
    labels = {"revoked": "revoked", "never_ran": "never ran", "skipped": "skipped"}
    numbers += [f"{fields[name]:,} {label}" for name, label in labels.items() if fields[name]]
    how = "was interrupted" if fields.get("interrupted") else "has ended"
    text = f"{name} {how}: {count(fields['tasks'], 'task')}: {', '.join(numbers)}"
    text += f"; {format_seconds(fields['wall_time'])}, exit status {fields['exit_status']}"
    if "error" in fields:
        text += f"; {fields['error']}"
    return on_one_line(f"{text}; failed: {failures}" if failures else text)


def failure_text(failure: Mapping[str, Any]) -> str:
    return f"{failure['key']} ({failure.get('detail') or failure.get('reason') or 'failed'})"


# — of one run —


class GivenUp(BaseException):
    """Raised in the signal handler, while the end of a run is being told."""


class RunNotices:
    """The notices of a run of this process: a watcher of the run, and its end."""

    records_all = False

    def __init__(self, targets: NoticeTargets, warn: Callable[[str], None]) -> None:
        self._targets, self._warn = targets, warn
        self._totals: Totals | None = None
        self._first: Notifier | None = None
        self._status = BAD_INPUT
        self._error: str | None = None

    def on_start(self, totals: Totals) -> None:
        self._totals = totals

    def on_queued(self, jobs: Iterable[tuple[TaskKey, Command]]) -> None:
        """Nothing to tell."""

    def on_event(self, event: Event, command: Command | None) -> None:
        """Wait for the next tick, which has the numbers."""

    def on_tick(self, totals: Totals, executor: CeleryExecutor) -> None:
        if self._targets.first_failure and self._first is None and totals.failed:
            self._first = Notifier(self._targets)
            self._first.begin(first_failure_notice(totals))

    def on_interrupt(self, totals: Totals, executor: CeleryExecutor) -> None:
        """Tell it at the end."""

    def on_revoke(self, waiting: int) -> None:
        """Tell it at the end."""

    def on_error(self, error: Exception) -> None:
        self._error = str(error) if isinstance(error, CeleriacError) else describe_error(error)

    def on_end(self, status: int) -> None:
        self._status = status

    def finish(self) -> None:
        """Tell the end of the run, and wait until all is told. Ctrl-C and TERM end the wait. Prints a line about what
        went wrong."""
        if self._totals is None:
            return
        end = Notifier(self._targets)
        try:
            with signals_to(give_up):
                if self._first is not None:
                    self._wait_for(self._first, FIRST_FAILURE)
                end.begin(end_notice(self._totals, self._status, self._error))
                self._wait_for(end, END)
        except GivenUp:
            self._warn("interrupted while the end of the run was being reported")
        finally:
            end.give_up()

    def _wait_for(self, notifier: Notifier, event: str) -> None:
        problems = notifier.wait(DELIVERY_TIMEOUT)
        notifier.give_up()
        late = f"{LABELS[event]} was not reported within {DELIVERY_TIMEOUT:g} s"
        for problem in [late] if problems is None else problems:
            self._warn(problem)


def give_up() -> None:
    raise GivenUp


# — how it is told —


class Notifier:
    """Delivers one notice, in a thread of its own."""

    def __init__(self, targets: NoticeTargets) -> None:
        self._targets = targets
        self._thread: DeadlineThread[list[str]] = DeadlineThread(THREAD)
        self._command = CommandCall()

    def begin(self, told: Mapping[str, Any]) -> None:
        """Begin to deliver the notice. Does not wait."""
        self._thread.begin(lambda: deliver(self._targets, told, self._command))

    def wait(self, timeout: float) -> list[str] | None:
        """Return what went wrong with the notice that was begun, once it is delivered; None after the timeout."""
        try:
            return self._thread.reply(timeout)
        except TimeoutError:
            return None
        except Exception as error:  # noqa: BLE001 - a bug here must not change how a run ends
            return [f"a notice was not delivered: {describe_error(error)}"]

    def give_up(self) -> None:
        """End what is still under way."""
        self._command.end()


def deliver(targets: NoticeTargets, told: Mapping[str, Any], command: CommandCall) -> list[str]:
    """Deliver a notice. Return what went wrong, a line for each target, without a secret."""
    data = json.dumps(told).encode()
    problems: list[str] = []
    what = LABELS[told["event"]]
    if targets.url is not None and (problem := post(targets.url, data)) is not None:
        problems.append(f"{what} was not reported to {masked_web_url(targets.url)}: {problem}")
    if targets.command is not None:
        problem = command.run(targets.command, data, told["event"])
        if problem is not None:
            problems.append(f"{what}: the command of --on-end {problem}")
    return problems


class CommandCall:
    """The command of --on-end while it runs."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, command: str, data: bytes, event: str) -> str | None:
        """Run a command with a notice on standard input. Return what went wrong."""
        environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        try:
            self._process = process = subprocess.Popen(
                ["/bin/sh", "-c", command],
                stdin=subprocess.PIPE,
                stdout=STANDARD_ERROR,  # standard output is the summary's
                env={**environment, EVENT_VARIABLE: event},
                start_new_session=True,  # Ctrl-C at the terminal must not end it
            )
        except (OSError, ValueError) as error:
            return f"cannot be started: {describe_error(error)}"
        try:
            process.communicate(data, COMMAND_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.end()
            return f"was ended: it ran for {COMMAND_TIMEOUT:g} s"
        finally:
            self._process = None
        if process.returncode < 0:
            return f"was ended by {signal.Signals(-process.returncode).name}"
        return None if process.returncode == 0 else f"ended with exit code {process.returncode}"

    def end(self) -> None:
        """End the command, if it runs, and what it has started."""
        if (process := self._process) is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(OSError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(TERM_TIMEOUT)
                return


def post(url: str, data: bytes) -> str | None:
    """Send a notice to a web server. Return what went wrong, without the URL.

    A redirection is not followed: a POST would become a GET, and the notice could go to any other server.
    """
    try:
        with opener().open(request_of(url, data), timeout=URL_TIMEOUT) as response:
            response.read(1)
    except HTTPError as error:
        with suppress(OSError):
            error.close()
        name = responses.get(error.code, "")
        if error.code in RUN_AGAIN:
            return f"it redirects to another address (HTTP {error.code}); give that one"
        return f"HTTP {error.code} {name}".rstrip()
    except URLError as error:
        return describe_error(error.reason) if isinstance(error.reason, Exception) else "it cannot be reached"
    except (OSError, HTTPException, ValueError) as error:
        return describe_error(error) if isinstance(error, OSError) else "its reply is not HTTP"
    return None


def request_of(url: str, data: bytes) -> Request:
    """Return the request. A user and a password in the URL become a header."""
    parts = urlsplit(url)
    login, at, host = parts.netloc.rpartition("@")
    headers = {"Content-Type": "application/json", "User-Agent": f"celeriac/{__version__}"}
    if at:
        headers["Authorization"] = f"Basic {base64.b64encode(unquote(login).encode()).decode()}"
    address = urlunsplit((parts.scheme, host, parts.path or "/", parts.query, ""))
    return Request(address, data, headers, method="POST")  # noqa: S310 - `check_web_url` allows only these two


def opener() -> OpenerDirector:
    """Return what sends requests: over HTTP and HTTPS alone, with the proxies of the environment."""
    made = OpenerDirector()
    for handler in (ProxyHandler(), HTTPHandler(), HTTPSHandler(), HTTPDefaultErrorHandler(), HTTPErrorProcessor()):
        made.add_handler(handler)
    return made
