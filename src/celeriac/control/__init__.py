"""Control channels: another process cancels and explains the tasks of a running executor.

    celeriac cancel, explain ─► request ─► server thread ─► RequestQueue ─► CeleryExecutor.sync
                             ◄─ replies ◄─────────────────────────────────◄─┘

    wire              requests and replies as JSON
    request_queue     passes requests and replies between two threads
    unix_server, unix_client, folder                            a Unix socket, for executors of this user and machine
    broker_server, broker_client, mailbox, connection_monitor   a mailbox as Celery has it, for executors on a broker

Requests of other processes come in, and replies go out. The folder may import `broker`, `executor` and what these may
import.
"""
