"""A trigger that fires at once. The triggerer imports it from here, because it cannot import a DAG file."""

from __future__ import annotations

from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent


class FiresAtOnce(BaseTrigger):
    def serialize(self) -> tuple[str, dict[str, Any]]:
        return "tests.airflow.trigger.FiresAtOnce", {}

    async def run(self) -> Any:
        yield TriggerEvent("now")
