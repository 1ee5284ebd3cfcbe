"""A trigger that fires at once, and its task. The triggerer imports it here, because it cannot import a DAG file."""

from __future__ import annotations

from typing import Any

from airflow.sdk import BaseOperator
from airflow.triggers.base import BaseTrigger, TriggerEvent

from tests.airflow.start_log import record, try_name


class FiresAtOnce(BaseTrigger):
    def serialize(self) -> tuple[str, dict[str, Any]]:
        return "tests.airflow.trigger.FiresAtOnce", {}

    async def run(self) -> Any:
        yield TriggerEvent("now")


class Deferred(BaseOperator):
    def execute(self, context: Any) -> None:
        record(context["run_id"], f"{try_name(context)}.before")
        self.defer(trigger=FiresAtOnce(), method_name="resume")

    def resume(self, context: Any, event: Any) -> None:
        record(context["run_id"], f"{try_name(context)}.after")
