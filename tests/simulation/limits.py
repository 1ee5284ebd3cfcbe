"""Limits of keys and rates over all executors, with their places in the store of the claims.

No more commands of a key run at once than its limit says, and no window has more starts than its rate. A start counts
from the moment in which its worker has taken the place.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar

from msgspec.structs import replace

from celeriac.backend.claims.places import TakeReply
from celeriac.cluster.shared_places import SharedPlaces
from celeriac.config.rate import parse_rate
from celeriac.executor.executor import CeleryExecutor
from celeriac.executor.limit import PlaceRequest
from celeriac.executor.limits import Limits
from celeriac.task.task import Task
from celeriac.worker.lease_manager import CLAIM_VALIDITY
from tests.simulation.features import Feature
from tests.simulation.jobs import Job
from tests.simulation.network import Remote
from tests.simulation.places import MemoryPlaces
from tests.simulation.supervisor import Run
from tests.simulation.world import EPOCH

if TYPE_CHECKING:
    from tests.simulation.history import History

KEYS = ("a", "b")
NUMBERS = (1, 1, 2, 3)
KEY_RATES = ("1/s", "2/m", "5/m")
QUEUE_RATES = ("2/s", "4/m", "12/m")
OPERATION_TIMEOUT = 2.0  # seconds
MAX_START_DELAY = CLAIM_VALIDITY * 1.03  # seconds from the last reply about a place until the start of its command


class SharedLimits(Feature):
    """The limits of one history."""

    points: ClassVar = {"place reserve": 4, "place renew": 2, "place take": 4, "place leave": 4}

    def __init__(self, history: History, random: Random) -> None:
        super().__init__(history, random)
        numbers = {key: random.choice(NUMBERS) for key in KEYS}
        key_rates = {key: random.choice(KEY_RATES) for key in KEYS if random.random() < 0.3}
        queue_rates = {"default": random.choice(QUEUE_RATES)} if random.random() < 0.3 else {}
        self._settings = {
            "concurrency_limits": numbers,
            "concurrency_rates": key_rates,
            "queue_rates": queue_rates,
        }
        self._numbers = numbers
        self._rates = {f"key-rate:{key}": parse_rate("rate", text) for key, text in key_rates.items()}
        self._rates |= {f"queue-rate:{queue}": parse_rate("rate", text) for queue, text in queue_rates.items()}
        places = MemoryPlaces(history.store.claims, lambda: EPOCH + history.world.now)
        self._watched = WatchedPlaces(history, places)
        self._remote = Remote(history.network, history.store, self._watched, ("holders",), kind="place ")
        self._starts: dict[str, list[float]] = {name: [] for name in self._rates}
        """When the places of the starts were taken, by rate."""

    def changed(self, task: Task, random: Random) -> Task:
        return replace(task, concurrency_key=random.choice((*KEYS, None)))

    def settings(self) -> dict[str, Any]:
        return self._settings

    def places_of_executor(self) -> SharedPlaces:
        return SharedPlaces(self._remote, timeout=OPERATION_TIMEOUT)

    def places_of_worker(self) -> Remote:
        return self._remote

    def holds_back(self, task: Task, executor: CeleryExecutor) -> bool:
        limits = executor._lifecycle.limits
        assert isinstance(limits, Limits)
        was_refused = any(limit.name in limits._full for limit in limits.of(task))  # maybe some seconds ago
        return was_refused or limits.full_limit(task, executor._clock()) is not None

    def started(self, job: Job, run: Run, running: Sequence[tuple[Job, Run]]) -> None:
        history, key = self.history, job.task.concurrency_key
        if key is not None:
            number = sum(other.task.concurrency_key == key for other, _ in running)
            if number > self._numbers[key]:
                history.fail(f"{number} commands of key {key} run, and its limit is {self._numbers[key]}")
        names = [name for name in (f"key-rate:{key}", f"queue-rate:{job.task.queue}") if name in self._rates]
        if key is None and not names:
            return
        taken_at = self._watched.taken_at(run.request.id)
        if history.world.now - taken_at > MAX_START_DELAY:
            history.fail(f"{job.task.key} starts {history.world.now - taken_at:.1f} s after its place was taken")
        for name in names:
            self._check_rate(name, taken_at)

    def _check_rate(self, name: str, taken_at: float) -> None:
        (number, period), starts = self._rates[name], self._starts[name]
        starts.append(taken_at)
        starts.sort()
        for first, last in zip(starts, starts[number:], strict=False):
            if last - first < period - 1e-6:
                self.history.fail(f"{number + 1} starts of {name} within {last - first:.3f} s, and {number} may be")


class WatchedPlaces:
    """The places, with when they were taken."""

    def __init__(self, history: History, places: MemoryPlaces) -> None:
        self._history, self._places = history, places
        self._taken: dict[tuple[str, str], float] = {}
        """When each delivery of a task was last told that it has its places. A place is taken under the number of the
        process and the delivery of the claim."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._places, name)

    def take(self, request: PlaceRequest, *, holder: str, delivery: str) -> TakeReply:
        reply = self._places.take(request, holder=holder, delivery=delivery)
        if reply is TakeReply.TAKEN:
            self._taken[request.id, delivery.partition(".")[2]] = self._history.world.now
        return reply

    def taken_at(self, task_id: str) -> float:
        """Return when the places were taken for the delivery that has claimed a task."""
        delivery = self._history.store.claims._entries[task_id].delivery
        taken = self._taken.get((task_id, delivery or ""))
        if taken is None:
            self._history.fail(f"{task_id} starts, and has taken no place")
        return taken
