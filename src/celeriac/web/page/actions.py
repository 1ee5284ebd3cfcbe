"""Changes by an operator: a question first, then the change as the REST interface makes it, then the page again.

GET  /confirm/ACTION ─► the question, as a page, or in a dialog of the page before
POST /confirm/ACTION ─► the change ─► the page before, with a sentence about it
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from secrets import token_urlsafe

from celeriac.task.task import MAX_PRIORITY
from celeriac.web.api import changes
from celeriac.web.api.endpoint import Call
from celeriac.web.page import pause_actions
from celeriac.web.page.display import number
from celeriac.web.page.question import Action, NumberField, Question, Target, with_body
from celeriac.web.reads import Reads

MAX_NOTICES = 200


class Notices:
    """Sentences about changes, each shown once on the next page."""

    def __init__(self) -> None:
        self._sentences: OrderedDict[str, str] = OrderedDict()

    def add(self, sentence: str) -> str:
        """Keep a sentence. Return its name for an address."""
        name = token_urlsafe(8)
        self._sentences[name] = sentence
        while len(self._sentences) > MAX_NOTICES:
            self._sentences.popitem(last=False)
        return name

    def take(self, name: str | None) -> str | None:
        return None if name is None else self._sentences.pop(name, None)


# — cancel —


def ask_cancel(reads: Reads, target: Target) -> Question:
    if target.key:
        reads.task(target.run, target.key)
        effect = "If it waits, it never starts. If it runs, it gets TERM, and KILL after its grace."
        return Question(title=f"Cancel task {target.key}?", effect=effect, button="Cancel the task", is_dangerous=True)
    counts = reads.run(target.run, wait=False).counts
    waiting, in_flight = number(counts.waiting), number(counts.in_flight)
    effect = f"Its {waiting} waiting tasks never start. Its {in_flight} in flight get TERM, and KILL after their grace."
    return Question(title=f"Cancel run {target.run}?", effect=effect, button="Cancel the run", is_dangerous=True)


def cancel(call: Call, target: Target, _: Mapping[str, str]) -> str:
    if not target.key:
        result = changes.cancel_all(call)
        rest = "" if not result["left"] else f"; {number(result['left'])} more are being cancelled"
        return f"{number(result['revoked'])} tasks were revoked{rest}."
    (result,) = changes.cancel_some(with_body(call, changes.CancelBody(keys=[target.key])))["tasks"]
    if result["outcome"] == "had_ended":
        return f"The task had already ended: {result['state']}."
    return f"The task is being cancelled: {result['detail'] or result['state']}."


# — retry —


def ask_retry(reads: Reads, target: Target) -> Question:
    if target.key:
        reads.task(target.run, target.key)
        effect = "It is queued again with all of its retries. Its earlier attempts stay in its timeline."
        return Question(title=f"Run task {target.key} again?", effect=effect, button="Run it again")
    counts = reads.run(target.run, wait=False).counts
    others = counts.failed + counts.revoked + counts.never_ran
    choices = (
        ("", f"All {number(others)} that ended without success"),
        ("failed", f"Only the {number(counts.failed)} that failed"),
    )
    effect = "Tasks are queued again with all of their retries. A service with this ledger runs them."
    return Question(title=f"Retry run {target.run}?", effect=effect, button="Retry", choices=choices)


def retry(call: Call, target: Target, form: Mapping[str, str]) -> str:
    keys = [target.key] if target.key else []
    body = changes.RetryBody(keys=keys, failed=not keys and form.get("choice") == "failed")
    tasks = changes.retry(with_body(call, body))["tasks"]
    return f"{number(tasks)} {'task is' if tasks == 1 else 'tasks are'} queued again."


# — priority —


def ask_priority(reads: Reads, target: Target) -> Question:
    _, view = reads.task(target.run, target.key)
    effect = "A larger number is more urgent. It counts while the task waits."
    title, field = f"Priority of task {target.key}", priority_field(view.task.priority)
    return Question(title=title, effect=effect, button="Change it", number=field)


def priority_field(value: int) -> NumberField:
    return NumberField(name="priority", label="Priority", value=value, minimum=-MAX_PRIORITY)


def change_priority(call: Call, _: Target, form: Mapping[str, str]) -> str:
    priority = priority_field(0).read(form)
    changes.change_priority(with_body(call, changes.PriorityBody(priority=priority)))
    return f"The task has priority {priority:,} now."


# — drain —


def ask_drain(reads: Reads, target: Target) -> Question:
    running = pause_actions.shown_worker(reads, target).running
    effect = "It takes nothing more, finishes its running tasks, and stops."
    rest = "" if not running else f" It runs {number(running)} now."
    return Question(title=f"Drain worker {target.worker}?", effect=effect + rest, button="Drain", is_dangerous=True)


def drain(call: Call, target: Target, _: Mapping[str, str]) -> str:
    changes.drain(call)
    return f"Worker {target.worker} takes nothing more, and stops when its running tasks have ended."


ACTIONS: Mapping[str, Action] = {
    "cancel": Action(ask=ask_cancel, perform=cancel),
    "retry": Action(ask=ask_retry, perform=retry),
    "priority": Action(ask=ask_priority, perform=change_priority),
    "drain": Action(ask=ask_drain, perform=drain),
    "pause": pause_actions.PAUSE_ACTION,
    "resume": pause_actions.RESUME_ACTION,
    "parallelism": pause_actions.PARALLELISM_ACTION,
}
