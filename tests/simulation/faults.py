"""The kinds of faults. Each causes one in a history, and returns what it did; None if there was nothing to hit."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from celeriac.worker.shutdown_steps import Request
from tests.simulation.network import Server, Strike
from tests.simulation.primitives import sleep
from tests.simulation.worker import SimulatedWorker
from tests.simulation.world import Process

if TYPE_CHECKING:
    from tests.simulation.history import History

LONGEST_DELAY = 20.0  # seconds that a request takes longer


def alive(history: History) -> list[SimulatedWorker]:
    return [worker for worker in history.workers if worker.process.is_alive]


def later(history: History, seconds: float, action: Callable[[], object]) -> None:
    history.world.at(history.world.now + seconds, lambda _: action())


def pause(random: Random) -> float:
    """Return for how many seconds something stands still: often about as long as a lease lasts."""
    return random.uniform(0.5, 60) if random.random() < 0.5 else random.uniform(3, 16)


def kill_worker(history: History) -> str | None:
    if not (workers := alive(history)):
        return None
    worker = history.chance.choice(workers)
    worker.process.kill()
    later(history, history.chance.uniform(0, 20), history.start_worker)
    return f"{worker.name} is killed"


def kill_supervisor(history: History) -> str | None:
    running = [worker for worker in alive(history) if worker.supervisor_process is not None]
    if not running:
        return None
    worker = history.chance.choice(running)
    assert worker.supervisor_process is not None
    worker.supervisor_process.kill()
    return f"the supervisor of {worker.name} is killed"


def freeze_worker(history: History) -> str | None:
    """Freeze a worker and not its supervisor, as SIGSTOP does."""
    if not (workers := alive(history)):
        return None
    worker, seconds = history.chance.choice(workers), pause(history.chance)
    worker.process.freeze()
    later(history, seconds, worker.process.thaw)
    return f"{worker.name} is frozen for {seconds:.1f} s"


def suspend_machine(history: History) -> str | None:
    """Freeze a worker with its supervisor and commands, as a virtual machine that is suspended."""
    if not (workers := alive(history)):
        return None
    worker, seconds = history.chance.choice(workers), pause(history.chance)
    worker.freeze_machine()
    later(history, seconds, worker.thaw)
    return f"the machine of {worker.name} is suspended for {seconds:.1f} s"


def terminate_worker(history: History) -> str | None:
    if not (workers := alive(history)):
        return None
    worker = history.chance.choice(workers)
    request = history.chance.choice((*Request, Request.QUIT))
    worker.terminate(request)
    later(history, history.chance.uniform(0, 20), history.start_worker)
    return f"{worker.name} is asked to shut down: {request.name}"


def kill_scheduler(history: History) -> str | None:
    living = [scheduler for scheduler in history.schedulers if scheduler.process.is_alive]
    for scheduler in living:
        scheduler.process.kill()
    later(history, history.chance.uniform(0, 20), history.start_scheduler)
    return f"{', '.join(scheduler.name for scheduler in living) or 'no executor'} is killed"


def freeze_scheduler(history: History) -> str | None:
    """Freeze an executor, and let another one take over, perhaps."""
    living = [scheduler for scheduler in history.schedulers if scheduler.process.is_alive]
    if not living:
        return None
    random = history.chance
    scheduler, seconds = random.choice(living), pause(random)
    scheduler.process.freeze()
    later(history, seconds, scheduler.process.thaw)
    if random.random() < 0.5:
        later(history, random.uniform(0, seconds), history.start_scheduler)
    return f"{scheduler.name} is frozen for {seconds:.1f} s"


def stop_server(history: History) -> str:
    random = history.chance
    server, seconds = random.choice((history.broker, history.store, history.ledger_server)), pause(random)
    how = random.choice(("is_up", "is_hung", "refuses_writes"))
    setattr(server, how, how != "is_up")
    later(history, seconds, lambda: setattr(server, how, how == "is_up"))
    words = {"is_up": "is down", "is_hung": "hangs", "refuses_writes": "refuses writes"}[how]
    return f"the {server.name} {words} for {seconds:.1f} s"


def cut_link(history: History) -> str:
    random = history.chance
    processes = [process for process in history.processes if process.is_alive]
    if not processes:
        return "no process is left"
    process, server = random.choice(processes), random.choice((history.broker, history.store))
    return f"{process.name}: {cut_off(history, process, server)}"


def cut_off(history: History, process: Process, server: Server) -> str:
    seconds = pause(history.chance)
    link = (process.name, server.name)
    history.network.cut.add(link)
    if server is history.broker:
        history.broker.connection_ended(process)
    later(history, seconds, lambda: history.network.cut.discard(link))
    return f"it cannot reach the {server.name} for {seconds:.1f} s"


def lose_packets(history: History) -> str:
    random = history.chance
    history.network.loss, seconds = random.uniform(0.01, 0.3), random.uniform(1, 40)
    later(history, seconds, lambda: setattr(history.network, "loss", 0.0))
    return f"a part of all requests is lost for {seconds:.1f} s"


def slow_down(history: History) -> str:
    random = history.chance
    history.network.slowness, seconds = random.uniform(10, 500), random.uniform(1, 40)
    later(history, seconds, lambda: setattr(history.network, "slowness", 1.0))
    return f"the network is slow for {seconds:.1f} s"


def drain_scheduler(history: History) -> str | None:
    """Let an executor drain, or end all of its tasks, and start another one."""
    random = history.chance
    living = [scheduler for scheduler in history.schedulers if scheduler.process.is_alive and scheduler.executor]
    if not living:
        return None
    scheduler, how = random.choice(living), random.choice(("drain", "cancel_unstarted", "terminate"))
    scheduler.ask_to_end(how)
    later(history, random.uniform(0, 20), history.keep_scheduler)
    return f"{scheduler.name} is asked to end: {how}"


# — faults in the middle of a request —


def strike(history: History) -> str:
    """Wait for the next request of a kind. The fault that it meets is told, and counted, then."""
    random = history.chance
    action = random.choice(STRIKES)
    points = POINTS if not history.has_owners else POINTS | OWNER_POINTS
    points = points | {point: number for feature in history.features for point, number in feature.points.items()}
    point = random.choices(list(points), list(points.values()))[0]
    is_after = action is double or random.random() < 0.5

    def act(process: Process, server: Server) -> str:
        history.chance = random
        if history.has_owners:
            history.owners.hinder(None, LONGEST_DELAY)
        return action(history, process, server)

    history.network.strikes.append(Strike(point, is_after, act, action is double, action is lose))
    return f"the next {point} will meet a fault"


def kill(history: History, process: Process, server: Server) -> str:
    if history.has_owners and process is history.owners.client:
        return freeze(history, process, server)  # a task may be endless until this client cancels it
    process.kill()
    is_worker = process in history.worker_of
    later(history, history.chance.uniform(0, 20), history.start_worker if is_worker else history.keep_scheduler)
    return "it is killed"


def freeze(history: History, process: Process, server: Server) -> str:
    random = history.chance
    seconds = pause(random)
    worker = history.worker_of.get(process)
    if worker is not None and random.random() < 0.5:
        worker.freeze_machine()
        later(history, seconds, worker.thaw)
        return f"its machine is suspended for {seconds:.1f} s"
    process.freeze()
    later(history, seconds, process.thaw)
    return f"it is frozen for {seconds:.1f} s"


def delay(history: History, process: Process, server: Server) -> str:
    seconds = history.chance.uniform(0.5, LONGEST_DELAY)
    sleep(seconds)
    return f"it took {seconds:.1f} s longer"


def cut(history: History, process: Process, server: Server) -> str:
    return cut_off(history, process, server)


def stop(history: History, process: Process, server: Server) -> str:
    seconds = pause(history.chance)
    server.is_up = False
    later(history, seconds, lambda: setattr(server, "is_up", True))
    return f"the {server.name} is down for {seconds:.1f} s"


def double(history: History, process: Process, server: Server) -> str:
    return "it comes twice"


def lose(history: History, process: Process, server: Server) -> str:
    return "it gets no reply"


def revive(history: History, process: Process, server: Server) -> str:
    """Let all that stood still go on, just when a decision about it is under way."""
    history.network.cut.clear()
    for worker in history.workers:
        worker.thaw()
    for scheduler in history.schedulers:
        scheduler.process.thaw()
    sleep(history.chance.uniform(0.1, 5))
    return "all that was frozen or cut off goes on"


STRIKES = (kill, freeze, delay, cut, stop, double, lose, revive)
POINTS = {
    "publish": 3,
    "take": 1,
    "record": 1,
    "acknowledge": 1,
    "put back": 1,
    "store result": 2,
    "fetch": 1,
    "delete": 1,
    "claim": 4,
    "renew": 2,
    "release": 4,
    "broadcast": 2,
    "cancel": 2,
    "read": 1,
    "leases": 1,
    "fence": 2,
    "declare_dead": 2,
    "ledger": 4,
}
"""The requests that a fault may hit, with how often each is chosen."""

OWNER_POINTS = {
    "ledger": 6,
    "look up": 3,
    "transaction": 4,
    "take run": 4,
    "acknowledge request": 2,
    "give up": 1,
}
"""The same, of those that several `serve` make to their ledger."""


FAULTS = (
    kill_worker,
    kill_supervisor,
    freeze_worker,
    suspend_machine,
    terminate_worker,
    terminate_worker,
    kill_scheduler,
    freeze_scheduler,
    stop_server,
    cut_link,
    lose_packets,
    slow_down,
    drain_scheduler,
)
