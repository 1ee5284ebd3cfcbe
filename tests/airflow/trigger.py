"""A trigger that fires at once. The triggerer imports it, so it is in no DAG file."""

from __future__ import annotations

from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent


class Soon(BaseTrigger):
    def serialize(self) -> tuple[str, dict[str, Any]]:
        return "tests.airflow.trigger.Soon", {}

    async def run(self) -> Any:
        yield TriggerEvent("now")
