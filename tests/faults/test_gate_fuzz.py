"""Random messages before the gate: what it accepts can harm neither Celery nor the supervisor, and it always answers.

A long run checks a million messages, another one 10,000.
"""

from __future__ import annotations

import json
import math
import resource
import time
from dataclasses import replace
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.app.task import Context
from celery.worker.request import Request
from hypothesis import given
from hypothesis import strategies as st

from celeriac.broker.command_message import TASK_NAME
from celeriac.task.task import MAX_ID_LENGTH, Task
from celeriac.worker.command import request_of
from celeriac.worker.gate import Accepted, Delivery, Gate, envelope_problem, usable_id
from celeriac.worker.intake import describe
from celeriac.worker.output import OutputPolicy
from celeriac.worker.supervisor.messages import CommandRequest
from tests.support.long import LONG
from tests.support.malformed import MALFORMED, MAX_SIZE, message_of

pytestmark = [pytest.mark.fault, pytest.mark.celery]

NUMBER = 1_000_000 if LONG else 10_000
MAX_CPU_TIME = 2.0  # seconds for one message
MAX_GROWTH = 300 * 1024  # KiB of memory

GATE = Gate(max_size=MAX_SIZE)
TASK = Task(key="k", command=("echo", "x"), env={"A": "b"}, timeout=5.0)
PIECES: list[Any] = [
    None, True, False, 0, -1, 1, 5, 2**31, 2**63, -(2**70), 0.5, 1e308, math.nan, math.inf, -math.inf,
    "", "x", "\0", "\n", "ü", "\ud800", "\udcff", "id", "x" * 156, TASK_NAME, "application/x-gzip", "2030-01-01",
    [], [None], ["x"], [[]], {}, {"a": 1}, {"": None}, {5: 6}, b"x", (1, 2),
    {"__type__": "datetime", "__value__": "x"}, {"__type__": "uuid", "__value__": "x"},
]  # fmt: skip
NAMES = [
    "task",
    "id",
    "eta",
    "errbacks",
    "timelimit",
    "args",
    "token",
    "start_by",
    "key",
    "command",
    "env",
    "x",
    "update",
    "",
    5,
]


@pytest.fixture(scope="module")
def app() -> Celery:
    app = Celery("fuzz", broker="memory://", backend="cache+memory://", set_as_current=False)

    def run(message: Any) -> None:
        raise NotImplementedError

    app.task(name=TASK_NAME, shared=False)(run)
    app.finalize()
    return app


def check(app: Celery, delivery: Delivery) -> bool:
    """Return whether the gate accepts a message. Fail if Celery or the supervisor could not use an accepted one."""
    verdict = GATE.check(delivery)
    task_id = usable_id(delivery.headers, TASK_NAME)
    assert task_id is None or (0 < len(task_id) <= MAX_ID_LENGTH and task_id.isprintable())
    assert len(describe(delivery)) <= 500
    if not isinstance(verdict, Accepted):
        assert verdict.why.isprintable()
        return False
    assert task_id is not None
    args, kwargs, callbacks = verdict.payload
    assert not kwargs
    assert not any(callbacks.values())
    request = request_like_celery(app, delivery, verdict)
    assert (request.eta, request.expires, tuple(request.time_limits)) == (None, None, (None, None))
    context = Context(request.request_dict, args=args, kwargs=kwargs, called_directly=False, **callbacks)
    assert (context.id, context.errbacks or None, context.chord) == (task_id, None, None)
    command = request_of(args[0], OutputPolicy())
    CommandRequest.from_json(json.loads(json.dumps(command.to_json())))
    return True


def request_like_celery(app: Celery, delivery: Delivery, verdict: Accepted) -> Any:
    """Return the request that Celery's strategy makes of a message."""
    message = SimpleNamespace(
        headers=delivery.headers,
        properties=delivery.properties,
        delivery_info={},
        body=verdict.body,
        payload=verdict.payload,
        content_type=delivery.content_type,
        content_encoding=delivery.content_encoding,
    )
    return Request(message, app=app, task=app.tasks[TASK_NAME], headers=message.headers, decoded=False)


