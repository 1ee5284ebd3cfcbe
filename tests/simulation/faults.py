"""The kinds of faults. Each causes one in a history, and returns what it did; None if there was nothing to hit."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from celeriac.worker.shutdown_steps import Request
from tests.simulation.worker import SimulatedWorker

if TYPE_CHECKING:
    from tests.simulation.history import History


def alive(history: History) -> list[SimulatedWorker]:
    return [worker for worker in history.workers if worker.process.is_alive]


def later(history: History, seconds: float, action: Callable[[], object]) -> None:
    history.world.at(history.world.now + seconds, lambda _: action())


def kill_worker(history: History) -> str | None:
    if not (workers := alive(history)):
        return None
    worker = history.world.random.choice(workers)
    worker.process.kill()
    later(history, history.world.random.uniform(0, 20), history.start_worker)
    return f"{worker.name} is killed"


def kill_supervisor(history: History) -> str | None:
    running = [worker for worker in alive(history) if worker.supervisor_process is not None]
    if not running:
        return None
    worker = history.world.random.choice(running)
    assert worker.supervisor_process is not None
    worker.supervisor_process.kill()
    return f"the supervisor of {worker.name} is killed"


def freeze_worker(history: History) -> str | None:
    """Freeze a worker and not its supervisor, as SIGSTOP does."""
    if not (workers := alive(history)):
        return None
    worker, seconds = history.world.random.choice(workers), history.world.random.uniform(0.5, 60)
    worker.process.freeze()
    later(history, seconds, worker.process.thaw)
    return f"{worker.name} is frozen for {seconds:.1f} s"


def suspend_machine(history: History) -> str | None:
    """Freeze a worker with its supervisor and commands, as a virtual machine that is suspended."""
    if not (workers := alive(history)):
        return None
    worker, seconds = history.world.random.choice(workers), history.world.random.uniform(0.5, 60)
    worker.freeze_machine()
    later(history, seconds, worker.thaw)
    return f"the machine of {worker.name} is suspended for {seconds:.1f} s"


def terminate_worker(history: History) -> str | None:
    if not (workers := alive(history)):
        return None
    worker = history.world.random.choice(workers)
    request = history.world.random.choice(list(Request))
    worker.terminate(request)
    later(history, history.world.random.uniform(0, 20), history.start_worker)
    return f"{worker.name} is asked to shut down: {request.name}"


def kill_scheduler(history: History) -> str | None:
    living = [scheduler for scheduler in history.schedulers if scheduler.process.is_alive]
    for scheduler in living:
        scheduler.process.kill()
    later(history, history.world.random.uniform(0, 20), history.start_scheduler)
    return f"{', '.join(scheduler.name for scheduler in living) or 'no executor'} is killed"


def freeze_scheduler(history: History) -> str | None:
    """Freeze an executor, and let another one take over, perhaps."""
    living = [scheduler for scheduler in history.schedulers if scheduler.process.is_alive]
    if not living:
        return None
    random = history.world.random
    scheduler, seconds = random.choice(living), random.uniform(0.5, 60)
    scheduler.process.freeze()
    later(history, seconds, scheduler.process.thaw)
    if random.random() < 0.5:
        later(history, random.uniform(0, seconds), history.start_scheduler)
    return f"{scheduler.name} is frozen for {seconds:.1f} s"


def stop_server(history: History) -> str:
    random = history.world.random
    server, seconds = random.choice((history.broker, history.store, history.ledger_server)), random.uniform(0.1, 40)
    how = random.choice(("is_up", "is_hung", "refuses_writes"))
    setattr(server, how, how != "is_up")
    later(history, seconds, lambda: setattr(server, how, how == "is_up"))
    words = {"is_up": "is down", "is_hung": "hangs", "refuses_writes": "refuses writes"}[how]
    return f"the {server.name} {words} for {seconds:.1f} s"


def cut_link(history: History) -> str:
    random = history.world.random
    processes = [process for process in history.processes if process.is_alive]
    server, seconds = random.choice((history.broker, history.store)), random.uniform(0.5, 40)
    if not processes:
        return "no process is left"
    process = random.choice(processes)
    link = (process.name, server.name)
    history.network.cut.add(link)
    if server is history.broker:
        history.broker.connection_ended(process)
    later(history, seconds, lambda: history.network.cut.discard(link))
    return f"{process.name} cannot reach the {server.name} for {seconds:.1f} s"


def lose_packets(history: History) -> str:
    random = history.world.random
    history.network.loss, seconds = random.uniform(0.01, 0.3), random.uniform(1, 40)
    later(history, seconds, lambda: setattr(history.network, "loss", 0.0))
    return f"a part of all requests is lost for {seconds:.1f} s"


def slow_down(history: History) -> str:
    random = history.world.random
    history.network.slowness, seconds = random.uniform(10, 500), random.uniform(1, 40)
    later(history, seconds, lambda: setattr(history.network, "slowness", 1.0))
    return f"the network is slow for {seconds:.1f} s"


FAULTS = (
    kill_worker,
    kill_supervisor,
    freeze_worker,
    suspend_machine,
    terminate_worker,
    kill_scheduler,
    freeze_scheduler,
    stop_server,
    cut_link,
    lose_packets,
    slow_down,
)
