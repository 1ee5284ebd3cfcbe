"""Publish tasks to the broker.

    Task ─► MessageFactory ─► TaskMessage ─► Celery and Kombu, or a template ─► Publisher ─► broker
                                                                                    └─► Receipt of each task

app             the Celery app, made from the settings
queues          the arguments of RabbitMQ's queues and consumers
broker_list     which one of several brokers is used
session         short exchanges with the broker, each over its own connection
publishers      chooses the publisher for the app's broker
redis           writes many messages at once, then reads the replies
amqp            writes many messages at once, then reads the confirms; amqp_frames has the wire format
one_by_one      publishes one message at a time, to every other broker
command_message  the argument of the Celery task: the command of a task as plain data, made without Celery
task_message    the Celery message of a task
message         builds the message on the wire, or a template for all messages of a kind
template        bytes with gaps
connection      one long-lived connection with deadlines, and the probes during an outage
compression     decompresses up to a limit
client_errors   what an error of a broker's client means
deadline_thread, wakeup    help threads that must not block each other
plain_redis     reads from Redis without a client library
sockets         ends the reads of other code
bundled_valkey  the server of `celeriac broker`

Tasks come in. Messages, and a receipt for each task, go out. The folder uses Celery and Kombu. It may import
`celeriac.executor` (its protocols) and what that may import, but nothing of workers, results or the ledger.
"""