class Mutations:
    """Changes parts of messages at random."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self._good = message_of(TASK)
        self._others = [change(self._good) for change in MALFORMED.values()]

    def delivery(self) -> Delivery:
        random = self._random
        message = self._good if random.random() < 0.8 else random.choice(self._others)
        delivery = message.delivery()
        for _ in range(random.randrange(4)):
            match random.randrange(5):
                case 0:
                    delivery = replace(delivery, headers=self.mutated(delivery.headers))
                case 1:
                    delivery = replace(delivery, properties=self.mutated(delivery.properties))
                case 2:
                    part = random.choice(["content_type", "content_encoding", "headers", "properties", "body"])
                    delivery = replace(delivery, **{part: random.choice(PIECES)})
                case 3:
                    delivery = replace(delivery, body=self._mutated_body(delivery.body))
                case 4:
                    delivery = replace(delivery, body=self._torn(delivery.body))
        return delivery

    def mutated(self, values: Any) -> Any:
        """Return a copy of plain data with one part replaced, removed or added."""
        random = self._random
        if isinstance(values, dict) and random.random() < 0.9:
            name = random.choice([*values, *NAMES])
            if random.random() < 0.2:
                return {n: v for n, v in values.items() if n != name}
            return {**values, name: self.mutated(values[name]) if name in values else random.choice(PIECES)}
        if isinstance(values, list) and values and random.random() < 0.8:
            place = random.randrange(len(values))
            return [self.mutated(value) if n == place else value for n, value in enumerate(values)]
        return random.choice(PIECES)

    def _mutated_body(self, body: Any) -> Any:
        try:
            return json.dumps(self.mutated(json.loads(body))).encode()
        except (ValueError, TypeError, RecursionError):
            return body

    def _torn(self, body: Any) -> Any:
        """Return a body with some bytes changed, removed or repeated."""
        if not isinstance(body, bytes) or not body:
            return body
        start = self._random.randrange(len(body))
        end = start + self._random.randrange(8)
        return body[:start] + self._random.randbytes(self._random.randrange(4)) * self._random.randrange(3) + body[end:]


def test_a_random_message_is_harmless_or_refused_in_bounded_time_and_memory(app):
    mutations, accepted, slowest = Mutations(seed=15), 0, 0.0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(NUMBER):
        delivery = mutations.delivery()
        started = time.process_time()
        accepted += check(app, delivery)
        slowest = max(slowest, time.process_time() - started)
    assert slowest < MAX_CPU_TIME
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MAX_GROWTH
    assert NUMBER * 0.1 < accepted < NUMBER * 0.9  # neither all nor none: the mutations reach every check


def test_a_random_envelope_is_described_or_accepted():
    mutations, accepted = Mutations(seed=16), 0
    for _ in range(NUMBER // 10):
        problem = envelope_problem(mutations.mutated(message_of(TASK).envelope()))
        assert problem is None or problem.isprintable()
        accepted += problem is None
    assert accepted


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters()) | st.integers(), inner, max_size=4)
    ),
    max_leaves=8,
)
good = message_of(TASK)


@given(
    headers=anything
    | st.dictionaries(st.sampled_from([*good.headers]), anything).map(lambda new: {**good.headers, **new}),
    properties=st.just({}) | anything,
    content_type=st.just("application/json") | anything,
    content_encoding=st.just("utf-8") | anything,
    body=st.just(good.body) | st.binary() | anything,
)
def test_anything_at_all_gets_an_answer(app, headers, properties, content_type, content_encoding, body):
    check(
        app,
        Delivery(
            headers=headers,
            properties=properties,
            content_type=content_type,
            content_encoding=content_encoding,
            body=body,
        ),
    )


@given(anything)
def test_any_payload_gets_an_answer(app, payload):
    try:
        body = json.dumps([[payload], {}, {}]).encode()
    except (TypeError, ValueError):
        return
    check(app, replace(good.delivery(), body=body))


@given(st.dictionaries(st.sampled_from([*good.payload[0][0], "token", "start_by", "new"]), anything))
def test_any_field_gets_an_answer(app, fields):
    payload = good.payload
    payload[0][0].update(fields)
    try:
        body = json.dumps(payload).encode()
    except (TypeError, ValueError):
        return
    check(app, replace(good.delivery(), body=body))
