"""A real Prometheus reads a service and a worker, and its alerts fire."""

from __future__ import annotations

import json
import math
import re
from contextlib import ExitStack, closing
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.cli_runner import until
from tests.support.prometheus import PrometheusServer
from tests.support.service_host import WAIT_FOR_GO, submit
from tests.support.web_host import READER, bearer, client_of, token_file, web_server

KEDA = Path(__file__).parents[2] / "deploy" / "keda.yaml"


@pytest.fixture
def ledger(tmp_path):
    return str(tmp_path / "ledger.db")


def keda_query(queue):
    """Return the query of our recipe for autoscaling, for another queue."""
    (query,) = re.findall(r"query: >-\n((?: {10}.*\n)+)", KEDA.read_text())
    return " ".join(query.split()).replace("default", queue)


def test_its_alerts_fire_when_a_worker_is_killed_and_when_a_queue_is_unserved(shared_redis, tmp_path, ledger):
    (tmp_path / "worker").mkdir()
    broker = ("--broker", shared_redis.url)
    with (
        web_server(tmp_path, *broker, "--ledger", ledger, command="serve") as (service_url, _),
        web_server(tmp_path / "worker", *broker, "--queues", "gpu", command="worker") as (worker_url, worker),
        closing(PrometheusServer({"celeriac-serve": service_url, "celeriac-worker": worker_url})) as prometheus,
    ):
        prometheus.wait_for('celeriac_workers{state="live"}', 1)
        assert prometheus.value(keda_query("gpu")) == 0
        submit(tmp_path, ledger, {"key": "a", "command": WAIT_FOR_GO, "queue": "gpu"})
        prometheus.wait_for('celeriac_tasks_running{queue="gpu"}', 1)
        prometheus.wait_for("celeriac_worker_running", 1)
        prometheus.wait_for(keda_query("gpu"), 1)
        assert prometheus.firing() == set()

        submit(tmp_path, ledger, {"key": "b", "command": "true", "queue": "unserved"}, name="more")
        prometheus.wait_for_alerts(("CeleriacQueueUnserved", "unserved"))
        prometheus.wait_for('celeriac_tasks_waiting{queue="unserved"}', 1)
        assert prometheus.firing() == {("CeleriacQueueUnserved", "unserved")}

        worker.kill()
        prometheus.wait_for_alerts(
            ("CeleriacDown", "celeriac-worker"),
            ("CeleriacWorkersSuspected", ""),
            ("CeleriacWorkersDied", ""),
            ("CeleriacTasksLost", "gpu"),
            ("CeleriacQueueUnserved", "gpu"),
        )
        assert prometheus.value('celeriac_tasks_lost_total{queue="gpu"}') == 1


def samples_of(url, accept="text/plain"):
    answer = httpx.get(f"{url}/metrics", headers={"accept": accept})
    assert answer.status_code == 200
    return answer.headers["content-type"], {
        (sample.name, json.dumps(sample.labels, sort_keys=True)): sample.value
        for family in text_string_to_metric_families(answer.text.replace("# EOF", ""))
        for sample in family.samples
    }


def test_a_service_without_a_broker_shows_its_metrics(tmp_path, ledger):
    with web_server(tmp_path, "--ledger", ledger, "--local", command="serve") as (url, _):
        submit(
            tmp_path, ledger, {"key": "a", "command": "true", "queue": 'say "hi"\\'}, {"key": "b", "command": "false"}
        )

        def ends():
            return {
                (json.loads(labels)["queue"], json.loads(labels)["state"]): value
                for (name, labels), value in samples_of(url)[1].items()
                if name == "celeriac_task_ends_total"
            }

        until(lambda: len(ends()) == 2, "the ends of the tasks")
        assert ends() == {('say "hi"\\', "success"): 1, ("default", "failed"): 1}
        content_type, samples = samples_of(url)
        assert content_type.startswith("text/plain; version=0.0.4")
        assert math.isfinite(samples["process_resident_memory_bytes", "{}"])
        assert samples_of(url, "application/openmetrics-text; version=1.0.0")[0].startswith(
            "application/openmetrics-text"
        )


def test_the_metrics_need_a_token_where_all_else_does(tmp_path, ledger):
    env = {"CELERIAC_WEB_TOKEN_FILE": token_file(tmp_path)}
    options = ("--ledger", ledger, "--local")
    with (
        web_server(tmp_path, *options, listen="0.0.0.0:0", env=env, command="serve") as (url, _),
        client_of(url) as client,
    ):
        assert client.get("/metrics").status_code == 401
        assert client.get("/metrics", headers=bearer(READER)).status_code == 200


def test_a_web_server_counts_its_answers_by_route_and_its_viewers(tmp_path, ledger):
    submit(tmp_path, ledger, {"key": "secret-key", "command": "true"})
    with web_server(tmp_path, "--ledger", ledger) as (url, _), ExitStack() as stack:
        assert httpx.get(f"{url}/metrics").status_code == 200
        assert samples_of(url)[1][("celeriac_web_viewers", "{}")] == 0
        viewers = [
            stack.enter_context(httpx.stream("GET", f"{url}/live/runs?notice={viewer}", timeout=30)).iter_lines()
            for viewer in ("a", "b")
        ]
        assert all("event: page" in lines for lines in viewers)
        for path in ("/api/v1/runs/secret-run", "/task?run=jobs&key=secret-key", "/secret", "/static/page.css"):
            httpx.get(url + path)
        httpx.get(url, headers={"host": "secret.example"})
        _, samples = samples_of(url)
        assert samples[("celeriac_web_viewers", "{}")] == 2
        assert samples[("celeriac_web_topics", "{}")] == 1
        assert samples[("celeriac_web_poll_seconds", "{}")] > 0
        assert samples[("celeriac_web_poll_age_seconds", "{}")] >= 0
        counts = {
            tuple(json.loads(labels).values()): value
            for (name, labels), value in samples.items()
            if name == "celeriac_web_requests_total"
        }
        assert counts == {
            ("/metrics", "2xx"): 2,
            ("/live/runs", "2xx"): 2,
            ("/api/v1/runs/{run}", "4xx"): 1,
            ("/task", "2xx"): 1,
            ("/static/{name:path}", "2xx"): 1,
            ("other", "4xx"): 2,
        }
        number = samples[("celeriac_web_request_seconds_count", json.dumps({"route": "/live/runs"}))]
        assert number == 2
        assert "secret" not in httpx.get(f"{url}/metrics").text
