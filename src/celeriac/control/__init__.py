"""The way to an executor at work in another process: to cancel its tasks, and to have them explained.

    celeriac cancel, explain ─► request ─► thread of the executor's process ─► Tray ─► CeleryExecutor.sync
                             ◄─ answers ◄──────────────────────────────────────◄─┘

wire      requests and answers as JSON
tray      between that thread and the executor's
folder    where this user's sockets are
local     a Unix socket, for executors of this machine;           local_calls: the other end
mailbox   Celery's kind of mailbox, for those on a broker;        broker_desk, executor_calls: both ends
"""
