"""Wait for Airflow's API server, in place of the task SDK's own few attempts.

supervisor ─► the SDK's client ─► ApiServerWait.send ─► answered: also 403, 404 and 409 are answers
                                        │          └► no answer, or 5xx: repeated as `ApiServerPolicy` says
                                        └► waited in vain ─► the SDK's error ─► task.py hands the workload back
                                                                 409 at a start ┴► task.py drops the message

A repeated start has the same process id, so the server accepts it if it has served the first one and the answer was
lost. That is why the wait is inside the client: a new supervisor would have another process id.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from random import Random
from typing import Any

from celeriac.airflow import worker_versions
from celeriac.airflow.api_server_policy import (
    AUTHENTICATION_STATUSES,
    ApiServerPolicy,
    RequestKind,
    is_start,
    is_unavailable,
    kind_of,
    token_expiry,
)
from celeriac.errors import describe_error
from celeriac.log_lines import logger_for

CONFLICT = 409
STOP_POLL_INTERVAL = 0.2  # seconds between two checks whether the wait must end

log = logger_for(__name__)


@dataclass(slots=True)
class Progress:
    """The state of the workload that runs in this process."""

    task_id: str = ""
    must_end: Callable[[], bool] = bool
    is_shutting_down: Callable[[], bool] = bool
    has_started: bool = True
    """Whether code of the user may have run."""

    answered_at: float = 0.0
    unavailable_since: float | None = None


class NotStarted(Exception):
    """The API server has not let a workload start, for a reason that will pass."""

    def __init__(self, text: str, *, token_has_expired: bool = False) -> None:
        super().__init__(text)
        self.token_has_expired = token_has_expired


class MovedOn(Exception):
    """The API server refuses to start a task instance: it is neither queued nor running any more."""


class ApiServerWait:
    """The requests of one child to the API server. They have one thread."""

    def __init__(self, policy: ApiServerPolicy, *, random: Random | None = None) -> None:
        self._policy, self._random = policy, random or Random()
        self._progress = Progress(answered_at=time.monotonic())

    def install(self) -> None:
        """Let every request of the task SDK's client in this process and its children wait by the policy."""
        worker_versions.replace_request(lambda send, path, content: self.send(send, path, content))

    def begin(
        self, task_id: str, workload: Any, *, must_end: Callable[[], bool], is_shutting_down: Callable[[], bool]
    ) -> None:
        """Begin with another workload. The callables say whether it was told to end, and whether the worker was."""
        has_started = not worker_versions.starts_through_api_server(workload)
        self._progress = Progress(task_id, must_end, is_shutting_down, has_started, time.monotonic())
        if self._policy.limits_heartbeats:
            worker_versions.set_max_failed_heartbeats(None)

    def raise_if_not_started(self, error: BaseException, workload: Any) -> None:
        """Raise `NotStarted` if this error of the supervisor means that the API server could not start the workload,
        and `MovedOn` if it need not start.

        Nothing is raised if the workload may have started, or if the server has refused it for good.
        """
        if self._progress.has_started:
            return
        if (state := conflicting_state(error)) not in (None, "running"):
            raise MovedOn(f"Airflow has it as {state!r}") from error
        if self._fails_for_now(error):
            raise NotStarted(f"the API server was unavailable: {describe_error(error)}") from error
        if status_of(error) in AUTHENTICATION_STATUSES and has_expired(workload.token, error):
            raise NotStarted("its token has expired", token_has_expired=True) from error

    def send(self, send: Callable[[], Any], path: str, content: Any = None) -> Any:
        """Return the answer to a request. `send` sends it once.

        Raises the SDK's error if the server has refused it, or stayed unavailable for too long.
        """
        progress, attempts, first_failure = self._progress, 0, None
        kind = kind_of(path, has_started=progress.has_started)
        while True:
            attempts += 1
            try:
                answer = send()
            except Exception as error:
                now = time.monotonic()
                if not self._fails_for_now(error):
                    if status_of(error) is not None:
                        self._note_answer(now)
                    if attempts > 1 and kind is RequestKind.END and was_done_before(error, content):
                        return error.response  # type: ignore[attr-defined]
                    raise
                self._note_failure(error, now)
                first_failure = now if first_failure is None else first_failure
                self._end_silent_task(kind, now - progress.answered_at)
                if not self._may_repeat(kind, attempts, first_failure, now):
                    if kind is RequestKind.HEARTBEAT:
                        raise error.with_traceback(None) from None  # the SDK logs it whole, each time
                    raise
                self._sleep(kind, attempts)
            else:
                self._note_answer(time.monotonic())
                progress.has_started = progress.has_started or is_start(path)
                return answer

    def _may_repeat(self, kind: RequestKind, attempts: int, first_failure: float, now: float) -> bool:
        progress = self._progress
        since = progress.unavailable_since if kind is RequestKind.START else first_failure
        return self._policy.may_repeat(
            kind,
            attempts=attempts,
            waited=now - (first_failure if since is None else since),
            silence=now - progress.answered_at,
            must_end=progress.must_end(),
            is_shutting_down=progress.is_shutting_down(),
        )

    def _sleep(self, kind: RequestKind, attempts: int) -> None:
        """Wait before the next attempt. The wait ends early if the workload was told to end."""
        progress, policy = self._progress, self._policy
        longest = max(policy.min_delay, min(policy.max_delay, 2.0 ** min(attempts, 30)))
        until = time.monotonic() + self._random.uniform(policy.min_delay, longest)
        while (left := until - time.monotonic()) > 0:
            if kind is RequestKind.START and (progress.must_end() or progress.is_shutting_down()):
                return
            time.sleep(min(left, STOP_POLL_INTERVAL))  # the worker's markers have no event

    def _end_silent_task(self, kind: RequestKind, silence: float) -> None:
        """Let the supervisor end its task at this failed heartbeat, if the server has been silent for too long."""
        if kind is RequestKind.HEARTBEAT and self._policy.must_end_task(silence):
            worker_versions.set_max_failed_heartbeats(0)

    def _fails_for_now(self, error: BaseException) -> bool:
        status = status_of(error)
        return worker_versions.is_connection_error(error) if status is None else is_unavailable(status)

    def _note_failure(self, error: Exception, now: float) -> None:
        progress = self._progress
        if progress.unavailable_since is None:
            progress.unavailable_since = now
            limit = self._policy.max_silence if progress.has_started else self._policy.patience
            log.warning(
                "[%s] Airflow's API server is unavailable; waiting up to %.0f s: %s",
                progress.task_id,
                limit,
                describe_error(error),
            )

    def _note_answer(self, now: float) -> None:
        progress = self._progress
        progress.answered_at = now
        if progress.unavailable_since is not None:
            seconds = now - progress.unavailable_since
            log.warning("[%s] Airflow's API server is back after %.1f s", progress.task_id, seconds)
            progress.unavailable_since = None


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status of the answer; None if there was no answer."""
    return getattr(getattr(error, "response", None), "status_code", None)


def was_done_before(error: BaseException, content: Any) -> bool:
    """Return whether the server refuses this state only because an earlier attempt has already set it.

    Airflow 3.3 answers such a request with success, earlier versions with a conflict.
    """
    state = conflicting_state(error)
    return state is not None and bool(content) and state == json.loads(content).get("state")


def conflicting_state(error: BaseException) -> str | None:
    """Return the state of a task instance for which the server refuses to change it; None for any other answer."""
    detail = getattr(error, "detail", None)
    if status_of(error) != CONFLICT or not isinstance(detail, dict):
        return None
    detail = detail.get("detail", detail)  # Airflow 3.1 keeps the whole answer
    if not isinstance(detail, dict) or "previous_state" not in detail:
        return None
    return detail["previous_state"] or "none"  # a cleared task instance has no state


def has_expired(token: str, error: BaseException) -> bool:
    """Return whether the token had expired when the server sent its answer, by the clock of the server."""
    expiry = token_expiry(token)
    if expiry is None:
        return False
    try:
        now = parsedate_to_datetime(error.response.headers["Date"]).timestamp()  # type: ignore[attr-defined]
    except (AttributeError, KeyError, TypeError, ValueError):
        now = time.time()
    return expiry <= now
