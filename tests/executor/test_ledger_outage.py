"""An executor whose ledger cannot be written for a while."""

from __future__ import annotations

from celeriac.config.executor_config import Config
from celeriac.errors import LedgerUnavailable
from celeriac.executor.executor import CeleryExecutor
from celeriac.executor.interfaces import LedgerBatch
from celeriac.ledger.memory import MemoryLedger


class FailingLedger(MemoryLedger):
    is_available = False

    def write(self, batch: LedgerBatch) -> None:
        if not self.is_available:
            raise LedgerUnavailable("ledger.db", "cannot be written")
        super().write(batch)


def test_an_executor_rests_until_it_may_try_to_write_again(broker, clock):
    ledger = FailingLedger()
    executor = CeleryExecutor(
        Config(parallelism=1),
        publisher=broker,
        results=broker,
        revoker=broker,
        ledger=ledger,
        clock=clock,
        wall_clock=clock,
    )
    executor.queue_command("k", "true")
    for _ in range(3):
        before = clock.now
        executor.heartbeat()
        executor.wait(60.0)
        assert clock.now > before
    assert broker.messages == []
    ledger.is_available = True
    for _ in range(2):
        executor.heartbeat()
        executor.wait(60.0)
    assert [task.key for task in broker.messages] == ["k"]
