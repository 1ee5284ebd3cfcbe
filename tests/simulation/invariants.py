"""Check what must hold at each step of a history, whatever happens to its processes and servers.

A task is not run twice at once, nor again without the end or the loss of its last attempt, nor after its end was told,
nor after its success was stored. The commands that run are no more than the slots. The most urgent task goes first. An
end is told once. No task starts before what it needs. A dead worker gets no claim and no renewal, and a worker is
declared dead only after it was silent for the duration of its lease. Tokens grow. An attempt that is told as lost is
fenced. An executor that drains begins no attempt. A worker that shuts down in order costs none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from celeriac.backend.claims.claim import DeclaredDead, Granted, Lease, Renewed
from celeriac.config.lease import LEASE_DURATION
from celeriac.executor.executor import CeleryExecutor
from celeriac.executor.interfaces import LedgerBatch
from celeriac.task.event import Event
from celeriac.task.result import Execution, Reason, Result
from celeriac.task.state import State
from celeriac.task.task import Task
from celeriac.worker.outcome import STOP_DETAILS
from celeriac.worker.supervisor.messages import StopReason
from tests.simulation.jobs import CommandPlan, Job
from tests.simulation.supervisor import Run

if TYPE_CHECKING:
    from tests.simulation.failover import StoredState
    from tests.simulation.history import History

RESUMED_MACHINE = 1.0  # seconds in which the supervisor of a machine that was suspended ends its commands
NOTICED_OUTAGE = 8.0  # seconds that the store serves no writes, until a watcher has noticed it
RENEWED_WITHIN = 4.0  # seconds after an outage in which each worker that is alive renews its lease
MAX_BEATS = 1_000  # heartbeats in a second; one follows each event
CLOCK_ERROR = 1.06  # how much faster than another the clock of a process may go, at most


class Invariants:
    """Watches one history, and fails it."""

    def __init__(self, history: History) -> None:
        self._history, self._world, self._jobs = history, history.world, history.jobs
        self._beats = (0, 0)
        """A second, and how many heartbeats executors had in it."""

    # — commands —

    def command_started(self, run: Run) -> CommandPlan:
        history, key = self._history, run.request.env["CELERIAC_KEY"]
        job = self._jobs[key]
        history.tell(f"{key} starts as {run.request.id} on {run.process.name}")
        if not job.is_forgotten:
            self._check_start(key, job, run)
        self._check_needs(key, job)
        job.starts.append((self._world.now, run))
        job.live.append(run)
        run.is_live = True
        running = self._all_running()
        if len(running) > history.most_commands:
            history.fail(f"{len(running)} commands run in {history.most_commands} slots")
        for feature in history.features if not job.is_forgotten else ():
            feature.started(job, run, running)
        return job.plan(self._world.random)

    def command_ended(self, run: Run) -> None:
        if run.is_live:
            run.is_live = False
            key = run.request.env["CELERIAC_KEY"]
            self._jobs[key].live.remove(run)
            stopped = "" if run.stopped is None else f": {run.stopped.value}"
            self._history.tell(f"{key} ends on {run.process.name}{stopped}")

    def _check_start(self, key: str, job: Job, run: Run) -> None:
        fail = self._history.fail
        for other in self._running(job):
            fail(f"{key} runs twice: on {other.process.name} and on {run.process.name}")
        if job.end is not None:
            fail(f"{key} starts after its end was told")
        if job.has_succeeded:
            fail(f"{key} starts after its success was stored")
        if len(job.starts) > len(job.attempts_ended) + job.handed_back:
            fail(f"{key} starts again, and no end or loss of its last attempt was recorded")
        token = int(run.request.env["CELERIAC_TOKEN"])
        if token <= job.token:
            fail(f"{key} starts with token {token} after token {job.token}")
        job.token = token

    def _check_needs(self, key: str, job: Job) -> None:
        for need in job.task.needs:
            other = self._jobs[str(need)]
            if other.is_forgotten and other.has_succeeded:
                continue  # a later result may have taken the place of its success, which is lost
            # Also under a claim that was fenced: its loss may never have been told, because the executor was killed.
            ids = [one.request.id for _, one in other.starts]
            if not any(map(self._history.store.has_success_of, ids)):
                self._history.fail(f"{key} starts, and {need} has not succeeded")

    def _all_running(self) -> list[tuple[Job, Run]]:
        """Return the commands that run, except those that a failover has made run twice, perhaps."""
        jobs = (job for job in self._jobs.values() if not job.is_forgotten)
        return [(job, run) for job in jobs for run in self._running(job)]

    def _running(self, job: Job) -> list[Run]:
        """Return the commands of a job that run, except on a machine that is suspended, or was just now."""
        return [run for run in job.live if not self._is_on_suspended_machine(run)]

    def _is_on_suspended_machine(self, run: Run) -> bool:
        process = run.process
        return process.is_frozen or self._world.now - process.thawed_at < RESUMED_MACHINE

    def attempt_ended(self, task_id: str, result: Result) -> None:
        """Check the result that a worker, which is alive, stores."""
        if (result.reason, result.detail) == STOP_DETAILS[StopReason.WORKER_GONE]:
            self._history.fail(f"the shutdown of a worker costs {task_id}, which was to be handed back")

    # — the executor —

    def published(self, tasks: Sequence[Task], executor: CeleryExecutor) -> None:
        """Check a batch that is about to be sent."""
        head = self._head(executor)
        first_sent = [task for task in tasks if not executor._lifecycle.unconfirmed.get(task.key)]
        if head is not None and any(task.priority < head.priority for task in first_sent):
            self._history.fail(f"{head.key} is more urgent than what is sent, and waits")
        if self._history.has_owners:
            self._history.owners.watch.published(tasks, executor)
        for feature in self._history.features:
            feature.published(tasks, executor)

    def _head(self, executor: CeleryExecutor) -> Task | None:
        """Return the most urgent task that is ready, and that nothing holds back."""
        queue, features = executor._lifecycle.queue, self._history.features
        if not features:
            return queue.head()
        ready = sorted(entry for heap in queue._ready.values() for entry in heap if queue._is_alive(entry))
        tasks = (entry.task for entry in ready)
        return next((task for task in tasks if not any(f.holds_back(task, executor) for f in features)), None)

    def executor_rests(self, executor: CeleryExecutor) -> None:
        self._check_rest()
        parallelism = self._history.parallelism
        if executor.slots_occupied > parallelism:
            self._history.fail(f"{executor.slots_occupied} of {parallelism} slots are occupied")

    def _check_rest(self) -> None:
        second = int(self._world.now)
        self._beats = (second, self._beats[1] + 1 if self._beats[0] == second else 1)
        if self._beats[1] > MAX_BEATS:
            self._history.fail(f"an executor has {self._beats[1]} heartbeats in a second: it does not rest")

    def ledger_written(self, batch: LedgerBatch, drained_after: float) -> None:
        """Take what the ledger has stored. `drained_after` is the number of the executor's last event before a drain"""
        for queued in batch.queued:
            self._jobs[str(queued.task.key)].was_queued = True
        for event in batch.events:
            if event.state is State.WAITING and event.reason is not None:
                self._jobs[str(event.key)].attempts_ended.add(event.number)
                if event.number > drained_after:
                    self._history.fail(f"{event.key} is tried again by an executor that drains")
            if event.reason in (Reason.LOST, Reason.POISON) and event.state in (State.WAITING, State.FAILED):
                self.check_fenced(event)

    def check_fenced(self, event: Event) -> None:
        store = self._history.store
        entry = store.claims._entries.get(event.id)
        if entry is None or entry.holder is None or entry.fenced or event.id in store.ended:
            return
        if self._jobs[str(event.key)].is_forgotten:
            return
        self._history.fail(f"{event.key} is told as lost, and the claim of {event.id} is not fenced")

    def told(self, event: Event) -> None:
        history, job = self._history, self._jobs[str(event.key)]
        history.tell(f"{event.key} is {event.state.value}: {event.reason} {event.detail or ''}")
        for feature in history.features:
            feature.told(job, event)
        if not event.state.is_final:
            return
        if job.end is not None and job.end != event:
            history.fail(f"{event.key} has ended twice: {job.end} and {event}")
        if job.end is None:
            history.job_ended()
        job.end = event
        state = event.state
        if self._running(job) and not job.is_forgotten:
            history.fail(f"{event.key} has ended as {state.value} while its command runs")
        if state is State.SUCCESS and not history.store.has_success_of(event.id):
            history.fail(f"{event.key} has ended as success, and no success of {event.id} was stored")
        if state is not State.SUCCESS and job.has_succeeded and not job.is_forgotten:
            history.fail(f"{event.key} has ended as {state.value} after its success was stored")
        may_be_revoked = history.was_drained or any(feature.may_be_revoked(job) for feature in history.features)
        if state is State.REVOKED and job.revoke_at is None and not may_be_revoked:
            history.fail(f"{event.key} is revoked, and that was not asked for")


