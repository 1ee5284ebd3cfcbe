"""Control channels: another process cancels and explains the tasks of a running executor.

    celeriac cancel, explain ─► request ─► server thread ─► RequestQueue ─► CeleryExecutor.sync
                             ◄─ replies ◄─────────────────────────────────◄─┘

    wire              requests and replies as JSON
    request_queue     hands requests and replies from one thread to the other
    unix_server, unix_client, folder                            a Unix socket, for executors of this user and machine
    broker_server, broker_client, mailbox, connection_monitor   Celery's kind of mailbox, for executors on a broker

Requests come in from other processes, replies go out. Imports `broker`, `executor` and the packages below them.
"""
