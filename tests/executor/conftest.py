"""The parts of an executor that stand in for servers and time, one of each for a test."""

from __future__ import annotations

import pytest

from celeriac.testing import InMemoryBroker, InMemoryControlChannel, ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def broker(clock: ManualClock) -> InMemoryBroker:
    return InMemoryBroker(clock)


@pytest.fixture
def channel() -> InMemoryControlChannel:
    return InMemoryControlChannel()