class WatchedClaims:
    """The store's claims, and what must hold of them. A claim also stores that the task has started."""

    def __init__(self, history: History) -> None:
        self._history, self._claims = history, history.store.claims
        self._renewed_at: dict[str, float] = {}
        self._kept_at: dict[str, float] = {}
        """The same, without the renewals that a failover has lost."""

        self._times: dict[tuple[str, int | None], float] = {}
        """When each renewal was stored, by its number."""

        self._dead: set[str] = set()
        self._token = 0
        self._granted: set[tuple[str, str]] = set()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method: Callable[..., Any] = getattr(self._claims, name)
        return method

    def claim(self, task_id: str, *, holder: str, delivery: str, **options: Any) -> Any:
        reply = self._claims.claim(task_id, holder=holder, delivery=delivery, **options)
        if not isinstance(reply, Granted):
            return reply
        history = self._history
        if holder in self._dead:
            history.fail(f"a worker that was declared dead has claimed {task_id}")
        if (task_id, delivery) not in self._granted:
            self._granted.add((task_id, delivery))
            if reply.token <= self._token:
                history.fail(f"the claim of {task_id} has token {reply.token} after token {self._token}")
            self._token = reply.token
        history.store.put(task_id, Result(State.RUNNING, execution=Execution(host="simulated")))
        return reply

    def release(self, task_id: str, *, holder: str) -> bool:
        before = self._claims._entries.get(task_id)
        had = before is not None and before.holder == holder
        is_free = self._claims.release(task_id, holder=holder)
        if had and self._claims._entries[task_id].holder is None:
            self._history.handed_back(task_id)
        return is_free

    def renew(self, lease: Lease) -> Renewed | DeclaredDead:
        reply = self._claims.renew(lease)
        if isinstance(reply, Renewed):
            if lease.holder in self._dead:
                self._history.fail("a worker that was declared dead has renewed its lease")
            now = self._history.world.now
            self._renewed_at[lease.holder] = self._kept_at[lease.holder] = now
            self._times[lease.holder, lease.number] = now
        return reply

    def fail_over(self, kept: StoredState) -> None:
        """Take note that a replica has taken the place of the store."""
        self._dead = {holder for holder in self._dead if kept.is_dead(holder)}
        self._token = kept.token - 1
        never = float("-inf")
        for holder in self._kept_at:
            record = kept.leases.get(holder)
            self._kept_at[holder] = never if record is None else self._times.get((holder, record.number), never)

    def end_lease(self, holder: str) -> None:
        """End a lease. From now on it makes no difference whether its worker is declared dead."""
        self._claims.end_lease(holder)
        self._renewed_at.pop(holder, None)
        self._kept_at.pop(holder, None)

    def declare_dead(self, holder: str, heartbeat_count: int | None) -> bool:
        if not self._claims.declare_dead(holder, heartbeat_count):
            return False
        now, never = self._history.world.now, float("-inf")
        renewed_at, kept_at = self._renewed_at.get(holder, never), self._kept_at.get(holder, never)
        silence, shortest = now - kept_at, LEASE_DURATION / CLOCK_ERROR
        if silence < shortest:
            self._history.fail(f"a worker was declared dead {silence:.1f} s after its last renewal")
        if now - renewed_at < shortest:  # its commands may still run
            self._forget_tasks_of(holder)
        store = self._history.store
        since = now - store.outage_ended
        # The request may be from before the outage, and have been on its way since.
        was_silent = store.outage_began - renewed_at >= shortest
        if not was_silent and store.outage_ended - store.outage_began > NOTICED_OUTAGE and since < RENEWED_WITHIN:
            self._history.fail(f"a worker was declared dead {since:.1f} s after an outage of the store")
        self._dead.add(holder)
        return True

    def _forget_tasks_of(self, holder: str) -> None:
        for task_id, entry in self._claims._entries.items():
            if entry.holder == holder:
                self._history.job_of(task_id).is_forgotten = True
