"""The publishers against real brokers: the messages that arrive, and the receipts while a broker is unavailable."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import kombu.pools
import pytest
import redis as redis_client
from amqp.exceptions import NotFound
from celery import Celery, signals
from celery.utils.saferepr import saferepr
from kombu import Exchange, Queue
from msgspec.structs import replace

from celeriac.broker.amqp import AmqpPublisher
from celeriac.broker.app import make_app
from celeriac.broker.one_by_one import OneByOnePublisher
from celeriac.broker.publishers import BrokerPublisher, publisher_for
from celeriac.broker.redis import RedisPublisher
from celeriac.broker.task_message import TaskMessage
from celeriac.errors import BrokerBlocked, QueueRefused
from celeriac.executor.interfaces import NotSent, Receipt, Sent, Unsure
from celeriac.task.task import Task
from tests.support.cli_runner import WAIT_TIMEOUT, until
from tests.support.long import slow
from tests.support.proxy import Proxy
from tests.support.servers import RabbitServer, Server

pytestmark = [pytest.mark.celery, pytest.mark.usefixtures("collect_cut_sockets")]

TIMEOUT = 0.5  # seconds that an operation may take that is to fail


class Broker:
    """A server, and the messages that are in it."""

    def __init__(self, server: Server) -> None:
        self.server, self.url = server, server.url

    def take_all(self, app: Celery) -> dict[str, list[Any]]:
        raise NotImplementedError


class RedisBroker(Broker):
    publisher: type[BrokerPublisher] = RedisPublisher

    def take_all(self, app: Celery) -> dict[str, list[Any]]:
        """Every list, oldest first, as decoded JSON, and how long each key lives; then everything is gone."""
        with redis_client.Redis(port=self.server.port, decode_responses=True) as client:
            found: dict[str, list[Any]] = {}
            for key in client.scan_iter():
                match client.type(key):
                    case "list":
                        found[key] = [json.loads(value) for value in reversed(client.lrange(key, 0, -1))]
                        found[f"{key} expires"] = [client.ttl(key)]
                    case "set":
                        found[key] = sorted(client.smembers(key))
            client.flushdb()
        for value in (value for values in found.values() for value in values if isinstance(value, dict)):
            assert re.fullmatch("[0-9a-f-]{36}", value["properties"].pop("delivery_tag"))
        return found


def exists(connection: Any, queue: str) -> bool:
    try:
        connection.channel().queue_declare(queue, passive=True)
    except NotFound:
        return False
    return True


class RabbitBroker(Broker):
    publisher: type[BrokerPublisher] = AmqpPublisher

    def take_all(self, app: Celery) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        with app.connection_for_read() as connection:
            channel = connection.channel()
            for name in (*app.amqp.queues, "routed", "lines-1", "lines-2", "lines-3"):
                if not exists(connection, name):
                    continue
                while message := channel.basic_get(name, no_ack=True):
                    delivery = {k: v for k, v in message.delivery_info.items() if k != "delivery_tag"}
                    found.setdefault(name, []).append((message.body, message.properties, message.headers, delivery))
                channel.queue_delete(name)
        return found


@pytest.fixture(params=["redis", "valkey", "rabbit"])
def broker(request: pytest.FixtureRequest) -> Broker:
    kombu.pools.reset()  # apps of one broker share connections, which remember what was declared
    if request.param == "rabbit":
        return RabbitBroker(request.getfixturevalue("rabbit"))
    return RedisBroker(request.getfixturevalue(f"shared_{request.param}"))


@pytest.fixture(params=["bulk", "one by one"])
def open_publisher(request: pytest.FixtureRequest) -> Iterator[Callable[..., BrokerPublisher]]:
    """Return a function that opens publishers of one kind; they are closed after the test."""
    opened: list[Any] = []

    def open_one(app: Celery, **options: Any) -> BrokerPublisher:
        make = publisher_for if request.param == "bulk" else OneByOnePublisher
        opened.append(make(app, **options))
        return opened[-1]  # type: ignore[no-any-return]

    yield open_one
    for publisher in opened:
        publisher.close()


def app_on(url: str, **settings: Any) -> Celery:
    return make_app(broker_url=url, result_backend="cache+memory://", **settings)


def kinds(receipts: Any) -> list[type[Receipt]]:
    return [type(receipt) for receipt in receipts]


def until_sent(publisher: BrokerPublisher, tasks: Sequence[Task], what: str) -> None:
    """Publish what was not sent before, again and again, as an executor does."""
    left = list(tasks)

    def are_sent() -> bool:
        left[:] = [receipt.task for receipt in publisher.publish(left, timeout=5) if not isinstance(receipt, Sent)]
        return not left

    until(are_sent, what)


def error_of(receipt: Receipt) -> Exception:
    assert not isinstance(receipt, Sent)
    return receipt.error


def topic_queue() -> Queue:
    return Queue("reports", Exchange("topics", type="topic"), routing_key="reports.#")


def execute_command(message: Any) -> None:
    """Do nothing: it is not run here."""


def by_arguments(name: str, args: Any, kwargs: Any, options: Any, task: Any = None, **_: Any) -> dict[str, str]:
    return {"queue": f"lines-{args[0]['lines']}"}


QUEUES = [topic_queue(), Queue("short", expires=60.0), Queue("direct", Exchange("d"), routing_key="k")]

SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as it is": ({}, {"queue": "default"}),
    "default queue": ({}, {}),
    "priority": ({}, {"queue": "default", "priority": 7}),
    "time limits and retries": ({}, {"queue": "default", "time_limit": 7, "soft_time_limit": 5, "retries": 2}),
    "transient": ({"task_default_delivery_mode": 1}, {"queue": "default"}),
    "expires": ({}, {"queue": "default", "expires": 1e6}),
    "headers": ({}, {"queue": "default", "headers": {"tenant": "a"}}),
    "shadow": ({}, {"queue": "default", "shadow": "another name"}),
    "compressed": ({"task_compression": "gzip"}, {"queue": "default"}),
    "compressed by option": ({}, {"queue": "default", "compression": "gzip"}),
    "pickle": ({"task_serializer": "pickle"}, {"queue": "default"}),
    "routes": ({"task_routes": {"*.execute_command": {"queue": "routed", "priority": 3}}}, {}),
    "router": ({"task_routes": [by_arguments]}, {}),
    "topic": ({"task_queues": QUEUES}, {"queue": "reports", "routing_key": "reports.daily"}),
    "direct": ({"task_queues": QUEUES}, {"queue": "direct"}),
    "queue that expires": ({"task_queues": QUEUES}, {"queue": "short"}),
    "queue with priorities": ({"task_queue_max_priority": 10}, {"queue": "urgent", "priority": 9}),
    "sent event": ({"task_send_sent_event": True}, {"queue": "default"}),
    "protocol 1": ({"task_protocol": 1}, {"queue": "default"}),
    "steps": ({"broker_transport_options": {"priority_steps": list(range(10))}}, {"queue": "default", "priority": 4}),
    "prefix": ({"broker_transport_options": {"global_keyprefix": "ours:"}}, {"queue": "default"}),
}

ARGUMENTS = [
    {"lines": 1, "text": "plain"},
    {"lines": 2, "text": 'Grüße, 世界 \N{GRINNING FACE} " \\ \x00 </script>', "deep": [[1.5, None, True], {"a": {}}]},
    {"lines": 3, "text": "not Unicode: \udcff"},
]


@pytest.mark.parametrize("name", SETTINGS)
def test_message_in_the_broker_is_that_of_apply_async(broker, name):
    settings, options = SETTINGS[name]
    if "broker_transport_options" in settings and isinstance(broker, RabbitBroker):
        settings = {}
    app = app_on(broker.url, **settings)
    task = app.task(name="celeriac.execute_command", shared=False)(execute_command)
    ids = [f"id-{n}" for n in range(len(ARGUMENTS))]
    for task_id, message in zip(ids, ARGUMENTS, strict=True):
        task.apply_async((message,), task_id=task_id, **options)
    theirs = broker.take_all(app)
    messages = {
        task_id: TaskMessage(
            name="celeriac.execute_command", args=(message,), argsrepr=saferepr((message,)), options=options
        )
        for task_id, message in zip(ids, ARGUMENTS, strict=True)
    }
    publisher = publisher_for(app, message_factory=lambda task: messages[task.id])
    assert isinstance(publisher, broker.publisher)
    tasks = [Task(key=task_id, id=task_id, command="true") for task_id in ids]
    assert kinds(publisher.publish(tasks, timeout=WAIT_TIMEOUT)) == [Sent] * len(tasks)
    ours = broker.take_all(app)
    publisher.close()
    assert simplified(ours) == simplified(theirs)
    assert any(simplified(ours).values())


def test_signature_is_one_more_header(broker, open_publisher):
    app = app_on(broker.url)
    messages = {
        f"id-{n}": TaskMessage(
            name="n", args=(n,), argsrepr="-", options={"queue": "default"}, signature="s" * n if n else None
        )
        for n in range(4)
    }
    tasks = [Task(key=task_id, id=task_id, command="true") for task_id in messages]
    publisher = open_publisher(app, message_factory=lambda task: messages[task.id])
    assert kinds(publisher.publish(tasks, timeout=WAIT_TIMEOUT)) == [Sent] * 4
    with app.connection_for_read() as connection:
        queue = connection.SimpleQueue(app.amqp.queues["default"])
        headers = [queue.get(timeout=5).headers for _ in tasks]
    assert [each.pop("celeriac_signature", None) for each in headers] == [None, "s", "ss", "sss"]
    assert [each["id"] for each in headers] == list(messages)
    assert all(each.keys() == headers[0].keys() for each in headers)
    broker.take_all(app)


def simplified(found: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Decode the bodies, because JSON has more than one form, and cut times to the day."""
    return {key: [simplify(value) for value in values] for key, values in found.items()}


