"""Results whose output comes beside them: it must be there before the task ends."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from celeriac.config.executor_config import Config
from celeriac.executor.executor import CeleryExecutor
from celeriac.task.result import Execution, Output, Reason, Result
from celeriac.task.state import State
from celeriac.task.task import Task
from celeriac.testing import HOST, InMemoryBroker


class Outputs:
    """Brings output when the test says so."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.is_here = False
        self.held: set[str] = set()

    def begin(self, task: Task) -> None:
        self.begun.append(str(task.key))

    def complete(self, task: Task, result: Result) -> Result | None:
        if not self.is_here:
            self.held.add(task.message_id)
            return None
        self.held.discard(task.message_id)
        return replace(result, execution=Execution(host=HOST, stdout=Output(size=3, path="here")))

    def lost(self, task: Task, result: Result) -> Result:
        return replace(result, detail=f"{result.detail}; a part of its output is here")

    def is_held(self, message_id: str) -> bool:
        return message_id in self.held


@pytest.fixture
def outputs(broker: InMemoryBroker) -> Outputs:
    broker.outputs = outputs = Outputs()  # type: ignore[attr-defined]
    return outputs


@pytest.fixture
def executor(broker, clock, outputs) -> CeleryExecutor:
    executor = CeleryExecutor(
        Config(parallelism=1), publisher=broker, results=broker, revoker=broker, clock=clock, wall_clock=clock
    )
    executor.queue_command("k", "true", retries=1, retry_delay=0.0)
    executor.heartbeat()
    return executor


def test_a_task_ends_when_its_output_is_there(executor, broker, clock, outputs):
    broker.start("k")
    executor.heartbeat()
    assert outputs.begun == ["k"]
    broker.succeed("k")
    executor.heartbeat()
    assert executor.tasks_in_flight == 1
    outputs.is_here = True
    clock.advance(60)
    executor.heartbeat()
    *_, event = executor.get_event_buffer()
    assert (event.state, event.execution.stdout.path, outputs.begun) == (State.SUCCESS, "here", ["k"])


def test_the_output_of_a_lost_attempt_is_named(executor, broker, outputs):
    broker.put(broker.message("k").message_id, Result(State.FAILED, Reason.LOST, "its worker is gone"))
    outputs.is_here = True
    executor.heartbeat()
    assert executor.get_event_buffer()[-1].detail == "its worker is gone; a part of its output is here"


def test_a_late_start_of_a_running_task_asks_for_no_output(executor, broker, outputs):
    outputs.is_here = True
    broker.succeed("k")
    executor.heartbeat()
    broker.start("k")
    executor.heartbeat()
    assert (outputs.begun, executor.tasks_in_flight) == ([], 0)
