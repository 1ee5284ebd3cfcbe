"""The REST interface against its own description: schemathesis calls each endpoint with valid and with odd values."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from celeriac.json_types import schema_of
from celeriac.web.api.endpoint import NoQuery
from celeriac.web.api.openapi import openapi_document
from celeriac.web.api.routes import all_endpoints
from celeriac.web.poller import Poller
from tests.support.cli_runner import jobs, run
from tests.support.long import LONG
from tests.support.web_host import web_server

EXAMPLES = 200 if LONG else 5  # for each endpoint
CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
)


KNOWN = {"run": "jobs", "key": "k1", "worker": "w1"}


def calls() -> Iterator[Any]:
    """Yield each endpoint that ends, with valid values, and with wrong ones where it has any."""
    for endpoint in all_endpoints(Poller()):
        if endpoint.name == "changes":
            continue
        yield endpoint.name, GenerationMode.POSITIVE
        if endpoint.body is not None or endpoint.query is not NoQuery:
            yield endpoint.name, GenerationMode.NEGATIVE


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("openapi")
    file = jobs(folder, *({"key": f"k{n}", "command": "true"} for n in range(10)))
    assert run("submit", file, "--ledger", "ledger.db", cwd=folder).status == 0
    with web_server(folder, "--ledger", "ledger.db") as (url, _):
        yield url


@pytest.fixture(scope="module")
def description(url):
    return schemathesis.openapi.from_url(f"{url}/api/v1/openapi.json")


@pytest.mark.parametrize(("name", "mode"), [*calls()])
def test_each_endpoint_answers_as_described(description, name, mode):
    operation = description.find_operation_by_id(name)

    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    @hypothesis.settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=not LONG,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def call(case):
        case.call_and_validate(checks=CHECKS)
        if case.path_parameters:
            case.path_parameters = {part: KNOWN[part] for part in case.path_parameters}
            case.call_and_validate(checks=CHECKS)

    call()


def test_the_objects_are_those_of_the_command_line():
    document = openapi_document(all_endpoints(Poller()))
    schemas = document["components"]["schemas"]
    for name, title in (("show", "Task"), ("runs", "Run"), ("status", "Queue"), ("explain", "ExplainOutput")):
        own = schema_of(name)["$defs"][title]
        assert json.loads(json.dumps(schemas[title]).replace("#/components/schemas/", "#/$defs/")) == own