def simplify(value: Any) -> Any:
    if isinstance(value, dict) and "body" in value:
        import base64

        value = {**value, "body": decode(base64.b64decode(value["body"]))}
        value["headers"] = without_times(value["headers"])
    if isinstance(value, tuple):
        body, properties, headers, delivery = value
        properties = {k: v for k, v in properties.items() if k != "application_headers"}
        return decode(body), properties, without_times(headers), delivery
    return value


def without_times(headers: dict[str, Any]) -> dict[str, Any]:
    if headers.get("expires"):
        return {**headers, "expires": headers["expires"][:10]}
    return headers


def decode(body: bytes | str) -> Any:
    try:
        return json.loads(body)
    except ValueError:  # compressed or pickled, by the same code
        return body


seen: list[str] = []


def before(headers: dict[str, Any], **_: Any) -> None:
    headers["trace"] = f"trace of {headers['id']}"


def after(headers: dict[str, Any], **_: Any) -> None:
    seen.append(headers["id"])


def test_signal_handlers_receive_and_may_change_each_message(broker):
    app = app_on(broker.url)
    seen.clear()
    publisher = publisher_for(app)
    tasks = [Task(key=n, id=f"id-{n}", command="true") for n in range(3)]
    assert kinds(publisher.publish(tasks, timeout=WAIT_TIMEOUT)) == [Sent] * 3
    signals.before_task_publish.connect(before)
    signals.after_task_publish.connect(after)
    try:
        assert kinds(publisher.publish(tasks, timeout=WAIT_TIMEOUT)) == [Sent] * 3
    finally:
        signals.before_task_publish.disconnect(before)
        signals.after_task_publish.disconnect(after)
        publisher.close()
    assert seen == ["id-0", "id-1", "id-2"]
    with app.connection_for_read() as connection:
        queue = connection.SimpleQueue(app.amqp.queues["default"])
        headers = [queue.get(timeout=5).headers for _ in range(6)]
    assert [h.get("trace") for h in headers] == [None, None, None, *(f"trace of id-{n}" for n in range(3))]
    broker.take_all(app)


