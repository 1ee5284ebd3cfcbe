"""The reasons for which RabbitMQ refuses a queue, in its own words, and the remedy that each of them gets."""

from __future__ import annotations

import pytest
from amqp.exceptions import AccessRefused, AMQPNotImplementedError, NotFound, PreconditionFailed, ResourceLocked

from celeriac.errors import QueueRefused

INEQUIVALENT = "PRECONDITION_FAILED - inequivalent arg '{}' for queue 'a' in vhost 'v': "


@pytest.mark.parametrize(
    ("reply", "problem", "remedy"),
    [
        (
            PreconditionFailed(
                INEQUIVALENT.format("x-queue-type")
                + "received none but current is the value 'quorum' of type 'longstr'"
            ),
            "queue 'a' is a quorum queue",
            "set queue_type = quorum",
        ),
        (
            PreconditionFailed(INEQUIVALENT.format("x-queue-type") + "received 'classic' but current is 'quorum'"),
            "queue 'a' is a quorum queue",
            "set queue_type = quorum",
        ),
        (
            PreconditionFailed(
                "PRECONDITION_FAILED - invalid arg 'x-max-priority' for queue 'a' in vhost 'v' of queue type"
                " rabbit_quorum_queue"
            ),
            "queue 'a' is a quorum queue",
            "set queue_type = quorum",
        ),
        (
            AMQPNotImplementedError("NOT_IMPLEMENTED - queue 'a' in vhost 'v' does not support global qos"),
            "queue 'a' is a quorum queue",
            "set queue_type = quorum",
        ),
        (
            PreconditionFailed(
                INEQUIVALENT.format("x-queue-type")
                + "received the value 'quorum' of type 'longstr' but current is none"
            ),
            "queue 'a' is not a quorum queue",
            "leave queue_type out",
        ),
        (
            PreconditionFailed(INEQUIVALENT.format("x-max-priority") + "received none but current is the value '10'"),
            "queue 'a' exists with other arguments",
            "set queue_type and task_queue_max_priority as when it was created",
        ),
        (
            PreconditionFailed(INEQUIVALENT.format("durable") + "received 'true' but current is 'false'"),
            "queue 'a' exists with other arguments",
            "delete it when it is empty",
        ),
        (
            AccessRefused("ACCESS_REFUSED - access to exchange 'a' in vhost 'v' refused for user 'u'"),
            "queue 'a' is not allowed for this user",
            "give the user the rights",
        ),
        (
            NotFound("NOT_FOUND - home node 'r@b' of durable queue 'a' in vhost 'v' is down or inaccessible"),
            "queue 'a' is on a stopped node",
            "start that node again",
        ),
        (NotFound("NOT_FOUND - no exchange 'a' in vhost 'v'"), "queue 'a' does not exist", "create it again"),
        (
            ResourceLocked("RESOURCE_LOCKED - cannot obtain exclusive access to locked queue 'a' in vhost 'v'"),
            "queue 'a' belongs to one connection alone",
            "end the client that has it",
        ),
        (PreconditionFailed("PRECONDITION_FAILED - new"), "queue '?' is refused by RabbitMQ", "see the log"),
    ],
)
def test_each_refusal_is_described_with_its_remedy(reply, problem, remedy):
    text = str(QueueRefused.from_reply(reply))
    assert text.startswith(problem)
    assert remedy in text.rpartition("; ")[2]
    assert reply.reply_text in text
