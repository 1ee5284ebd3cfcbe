"""Actions that pause and resume a run or a worker, and that change the parallelism of a run."""

from __future__ import annotations

from collections.abc import Mapping

from celeriac.cluster.status_parts import WorkerStatus
from celeriac.errors import InvalidConfig
from celeriac.web.api import pauses
from celeriac.web.api.endpoint import Call
from celeriac.web.errors import Conflict, NotFound
from celeriac.web.owner_requests import owner_of
from celeriac.web.page.display import number
from celeriac.web.page.question import Action, NumberField, Question, Target, with_body
from celeriac.web.reads import Reads


def shown_worker(reads: Reads, target: Target) -> WorkerStatus:
    """Return the worker that an address names. Raises `NotFound`."""
    found = [worker for worker in reads.broker().workers if worker.name == target.worker]
    if not found:
        raise NotFound(f"no worker {target.worker!r} has a lease")
    return found[0]


# — pause —


def ask_pause(reads: Reads, target: Target) -> Question:
    if target.run:
        run = reads.run(target.run, wait=False)
        waiting, in_flight = number(run.counts.waiting), number(run.counts.in_flight)
        until = "it is resumed" if run.is_submitted else "it is resumed, or its process ends"
        effect = f"Its {waiting} waiting tasks wait until {until}. Its {in_flight} in flight go on."
        return Question(title=f"Pause run {target.run}?", effect=effect, button="Pause the run")
    running = number(shown_worker(reads, target).running or 0)
    effect = f"It takes nothing more until it is resumed or starts again. The {running} tasks that it runs go on."
    return Question(title=f"Pause worker {target.worker}?", effect=effect, button="Pause the worker")


def pause(call: Call, target: Target, _: Mapping[str, str]) -> str:
    if target.run:
        pauses.pause(with_body(call, pauses.PauseBody()))
        return "The run is paused: it starts nothing more."
    pauses.pause_worker(call)
    return f"Worker {target.worker} is paused: it takes nothing more."


# — resume —


def ask_resume(reads: Reads, target: Target) -> Question:
    if target.run:
        run = reads.run(target.run, wait=False)
        what = (
            "Its tasks start again." if run.is_paused else f"Tasks of its {queue_names(run.paused_queues)} start again."
        )
        rest = f" Its {queue_names(run.paused_queues)} stays paused." if run.is_paused and run.paused_queues else ""
        return Question(title=f"Resume run {target.run}?", effect=what + rest, button="Resume the run")
    shown_worker(reads, target)
    effect = "It takes tasks again."
    return Question(title=f"Resume worker {target.worker}?", effect=effect, button="Resume the worker")


def resume(call: Call, target: Target, _: Mapping[str, str]) -> str:
    if target.run:
        run = call.reads.run(target.run, wait=False)
        queues = [] if run.is_paused else list(run.paused_queues)
        pauses.resume(with_body(call, pauses.PauseBody(queues=queues)))
        return "The run is resumed."
    pauses.resume_worker(call)
    return f"Worker {target.worker} takes tasks again."


def queue_names(queues: tuple[str, ...]) -> str:
    return f"{'queues' if len(queues) > 1 else 'queue'} {', '.join(queues)}"


# — parallelism —


def ask_parallelism(reads: Reads, target: Target) -> Question:
    run = reads.run(target.run, wait=False)
    if run.owner is None or run.is_submitted:
        raise NotFound(f"run {target.run!r} is not that of a live celeriac run")
    try:
        limits = owner_of(reads, run.name, run.owner, "the page").change_limits(None, {})
    except InvalidConfig as error:
        raise Conflict(str(error)) from None
    effect = "The slots of the run. Tasks that run keep theirs. It counts until the process of the run ends."
    field = parallelism_field(limits.parallelism)
    return Question(title=f"Parallelism of run {target.run}", effect=effect, button="Change it", number=field)


def parallelism_field(value: int) -> NumberField:
    return NumberField(name="parallelism", label="Parallelism", value=value, minimum=1)


def change_parallelism(call: Call, _: Target, form: Mapping[str, str]) -> str:
    body = pauses.LimitsBody(parallelism=parallelism_field(1).read(form))
    changed = pauses.change_limits(with_body(call, body))
    return f"The parallelism of the run is {number(changed['parallelism'])} now."


PAUSE_ACTION = Action(ask=ask_pause, perform=pause)
RESUME_ACTION = Action(ask=ask_resume, perform=resume)
PARALLELISM_ACTION = Action(ask=ask_parallelism, perform=change_parallelism)