def test_batch_keeps_its_order_and_urgent_tasks_overtake(broker):
    steps = {"priority_steps": list(range(10)), "queue_order_strategy": "priority"}
    options = {} if isinstance(broker, RabbitBroker) else {"broker_transport_options": steps}
    app = app_on(broker.url, task_queue_max_priority=10, **options)
    publisher = publisher_for(app)
    tasks = [Task(key=n, command="true", priority=n // 5) for n in range(-5, 1_500)]
    assert kinds(publisher.publish(tasks, timeout=10)) == [Sent] * len(tasks)
    publisher.close()
    with app.connection_for_read() as connection:
        queue = connection.SimpleQueue(app.amqp.queues["default"])
        keys = []
        for _ in tasks:
            message = queue.get(timeout=5)
            message.ack()
            keys.append(int(json.loads(message.body)[0][0]["key"]))
        queue.close()
    by_urgency = sorted(tasks, key=lambda task: -min(max(task.priority, 0), 9))
    assert keys == [task.key for task in by_urgency]
    broker.take_all(app)


def test_message_that_cannot_be_encoded_fails_alone_and_for_good(broker, open_publisher):
    app = app_on(broker.url, task_serializer="pickle")
    bad = {"id-1": lambda: None}  # no pickle of a local function
    publisher = open_publisher(
        app,
        message_factory=lambda task: TaskMessage(
            name="n", args=(bad.get(task.id, "fine"),), argsrepr="", options={"queue": "default"}
        ),
    )
    tasks = [Task(key=n, id=f"id-{n}", command="true") for n in range(3)]
    receipts = list(publisher.publish(tasks, timeout=WAIT_TIMEOUT))
    assert kinds(receipts) == [Sent, NotSent, Sent]
    assert isinstance(receipts[1], NotSent)
    assert not receipts[1].transient
    broker.take_all(app)


def test_missing_queue_that_may_not_be_created_is_named(broker, open_publisher):
    app = app_on(broker.url, task_queues=[Queue("default")], task_create_missing_queues=False)
    tasks = [Task(key="typo", command="true", queue="defualt"), Task(key="fine", command="true")]
    receipts = list(open_publisher(app).publish(tasks, timeout=WAIT_TIMEOUT))
    assert kinds(receipts) == [NotSent, Sent]
    assert "defualt" in str(error_of(receipts[0]))
    broker.take_all(app)


# — an unavailable broker —


def test_stopped_broker_leaves_no_task_unsure_and_is_used_when_it_is_back(redis, open_publisher, caplog):
    publisher = open_publisher(app_on(redis.url))
    tasks = [Task(key=n, command="true") for n in range(3)]
    redis.kill()
    assert kinds(publisher.publish(tasks, timeout=TIMEOUT)) == [NotSent] * 3
    assert kinds(publisher.publish(tasks, timeout=TIMEOUT)) == [NotSent] * 3
    redis.start()
    until_sent(publisher, tasks, "the end of the outage")
    unavailable, back = [record.message for record in caplog.records if record.name == "celeriac.broker.connection"]
    assert re.fullmatch(r"redis://\S+:\d+/0 is unavailable, tasks wait: .*", unavailable)
    assert re.fullmatch(r"redis://\S+:\d+/0 is available again after \d+\.\d s", back)


def test_redis_frozen_between_two_batches_leaves_no_task_unsure(redis):
    publisher = RedisPublisher(app_on(redis.url))
    tasks = [Task(key=n, command="true") for n in range(3)]
    assert kinds(publisher.publish(tasks, timeout=WAIT_TIMEOUT)) == [Sent] * 3
    redis.freeze()
    assert kinds(publisher.publish(tasks, timeout=TIMEOUT)) == [NotSent] * 3
    redis.thaw()
    until_sent(publisher, tasks, "the end of the outage")
    publisher.close()


def test_log_of_an_outage_does_not_contain_the_password(redis, caplog):
    redis.kill()
    publisher = RedisPublisher(app_on(f"redis://:hunter2@127.0.0.1:{redis.port}/0"))
    (receipt,) = publisher.publish([Task(key=1, command="true")], timeout=TIMEOUT)
    publisher.close()
    assert isinstance(receipt, NotSent)
    assert "is unavailable" in caplog.text
    assert "hunter2" not in caplog.text + str(receipt.error)
    redis.start()


def test_reply_lost_after_the_write_leaves_its_tasks_unsure_and_stored_once(redis):
    with Proxy(redis.port) as proxy:
        app = app_on(f"redis://127.0.0.1:{proxy.port}/0")
        publisher = RedisPublisher(app)
        tasks = [Task(key=n, command="true") for n in range(1, 4)]
        assert kinds(publisher.publish([Task(key=0, command="true")], timeout=WAIT_TIMEOUT)) == [Sent]
        proxy.cut_after_replies(1)  # the reply to PING
        assert kinds(publisher.publish(tasks, timeout=TIMEOUT)) == [Unsure] * 3
        publisher.close()
    stored = RedisBroker(redis).take_all(app)["default\x06\x169"]
    assert len(stored) == 4


def test_an_unexpected_error_affects_one_message_and_is_logged_once(broker, open_publisher, caplog):
    def most_messages(task: Task) -> TaskMessage:
        if task.key in (1, 2):
            raise RuntimeError("a bug")
        return TaskMessage(name="n", args=(), argsrepr="()", options={"queue": "default"})

    app = app_on(broker.url)
    tasks = [Task(key=n, command="true") for n in range(4)]
    receipts = list(open_publisher(app, message_factory=most_messages).publish(tasks, timeout=WAIT_TIMEOUT))
    assert kinds(receipts) == [Sent, NotSent, NotSent, Sent]
    assert not any(isinstance(receipt, NotSent) and receipt.transient for receipt in receipts)
    logged = [record for record in caplog.records if record.name == "celeriac.broker.message"]
    assert [record.getMessage() for record in logged] == ["the message of task 1 cannot be built"]
    broker.take_all(app)


def test_refusal_is_logged_once_and_ends_with_an_accepted_message(redis, caplog):
    publisher = RedisPublisher(app_on(redis.url))
    tasks = [Task(key=n, command="true") for n in range(3)]
    with redis_client.Redis(port=redis.port) as client:
        client.config_set("maxmemory", 1)
        for _ in range(3):
            assert kinds(publisher.publish(tasks, timeout=WAIT_TIMEOUT)) == [NotSent] * 3
        client.config_set("maxmemory", 0)
    assert kinds(publisher.publish(tasks, timeout=WAIT_TIMEOUT)) == [Sent] * 3
    publisher.close()
    refuses, back = [record.getMessage() for record in caplog.records if record.name == "celeriac.broker.connection"]
    assert re.fullmatch(r"redis://\S+ refuses requests, tasks wait: .*maxmemory.*; raise maxmemory, .*", refuses)
    assert re.fullmatch(r"redis://\S+ is available again after \d+\.\d s", back)


def test_queue_that_is_accepted_does_not_end_the_refusal_of_another(redis, caplog):
    publisher = RedisPublisher(app_on(redis.url))
    allowed, forbidden = Task(key=1, command="true"), Task(key=2, command="true", queue="forbidden")
    with redis_client.Redis(port=redis.port) as client:
        client.execute_command("ACL", "SETUSER", "default", "resetkeys", "~default*", "~_kombu*")
        for _ in range(2):
            assert kinds(publisher.publish([allowed], timeout=WAIT_TIMEOUT)) == [Sent]
            assert kinds(publisher.publish([forbidden], timeout=WAIT_TIMEOUT)) == [NotSent]
        client.execute_command("ACL", "SETUSER", "default", "allkeys")
    assert kinds(publisher.publish([forbidden], timeout=WAIT_TIMEOUT)) == [Sent]
    publisher.close()
    lines = [record.getMessage() for record in caplog.records if record.name == "celeriac.broker.connection"]
    assert [(" refuses " in line, " again " in line) for line in lines] == [(True, False), (False, True)]


def test_full_redis_refuses_tasks_and_says_why(redis):
    publisher = RedisPublisher(app_on(redis.url))
    tasks = [Task(key=n, command="true") for n in range(3)]
    assert kinds(publisher.publish(tasks, timeout=WAIT_TIMEOUT)) == [Sent] * 3
    with redis_client.Redis(port=redis.port) as client:
        client.config_set("maxmemory", 1)
        receipts = list(publisher.publish(tasks, timeout=WAIT_TIMEOUT))
        client.config_set("maxmemory", 0)
    assert kinds(receipts) == [NotSent] * 3
    assert isinstance(receipts[0], NotSent)
    assert receipts[0].transient
    assert "maxmemory" in str(error_of(receipts[0]))
    assert kinds(publisher.publish(tasks, timeout=WAIT_TIMEOUT)) == [Sent] * 3
    publisher.close()


def test_redis_is_reached_by_its_unix_socket(redis):
    for url in (f"redis+socket://{redis.socket}", f"redis+socket://{redis.socket}?virtual_host=1"):
        publisher = publisher_for(app_on(url))
        assert isinstance(publisher, RedisPublisher)
        assert kinds(publisher.publish([Task(key=1, command="true")], timeout=WAIT_TIMEOUT)) == [Sent]
        publisher.close()
    with redis_client.Redis(port=redis.port) as one, redis_client.Redis(port=redis.port, db=1) as other:
        assert (one.llen("default\x06\x169"), other.llen("default\x06\x169")) == (1, 1)


def app_beside_a_plain_queue(rabbit: RabbitServer) -> Celery:
    """Return an app that wants priorities, while RabbitMQ has the queue `plain` without them."""
    plain = app_on(rabbit.url, task_queue_max_priority=None)
    with plain.connection_for_write() as connection:
        plain.amqp.queues["plain"](connection.channel()).declare()
    return app_on(rabbit.url, task_queue_max_priority=10)


def test_queue_with_other_arguments_is_named_and_other_queues_are_served(rabbit):
    app = app_beside_a_plain_queue(rabbit)
    publisher = AmqpPublisher(app)
    tasks = [Task(key=n, command="true", queue="plain" if n % 2 else "default") for n in range(4)]
    receipts = list(publisher.publish(tasks, timeout=WAIT_TIMEOUT))
    assert kinds(receipts) == [Sent, NotSent, Sent, NotSent]
    assert isinstance(error_of(receipts[1]), QueueRefused)
    assert "queue 'plain' exists with other arguments" in str(error_of(receipts[1]))
    assert "x-max-priority" in str(error_of(receipts[1]))
    publisher.close()
    RabbitBroker(rabbit).take_all(app)


def test_deleted_queue_returns_its_messages_and_is_declared_again(rabbit):
    app = app_on(rabbit.url)
    publisher = AmqpPublisher(app)
    tasks = [Task(key=n, command="true") for n in range(2)]
    assert kinds(publisher.publish(tasks, timeout=WAIT_TIMEOUT)) == [Sent] * 2
    RabbitBroker(rabbit).take_all(app)
    receipts = list(publisher.publish(tasks, timeout=WAIT_TIMEOUT))
    assert kinds(receipts) == [NotSent] * 2
    assert "NO_ROUTE" in str(error_of(receipts[0]))
    assert kinds(publisher.publish(tasks, timeout=WAIT_TIMEOUT)) == [Sent] * 2
    publisher.close()
    assert len(RabbitBroker(rabbit).take_all(app)["default"]) == 2


def test_no_task_is_sent_twice_after_a_memory_alarm(rabbit):
    app = app_on(rabbit.url)
    publisher = AmqpPublisher(app)
    tasks = [Task(key=n, command="true") for n in range(20)]
    assert kinds(publisher.publish(tasks[:5], timeout=WAIT_TIMEOUT)) == [Sent] * 5
    rabbit.control("set_vm_memory_high_watermark", "0")
    try:
        blocked = list(publisher.publish(tasks[5:10], timeout=TIMEOUT))  # RabbitMQ has read the first of them, or more
        still = list(publisher.publish(tasks[5:], timeout=TIMEOUT))
    finally:
        rabbit.control("set_vm_memory_high_watermark", "0.4")
    assert kinds(blocked)[0] is Unsure
    assert kinds(still) == [*kinds(blocked), *[NotSent] * 10]
    assert {type(error_of(receipt)) for receipt in still} == {BrokerBlocked}
    until_sent(publisher, tasks[5:], "the end of the alarm")
    publisher.close()
    assert [body_key(stored) for stored in RabbitBroker(rabbit).take_all(app)["default"]] == list(range(20))


def body_key(stored: Any) -> int:
    return int(json.loads(stored[0])[0][0]["key"])


def test_no_task_is_sent_twice_after_rabbitmq_was_frozen(rabbit):
    app = app_on(rabbit.url)
    publisher = AmqpPublisher(app)
    tasks = [Task(key=n, command="true") for n in range(10)]
    assert kinds(publisher.publish(tasks[:1], timeout=WAIT_TIMEOUT)) == [Sent]
    rabbit.freeze()
    assert kinds(publisher.publish(tasks[1:], timeout=TIMEOUT)) == [Unsure] * 9
    rabbit.thaw()
    until_sent(publisher, tasks[1:], "the confirms")
    publisher.close()
    assert [body_key(stored) for stored in RabbitBroker(rabbit).take_all(app)["default"]] == list(range(10))


def test_rabbitmq_restarted_between_two_batches_leaves_no_task_unsure():
    rabbit = RabbitServer()
    publisher = AmqpPublisher(app_on(rabbit.url))
    tasks = [Task(key=n, command="true") for n in range(3)]
    assert kinds(publisher.publish(tasks, timeout=WAIT_TIMEOUT)) == [Sent] * 3
    rabbit.kill()
    assert kinds(publisher.publish(tasks, timeout=TIMEOUT)) == [NotSent] * 3
    rabbit.start()
    until_sent(publisher, tasks, "the end of the outage")
    publisher.close()
    rabbit.close()


def test_message_is_made_for_each_attempt(broker):
    app = app_on(broker.url)
    publisher = publisher_for(app)
    task = Task(key="k", command="true", retries=1)
    assert kinds(publisher.publish([task, replace(task, attempt=2)], timeout=WAIT_TIMEOUT)) == [Sent] * 2
    publisher.close()
    broker.take_all(app)


# — many messages at once —


def messages_with(bodies: dict[str, Any], queue: str = "default") -> Callable[[Task], TaskMessage]:
    return lambda task: TaskMessage(name="n", args=(bodies[task.id],), argsrepr="()", options={"queue": queue})


IDS = ["1", "i" * 36, "i" * 144, "with / and %", "id.2", 'quote"d', "~"]
TEXTS = ["1", "i" * 36, "i" * 255, "with-ü-世界", "id.2", 'quote"d', "not Unicode: \udcff"]


def test_ids_and_arguments_of_every_length_arrive_as_from_apply_async(broker):
    app = app_on(broker.url)
    task = app.task(name="celeriac.execute_command", shared=False)(execute_command)
    texts = dict(zip(IDS, TEXTS, strict=True))
    arguments = {task_id: (texts[task_id] * (number * 50),) for number, task_id in enumerate(IDS)}
    for task_id, args in arguments.items():
        task.apply_async(args, task_id=task_id, queue="default")
    theirs = broker.take_all(app)
    messages = {
        task_id: TaskMessage(
            name="celeriac.execute_command",
            args=args,
            argsrepr=saferepr(args, maxlen=app.amqp.argsrepr_maxsize),
            options={"queue": "default"},
        )
        for task_id, args in arguments.items()
    }
    publisher = publisher_for(app, message_factory=lambda task: messages[task.id])
    tasks = [Task(key=n, id=task_id, command="true") for n, task_id in enumerate(IDS)]
    assert kinds(publisher.publish(tasks, timeout=WAIT_TIMEOUT)) == [Sent] * len(IDS)
    publisher.close()
    ours = broker.take_all(app)
    assert simplified(ours) == simplified(theirs)
    assert len(ours["default"]) == len(IDS)


def test_many_queues_and_urgencies_keep_their_order(broker):
    app = app_on(broker.url)
    publisher = publisher_for(app)
    queues = [f"many-{n}" for n in range(20)]
    for queue in queues:
        app.amqp.queues.select_add(queue)
    tasks = [
        Task(
            key=n,
            command=("echo", "not Unicode: \udcff" if n % 7 == 0 else "x" * 200),
            queue=queues[n % 20],
            priority=n // 20 % 3,
        )
        for n in range(1_300)
    ]
    assert [receipt.task for receipt in publisher.publish(tasks, timeout=30)] == tasks
    publisher.close()
    with app.connection_for_read() as connection:
        for number, name in enumerate(queues):
            queue = connection.SimpleQueue(app.amqp.queues[name])
            mine = tasks[number::20]
            keys = [queue.get(timeout=5).decode()[0][0]["key"] for _ in mine]
            assert keys == [str(task.key) for task in sorted(mine, key=lambda task: -task.priority)]
            queue.close()
    broker.take_all(app)


def test_reply_lost_in_the_middle_leaves_one_write_unsure_and_the_rest_unsent(redis):
    with Proxy(redis.port) as proxy:
        app = app_on(f"redis://127.0.0.1:{proxy.port}/0")
        publisher = RedisPublisher(app)
        tasks = [Task(key=n, command="true") for n in range(1_200)]
        assert kinds(publisher.publish(tasks[:1], timeout=WAIT_TIMEOUT)) == [Sent]
        proxy.cut_after_replies(2)  # the reply to PING, and that to the first 500
        receipts = list(publisher.publish(tasks, timeout=WAIT_TIMEOUT))
        publisher.close()
    assert kinds(receipts) == [Sent] * 500 + [Unsure] * 500 + [NotSent] * 200
    assert [receipt.task for receipt in receipts] == tasks
    assert len(RedisBroker(redis).take_all(app)["default\x06\x169"]) == 1_001


def test_unread_replies_are_not_taken_for_those_of_the_next_batch(redis):
    def most_messages(task: Task) -> TaskMessage:
        if task.key == 700:
            raise KeyboardInterrupt
        return TaskMessage(name="n", args=(), argsrepr="()", options={"queue": "default"})

    publisher = RedisPublisher(app_on(redis.url), message_factory=most_messages)
    tasks = [Task(key=n, command="true") for n in range(1_200)]
    with pytest.raises(KeyboardInterrupt):
        list(publisher.publish(tasks, timeout=WAIT_TIMEOUT))
    with redis_client.Redis(port=redis.port) as client:
        assert client.llen("default") == 500
        client.execute_command("ACL", "SETUSER", "default", "-lpush")
        assert kinds(publisher.publish(tasks[:3], timeout=TIMEOUT)) == [NotSent] * 3
        client.execute_command("ACL", "SETUSER", "default", "+lpush")
    assert type(next(iter(publisher.publish(tasks[:600], timeout=WAIT_TIMEOUT)))) is Sent
    assert kinds(publisher.publish(tasks[:3], timeout=WAIT_TIMEOUT)) == [Sent] * 3
    publisher.close()


def test_body_may_be_longer_than_a_frame(rabbit):
    app = app_on(rabbit.url)
    bodies: dict[str, Any] = {"first": ""}
    publisher = AmqpPublisher(app, message_factory=lambda task: messages_with(bodies)(task))
    assert kinds(publisher.publish([Task(key="first", id="first", command="true")], timeout=WAIT_TIMEOUT)) == [Sent]
    (shortest,) = RabbitBroker(rabbit).take_all(app)["default"]
    assert kinds(publisher.publish([Task(key="first", id="first", command="true")], timeout=5)) == [NotSent]
    with app.connection_for_read() as connection:
        room = connection.default_channel.connection.frame_max - 8
    lengths = [room - 1, room, room + 1, 2 * room, 3 * room + 1, 5_000_000]
    bodies |= {f"of {length}": "x" * (length - len(shortest[0])) for length in lengths}
    tasks = [Task(key=task_id, id=task_id, command="true") for task_id in bodies]
    assert kinds(publisher.publish(tasks, timeout=10)) == [Sent] * len(tasks)
    publisher.close()
    stored = RabbitBroker(rabbit).take_all(app)["default"]
    assert [len(body) for body, *_ in stored] == [len(shortest[0]), *lengths]
    assert [json.loads(body)[0][0] for body, *_ in stored] == list(bodies.values())


def test_key_too_long_for_a_frame_fails_alone_and_for_good(rabbit):
    app = app_on(rabbit.url)
    publisher = AmqpPublisher(app)
    tasks = [
        Task(key="fine", command="true"),
        Task(key="k" * 200_000, command="true"),
        Task(key="l" * 200_000, command=("echo", "\udcff")),  # its message is built alone
        Task(key="queue", queue="q" * 256, command="true"),
        Task(key="fine too", command="true"),
    ]
    receipts = list(publisher.publish(tasks, timeout=WAIT_TIMEOUT))
    assert kinds(receipts) == [Sent, NotSent, NotSent, NotSent, Sent]
    assert not any(receipt.transient for receipt in receipts if isinstance(receipt, NotSent))
    assert "too long for RabbitMQ" in str(error_of(receipts[1]))
    publisher.close()
    assert len(RabbitBroker(rabbit).take_all(app_on(rabbit.url))["default"]) == 2


def test_queue_refused_late_in_a_batch_leaves_no_task_before_it_unsure(rabbit):
    app = app_beside_a_plain_queue(rabbit)
    publisher = AmqpPublisher(app)
    tasks = [Task(key=n, command=("echo", "x" * 1_000), queue="plain" if n == 300 else "default") for n in range(400)]
    assert kinds(publisher.publish(tasks, timeout=10)) == [Sent] * 300 + [NotSent] + [Sent] * 99
    publisher.close()
    keys = [body_key(stored) for stored in RabbitBroker(rabbit).take_all(app)["default"]]
    assert keys == [*range(300), *range(301, 400)]


@pytest.mark.parametrize("size", [10_000_000, slow(200_000)])
def test_no_task_is_sent_twice_after_a_memory_alarm_during_a_write(rabbit, size):
    app = app_on(rabbit.url)
    bodies: dict[str, Any] = {f"id-{n}": f"{n}{'x' * size}" for n in range(20_000_000 // size)}
    publisher = AmqpPublisher(app, message_factory=messages_with(bodies))
    tasks = [Task(key=task_id, id=task_id, command="true") for task_id in bodies]
    assert kinds(publisher.publish([], timeout=5)) == []
    rabbit.control("set_vm_memory_high_watermark", "0")
    try:
        blocked = list(publisher.publish(tasks, timeout=5))
        still = list(publisher.publish(tasks, timeout=TIMEOUT))
    finally:
        rabbit.control("set_vm_memory_high_watermark", "0.4")
    assert kinds(blocked)[0] is Unsure
    assert kinds(blocked)[-1] is NotSent
    assert kinds(still) == kinds(blocked)
    assert {type(error_of(receipt)) for receipt in still} == {BrokerBlocked}
    until_sent(publisher, tasks, "the end of the alarm")
    publisher.close()
    stored = RabbitBroker(rabbit).take_all(app)["default"]
    assert [json.loads(body)[0][0] for body, *_ in stored] == list(bodies.values())


def test_rabbitmq_frozen_during_a_write_gets_the_rest_later(rabbit):
    app = app_on(rabbit.url)
    bodies: dict[str, Any] = {"small": "", "large": "x" * 50_000_000, "after": ""}
    publisher = AmqpPublisher(app, message_factory=messages_with(bodies))
    small, *others = tasks = [Task(key=task_id, id=task_id, command="true") for task_id in bodies]
    assert kinds(publisher.publish([small], timeout=WAIT_TIMEOUT)) == [Sent]
    rabbit.freeze()
    assert kinds(publisher.publish(others, timeout=TIMEOUT)) == [Unsure, NotSent]
    rabbit.thaw()
    until_sent(publisher, others, "the confirms")
    publisher.close()
    stored = RabbitBroker(rabbit).take_all(app)["default"]
    assert [len(json.loads(body)[0][0]) for body, *_ in stored] == [len(bodies[task.id]) for task in tasks]
