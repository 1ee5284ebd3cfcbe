"""The OpenAPI document, drawn from the endpoints and their types."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from celeriac import __version__
from celeriac.json_types import allow_unknown_fields
from celeriac.json_types.runs import Error
from celeriac.web.api.endpoint import JSON, PREFIX, Call, Endpoint

COMMON_ERRORS = (401, 403, 421, 503)
MEANINGS = {
    400: "The request cannot be parsed.",
    401: "A token is needed, or it is not known.",
    403: "The token may only read, or the request comes from the page of another server.",
    404: "There is no such run, task or worker, or the server has no ledger or no broker.",
    409: "The state of the run or the task does not allow the change.",
    413: "The body is too large.",
    415: "The body is not of a type that is read here.",
    421: "The Host is not this server's.",
    422: "A value is wrong.",
    503: "The ledger, the broker or the result backend is unavailable.",
}
DESCRIPTION = "Runs, tasks, queues and workers, with the objects of `--json`. A later version may add fields to them."
REF = "#/components/schemas/{name}"


def openapi_document(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """Return the document of these endpoints."""
    types = [kind for endpoint in endpoints for kind in (endpoint.result, endpoint.body) if kind is not None]
    schemas, components = msgspec.json.schema_components([*types, Error], ref_template=REF)
    schema_of = dict(zip(map(repr, [*types, Error]), schemas, strict=True))
    allow_unknown_fields([schemas, components])
    paths: dict[str, Any] = {}
    for endpoint in endpoints:
        paths.setdefault(PREFIX + endpoint.path, {})[endpoint.method.lower()] = operation(endpoint, schema_of)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Celeriac",
            "version": __version__,
            "description": DESCRIPTION,
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}, {}],
    }


def operation(endpoint: Endpoint, schema_of: dict[str, Any]) -> dict[str, Any]:
    """Return the description of one endpoint."""
    content: Any = {"type": "string"} if endpoint.result is None else schema_of[repr(endpoint.result)]
    statuses = {*COMMON_ERRORS, *endpoint.errors, 422}
    described: dict[str, Any] = {
        "operationId": endpoint.name,
        "summary": endpoint.summary,
        "parameters": [*path_parameters(endpoint), *query_parameters(endpoint)],
    }
    if endpoint.body is not None:
        schema = inlined(endpoint.body)  # it has no unknown fields
        described["requestBody"] = {"required": True, "content": {JSON: {"schema": schema}}}
        statuses |= {400, 413, 415}
    if endpoint.raw_body:
        described["requestBody"] = {"required": True, "content": {kind: {"schema": {}} for kind in endpoint.raw_body}}
        statuses |= {413, 415}
    error = {JSON: {"schema": schema_of[repr(Error)]}}
    described["responses"] = {
        str(endpoint.status): {"description": "Success.", "content": {endpoint.media_type: {"schema": content}}},
        **{str(status): {"description": MEANINGS[status], "content": error} for status in sorted(statuses)},
    }
    return described


def path_parameters(endpoint: Endpoint) -> Iterable[dict[str, Any]]:
    for name in re.findall(r"\{(\w+)\}", endpoint.path):
        meaning = endpoint.path_meanings[name]
        schema = {"type": "string", "minLength": 1}
        yield {"name": name, "in": "path", "required": True, "description": meaning, "schema": schema}


def query_parameters(endpoint: Endpoint) -> Iterable[dict[str, Any]]:
    schema = inlined(endpoint.query)
    for name, field in schema.get("properties", {}).items():
        meaning = field.pop("description", "")
        field.pop("default", None)
        yield {"name": name, "in": "query", "required": False, "description": meaning, "schema": without_null(field)}


def inlined(kind: Any) -> dict[str, Any]:
    """Return the schema of a type, with all that it refers to in place."""
    (schema,), components = msgspec.json.schema_components([kind], ref_template=REF)
    return dict(resolved(schema, components))


def resolved(schema: Any, components: dict[str, Any]) -> Any:
    if isinstance(schema, list):
        return [resolved(each, components) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        return {**resolved(components[name], components), **rest}
    return {key: resolved(value, components) for key, value in schema.items()}


def without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a parameter that may be left out: it is never null in a query."""
    others = [each for each in schema.get("anyOf", []) if each != {"type": "null"}]
    if len(others) != 1:
        return schema
    return {**{key: value for key, value in schema.items() if key != "anyOf"}, **others[0]}


def document_endpoint(endpoints: Sequence[Endpoint]) -> Endpoint:
    """Return the endpoint that serves the document of the others."""
    document = openapi_document(endpoints)

    def get_document(_: Call) -> Any:
        return document

    return Endpoint(
        method="GET",
        path="/openapi.json",
        name="openapi",
        summary="Describe the interface.",
        handler=get_document,
        result=dict[str, Any],
    )
