"""The kinds of faults of histories in which several `serve` share a ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.faults import (
    cut_link,
    cut_off,
    freeze_worker,
    kill_supervisor,
    kill_worker,
    later,
    lose_packets,
    pause,
    slow_down,
    stop_server,
    suspend_machine,
    terminate_worker,
)

if TYPE_CHECKING:
    from tests.simulation.history import History
    from tests.simulation.owners import SimulatedServe
    from tests.simulation.scheduler import SimulatedScheduler

LONGEST_STEP = 60.0  # seconds


def living(history: History) -> list[SimulatedScheduler | SimulatedServe]:
    return [scheduler for scheduler in history.schedulers if scheduler.process.is_alive]


def kill_owner(history: History) -> str | None:
    if not (owners := living(history)):
        return None
    owner = history.chance.choice(owners)
    owner.process.kill()
    later(history, history.chance.uniform(0, 20), history.start_scheduler)
    return f"{owner.name} is killed"


def freeze_owner(history: History) -> str | None:
    if not (owners := living(history)):
        return None
    owner, seconds = history.chance.choice(owners), pause(history.chance)
    owner.process.freeze()
    later(history, seconds, owner.process.thaw)
    return f"{owner.name} is frozen for {seconds:.1f} s"


def end_owner(history: History) -> str | None:
    """Ask an owner to end, as TERM does."""
    if not (owners := living(history)):
        return None
    owner = history.chance.choice(owners)
    owner.ask_to_end("drain")
    later(history, history.chance.uniform(0, 20), history.start_scheduler)
    return f"{owner.name} gets TERM"


def cut_owner(history: History) -> str | None:
    """Cut an owner off from the ledger alone: it still sends tasks, and reads their results."""
    if not (owners := living(history)):
        return None
    owner = history.chance.choice(owners)
    return f"{owner.name}: {cut_off(history, owner.process, history.ledger_server)}"


def step_clock(history: History) -> str | None:
    """Let the clock jump that leases are measured by. That of a file is the clock of its processes, too: it does not
    jump where these may be wrong by less."""
    if history.owners.server.kind == "file" and history.clock_error < LONGEST_STEP:
        return None
    seconds = history.chance.choice((-1.0, 1.0)) * history.chance.uniform(0.5, LONGEST_STEP)
    history.owners.step_clock(seconds)
    return f"the clock of the ledger jumps by {seconds:.1f} s"


def stop_ledger(history: History) -> str:
    seconds = pause(history.chance)
    server = history.ledger_server
    server.is_up = False
    later(history, seconds, lambda: setattr(server, "is_up", True))
    return f"the ledger is down for {seconds:.1f} s"


OWNER_FAULTS = (
    kill_worker,
    kill_supervisor,
    freeze_worker,
    suspend_machine,
    terminate_worker,
    kill_owner,
    kill_owner,
    freeze_owner,
    freeze_owner,
    end_owner,
    stop_server,
    stop_ledger,
    cut_owner,
    cut_link,
    lose_packets,
    slow_down,
    step_clock,
)
