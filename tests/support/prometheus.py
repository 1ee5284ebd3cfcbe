"""A real Prometheus, in front of the processes of a test. It reads them four times a second."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from tests.support.cli_runner import until
from tests.support.servers import Server, program

RULES = Path(__file__).parents[2] / "deploy" / "prometheus" / "alerts.yaml"
DURATION = re.compile(r"^( *for: )\S+$", re.MULTILINE)
TIMEOUT = 90.0  # seconds for an alert on a slow and busy machine


class PrometheusServer(Server):
    """Prometheus with our alert rules. In its copy of them, each condition must hold for 1 s instead of minutes."""

    def __init__(self, targets: Mapping[str, str]) -> None:
        """Read these addresses, by the names of their jobs."""
        self._targets = targets
        super().__init__()

    def value(self, query: str) -> float | None:
        """Return the only value of a query; None if it has none now."""
        found = self._get("query", query=query)["result"]
        if not found:
            return None
        (only,) = found
        return float(only["value"][1])

    def wait_for(self, query: str, value: float) -> None:
        until(lambda: self.value(query) == value, f"{query} == {value:g}", TIMEOUT)

    def firing(self) -> set[tuple[str, str]]:
        """Return the alerts that fire, each with its queue, or else its job."""
        alerts = [alert for alert in self._get("alerts")["alerts"] if alert["state"] == "firing"]
        return {(a["labels"]["alertname"], a["labels"].get("queue") or a["labels"].get("job", "")) for a in alerts}

    def wait_for_alerts(self, *alerts: tuple[str, str]) -> None:
        for alert in alerts:
            until(lambda alert=alert: alert in self.firing(), f"the alert {alert}", TIMEOUT)  # type: ignore[misc]

    def _get(self, path: str, **parameters: str) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=30).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def _prepare(self) -> None:
        self.url = f"http://127.0.0.1:{self.port}"
        (self.folder / "alerts.yaml").write_text(DURATION.sub(r"\g<1>1s", RULES.read_text()))
        jobs = [
            {"job_name": name, "static_configs": [{"targets": [address.removeprefix("http://")]}]}
            for name, address in self._targets.items()
        ]
        config = {
            "global": {"scrape_interval": "250ms", "scrape_timeout": "250ms", "evaluation_interval": "250ms"},
            "rule_files": [str(self.folder / "alerts.yaml")],
            "scrape_configs": jobs,
        }
        (self.folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML, too

    def _command(self) -> list[str]:
        return [
            program("prometheus"),
            f"--config.file={self.folder}/prometheus.yml",
            f"--storage.tsdb.path={self.folder}/data",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--log.level=warn",
        ]

    def _is_up(self) -> bool:
        try:
            return httpx.get(f"{self.url}/-/ready", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False
